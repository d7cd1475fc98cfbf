// SPDX-License-Identifier: Apache-2.0
// What makes a rounding in two steps one: on the way from more than a float to 16 bits, the float
// in between.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// A float that rounds to 16 bits as the value itself would: `value` if a float holds it, else that
/// of its two neighbours whose last bit is 1, which no rounding to fewer bits takes for a tie
/// (rounding to odd: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums").
template <std::floating_point T>
float round_to_odd(T value) {
  const auto nearest = static_cast<float>(value);
  const auto bits = std::bit_cast<std::uint32_t>(nearest);
  const T rest = std::abs(value) - std::abs(static_cast<T>(nearest));
  if ((bits & 1u) == 0 && (rest < 0 || rest > 0)) {  // neither holds for NaN and Inf
    return std::bit_cast<float>(rest > 0 ? bits + 1 : bits - 1);
  }
  return nearest;
}

/// 64-bit integers, which a cast to double would round, keep 52 bits and whether there was a rest.
template <std::integral T>
float round_to_odd(T value) {
  if constexpr (sizeof(T) < sizeof(double)) {
    return round_to_odd(static_cast<double>(value));
  } else {
    const auto bits = static_cast<std::uint64_t>(value);
    std::uint64_t size = value < T{0} ? 0 - bits : bits;
    if (size >> std::numeric_limits<double>::digits != 0) {
      const std::uint64_t rest = size & 0xfffu;
      size = (size - rest) | (rest != 0 ? 0x1000u : 0u);
    }
    const auto exact = static_cast<double>(size);
    return round_to_odd(value < T{0} ? -exact : exact);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
