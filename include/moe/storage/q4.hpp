// SPDX-License-Identifier: Apache-2.0
// Weights as integers of 4 bits with a scale in half for every 32 of them: 4.5 bits a weight. What
// GGUF calls Q4_0 is exactly this.
#pragma once

#include "q8.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage.
struct q4 {};

template <>
struct WideOf<q4> {
  using type = float;
};

/// weight = scale * (code - 8), -8 to 7 steps; the scale may be negative.
struct Q4Format {
  using Scale = Eigen::half;
  static constexpr std::string_view name = "q4";
  static constexpr int bits = 4;
  static constexpr std::int32_t bias = 8;
  static constexpr float unit = 1.0f;

  static constexpr std::int32_t number(unsigned code) { return static_cast<std::int32_t>(code); }
  static float scale_of(Scale scale) { return kernels::widen(scale); }

  /// Of scales that take the largest weight to about -8 steps, each with the codes nearest to it
  /// and then the scale that fits these best, by least squares, the one with the least error.
  static Scale encode(const float* values, unsigned* codes) {
    std::fill_n(codes, kernels::block_size, static_cast<unsigned>(bias));
    if (!kernels::are_finite(values)) {
      return std::numeric_limits<Eigen::half>::quiet_NaN();
    }
    const float most =
        *std::max_element(values, values + kernels::block_size,
                          [](float a, float b) { return std::abs(a) < std::abs(b); });
    const Scale stored(best_scale(values, most));
    const float scale = scale_of(stored);
    if (std::abs(scale) > 0.0f) {
      const kernels::Block steps = steps_of(values, scale);
      std::transform(steps.begin(), steps.end(), codes,
                     [](double step) { return static_cast<unsigned>(step + bias); });
    }
    return stored;
  }

 private:
  static kernels::Block steps_of(const float* values, float scale) {
    return kernels::nearest_steps(values, 0.0f, scale, -8.0f, 7.0f);
  }
  static float best_scale(const float* values, float most) {
    constexpr int trials = 9;
    const kernels::Block weights = kernels::block_of(values);
    float best = most / -8.0f;
    double explained = -1.0;  // of the sum of squares, by codes and their scale
    for (int trial = -trials; trial <= trials; ++trial) {
      const float scale = most / (static_cast<float>(-80 - trial) / 10.0f);
      if (!(std::abs(scale) > 0.0f)) {
        return 0.0f;
      }
      const kernels::Block steps = steps_of(values, scale);
      const double product = kernels::exact_dot(steps, weights);
      const double square = kernels::exact_dot(steps, steps);
      if (product * product > explained * square) {
        explained = product * product / square;
        best = static_cast<float>(product / square);
      }
    }
    return best;
  }
};

template <>
class PackedMatrix<q4> : public CodedPanels<Q4Format> {
 public:
  using CodedPanels::CodedPanels;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
