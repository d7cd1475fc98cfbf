// SPDX-License-Identifier: Apache-2.0
// Weights as integers of 8 bits with a scale in half for every 32 of them: 8.5 bits a weight. What
// GGUF calls Q8_0 is exactly this.
#pragma once

#include <algorithm>
#include <limits>
#include <string_view>

#include "coded.hpp"
#include "encode.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage.
struct q8 {};

template <>
struct WideOf<q8> {
  using type = float;
};

/// weight = scale * (code - 128). The scale is rounded up, so that |weight - w| <= scale / 2.
struct Q8Format {
  using Scale = Eigen::half;
  static constexpr std::string_view name = "q8";
  static constexpr int bits = 8;
  static constexpr std::int32_t bias = 128;
  static constexpr float unit = 1.0f;

  static constexpr std::int32_t number(unsigned code) { return static_cast<std::int32_t>(code); }
  static float scale_of(Scale scale) { return kernels::widen(scale); }

  static Scale encode(const float* values, unsigned* codes) {
    std::fill_n(codes, kernels::block_size, static_cast<unsigned>(bias));
    if (!kernels::are_finite(values)) {
      return std::numeric_limits<Eigen::half>::quiet_NaN();
    }
    const Scale stored = kernels::half_not_below(kernels::largest_magnitude(values) / 127.0f);
    const float scale = scale_of(stored);
    if (scale > 0.0f) {
      const kernels::Block steps = kernels::nearest_steps(values, 0.0f, scale, -127.0f, 127.0f);
      std::transform(steps.begin(), steps.end(), codes,
                     [](double step) { return static_cast<unsigned>(step + bias); });
    }
    return stored;
  }
};

template <>
class PackedMatrix<q8> : public CodedPanels<Q8Format> {
 public:
  using CodedPanels::CodedPanels;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
