// SPDX-License-Identifier: Apache-2.0
// Weights as integers of 8 bits with a scale in half for every 32 of them: 8.5 bits a weight. What
// GGUF calls Q8_0 is exactly this.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "coded.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage.
struct q8 {};

template <>
struct WideOf<q8> {
  using type = float;
};

namespace kernels {

/// The least half that is not below a value, which is not negative; NaN for NaN.
inline Eigen::half half_not_below(float value) {
  Eigen::half half(value);
  if (widen(half) < value) {
    const auto next = Eigen::numext::bit_cast<std::uint16_t>(half) + 1;
    half = Eigen::half_impl::raw_uint16_to_half(static_cast<std::uint16_t>(next));
  }
  return half;
}

/// The largest magnitude of 32 weights, which are finite.
inline float largest_magnitude(const float* values) {
  return std::abs(*std::max_element(values, values + block_size,
                                    [](float a, float b) { return std::abs(a) < std::abs(b); }));
}

/// Whether 32 weights are finite.
inline bool are_finite(const float* values) {
  return std::all_of(values, values + block_size, [](float value) { return std::isfinite(value); });
}

}  // namespace kernels

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
    for (Index k = 0; k < kernels::block_size && scale > 0.0f; ++k) {
      codes[k] = static_cast<unsigned>(std::lround(values[k] / scale) + bias);
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
