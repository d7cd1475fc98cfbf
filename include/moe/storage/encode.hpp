// SPDX-License-Identifier: Apache-2.0
// What the encoders of weights in integers share: they look at blocks of 32 weights, make the same
// codes on every instruction set, and are written for compilers to use vectors.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "../kernels/coded_rows.hpp"
#include "../kernels/half.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// 32 numbers of float or less, in double: the product of one with a whole number is exact.
using Block = std::array<double, block_size>;

inline Block block_of(const float* values) {
  Block block;
  std::copy(values, values + block_size, block.begin());
  return block;
}

/// The whole numbers of [least, most] nearest to (values + offset) / scale, whose magnitudes are
/// below 2^31; halves go away from 0. What is added is the number below 0.5: 0.5 itself would take
/// the number below it to 1. A function of its own, of two loops: in one, GCC would decide on each
/// number whether it is beyond a bound, and make no vectors.
EIGEN_DONT_INLINE inline Block nearest_steps(const float* values, float offset, float scale,
                                             float least, float most) {
  float bounded[block_size];
  for (Index k = 0; k < block_size; ++k) {
    const float step = (values[k] + offset) / scale;
    const float not_below = step > least ? step : least;  // NaN is neither
    bounded[k] = not_below < most ? not_below : most;
  }
  Block steps;
  for (std::size_t k = 0; k < steps.size(); ++k) {
    steps[k] = static_cast<std::int32_t>(bounded[k] + std::copysign(0x0.ffffffp-1f, bounded[k]));
  }
  return steps;
}

/// The sum of products, each of which is exact: some machines round a product before they add it,
/// and some do not. The order is one that vectors of every width can keep.
EIGEN_DONT_INLINE inline double exact_dot(const Block& a, const Block& b) {
  constexpr std::size_t chains = 8;
  double sums[chains] = {};
  for (std::size_t k = 0; k < a.size(); k += chains) {
    for (std::size_t i = 0; i < chains; ++i) {
      sums[i] += a[k + i] * b[k + i];
    }
  }
  for (std::size_t half = chains / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) {
      sums[i] += sums[i + half];
    }
  }
  return sums[0];
}

/// Whether 32 weights are finite.
inline bool are_finite(const float* values) {
  return std::all_of(values, values + block_size, [](float value) { return std::isfinite(value); });
}

/// The largest magnitude of 32 weights, which are finite.
inline float largest_magnitude(const float* values) {
  float most = 0.0f;
  for (Index k = 0; k < block_size; ++k) {
    const float magnitude = std::abs(values[k]);
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

/// The least half that is not below a value, which is not negative; NaN for NaN.
inline Eigen::half half_not_below(float value) {
  Eigen::half half(value);
  if (widen(half) < value) {
    const auto next = Eigen::numext::bit_cast<std::uint16_t>(half) + 1;
    half = Eigen::half_impl::raw_uint16_to_half(static_cast<std::uint16_t>(next));
  }
  return half;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
