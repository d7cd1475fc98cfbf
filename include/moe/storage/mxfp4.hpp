// SPDX-License-Identifier: Apache-2.0
// Weights as floats of 4 bits with an exponent for every 32 of them: 4.25 bits a weight (Open
// Compute Project 2023, Microscaling Formats), as gpt-oss is published.
#pragma once

#include "../kernels/eight_bit_floats.hpp"
#include "q8.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage.
struct mxfp4 {};

template <>
struct WideOf<mxfp4> {
  using type = float;
};

/// weight = 2^(scale - 127) * value, of the values 0, 0.5, 1, 1.5, 2, 3, 4, 6 and, with the code's
/// highest bit, less than 0. Halves of them are the unit, so sums are of integers. A scale of 255
/// is NaN.
struct Mxfp4Format {
  using Scale = std::uint8_t;
  static constexpr std::string_view name = "mxfp4";
  static constexpr int bits = 4;
  static constexpr std::int32_t bias = 12;
  static constexpr float unit = 0.5f;
  /// Twice the value, above it by the bias.
  static constexpr std::uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                             12, 11, 10, 9,  8,  6,  4,  0};

  static constexpr std::int32_t number(unsigned code) { return table[code]; }
  static float scale_of(Scale scale) { return kernels::widen(kernels::e8m0{scale}); }

  /// The exponent of the largest weight less 2, as the format's paper has it, or one more, which
  /// clips nothing: whichever errs less.
  static Scale encode(const float* values, unsigned* codes) {
    std::fill_n(codes, kernels::block_size, 0u);
    if (!kernels::are_finite(values)) {
      return 255;
    }
    const float most = kernels::largest_magnitude(values);
    if (!(most > 0.0f)) {
      return 0;
    }
    const int exponent = std::ilogb(most) - 2 + 127;
    const auto lower = static_cast<Scale>((std::clamp)(exponent, 0, 254));
    const auto upper = static_cast<Scale>((std::clamp)(exponent + 1, 0, 254));
    const Scale scale = error(values, upper) < error(values, lower) ? upper : lower;
    for (Index k = 0; k < kernels::block_size; ++k) {
      codes[k] = nearest(values[k], scale);
    }
    return scale;
  }

 private:
  static double value(unsigned code, Scale scale) {
    return static_cast<double>(scale_of(scale)) * 0.5 * (number(code) - bias);
  }
  /// Ties go to the even code.
  static unsigned nearest(float weight, Scale scale) {
    const double magnitude = std::abs(static_cast<double>(weight));
    unsigned best = 0;
    for (unsigned code = 1; code < 8; ++code) {
      const double gain =
          std::abs(magnitude - value(best, scale)) - std::abs(magnitude - value(code, scale));
      if (gain > 0.0 || (gain >= 0.0 && code % 2 == 0)) {
        best = code;
      }
    }
    return best + (weight < 0.0f ? 8u : 0u);
  }
  /// Of differences in float, whose squares are exact in double: instruction sets differ in whether
  /// they round between a product and a sum.
  static double error(const float* values, Scale scale) {
    double sum = 0.0;
    for (Index k = 0; k < kernels::block_size; ++k) {
      const auto off = static_cast<float>(static_cast<double>(values[k]) -
                                          value(nearest(values[k], scale), scale));
      sum += static_cast<double>(off) * static_cast<double>(off);
    }
    return sum;
  }
};

template <>
class PackedMatrix<mxfp4> : public CodedPanels<Mxfp4Format> {
 public:
  using CodedPanels::CodedPanels;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
