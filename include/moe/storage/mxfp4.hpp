// SPDX-License-Identifier: Apache-2.0
// Weights as floats of 4 bits with an exponent for every 32 of them: 4.25 bits a weight (Open
// Compute Project 2023, Microscaling Formats), as gpt-oss is published.
#pragma once

#include <array>

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
    const Codes magnitudes = magnitudes_of(values, scale);
    for (Index k = 0; k < kernels::block_size; ++k) {
      codes[k] = magnitudes[static_cast<std::size_t>(k)] + (values[k] < 0.0f ? 8u : 0u);
    }
    return scale;
  }

 private:
  using Codes = std::array<unsigned, kernels::block_size>;

  static constexpr std::int32_t halves(unsigned code) { return number(code) - bias; }

  /// The codes nearest to the magnitudes of 32 weights; ties go to the even code.
  static Codes magnitudes_of(const float* values, Scale scale) {
    const float half = scale_of(scale) * unit;
    Codes codes{};
    for (std::size_t k = 0; k < codes.size(); ++k) {
      const float magnitude = std::abs(values[k]) / half;  // exact, as far as codes depend on it
      for (unsigned code = 1; code < 8; ++code) {
        const float middle = 0.5f * static_cast<float>(halves(code - 1) + halves(code));
        codes[k] += static_cast<unsigned>(code % 2 == 0 ? magnitude >= middle : magnitude > middle);
      }
    }
    return codes;
  }
  /// Of differences in float, whose squares are exact in double.
  static double error(const float* values, Scale scale) {
    const double half = static_cast<double>(scale_of(scale) * unit);
    const Codes codes = magnitudes_of(values, scale);
    kernels::Block off;
    for (std::size_t k = 0; k < off.size(); ++k) {
      // Exact, and infinite where float has no such number: then the lower scale errs less.
      const double value = static_cast<double>(static_cast<float>(half * halves(codes[k])));
      const auto rounded = static_cast<float>(static_cast<double>(std::abs(values[k])) - value);
      off[k] = static_cast<double>(rounded);
    }
    return kernels::exact_dot(off, off);
  }
};

template <>
class PackedMatrix<mxfp4> : public CodedPanels<Mxfp4Format> {
 public:
  using CodedPanels::CodedPanels;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
