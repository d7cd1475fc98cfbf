// SPDX-License-Identifier: Apache-2.0
// One number of one type to one of another, for every part that stores in fewer bits than it
// computes in, and for files. Rounds once, whatever the two types are.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "../detail/round_to_odd.hpp"
#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

template <class T>
concept SixteenBitFloat = std::same_as<T, Eigen::half> || std::same_as<T, bf16>;

/// In steps without a branch, so that loops of it are vectorised also where no instruction does it.
inline float widen(Eigen::half value) {
  // Not value.x, which is a number where the machine computes with halves.
  const std::uint32_t bits = Eigen::numext::bit_cast<std::uint16_t>(value);
  const std::uint32_t magnitude = (bits & 0x7fffu) << 13;
  constexpr std::uint32_t smallest_normal = 0x400u << 13, infinity = 0x7c00u << 13;
  constexpr std::uint32_t rebias = 112u << 23;  // of the exponent: float's 127 for half's 15
  // 2^-14 and a fraction of it, less 2^-14: no denormal float, which a processor may take for 0.
  const float denormal = std::bit_cast<float>(magnitude + rebias + (1u << 23)) - 0x1p-14f;
  const std::uint32_t number =
      magnitude < smallest_normal ? std::bit_cast<std::uint32_t>(denormal) : magnitude + rebias;
  const std::uint32_t special = magnitude < infinity ? 0u : 0x7f800000u;
  return std::bit_cast<float>(number | special | (bits & 0x8000u) << 16);
}

/// static_cast<To>, to the nearest, ties to even; NaN stays NaN, and a value of type To keeps its
/// bits. Eigen's own casts of bfloat16 from float are right, too, but GCC vectorises no loop of
/// them; from all wider types they round twice.
template <class To, class From>
To convert(const From& value) {
  if constexpr (std::same_as<To, From>) {
    return value;  // not by way of float, which would quieten a signalling NaN
  } else if constexpr (std::same_as<To, bf16> && std::same_as<From, float>) {
    namespace impl = Eigen::bfloat16_impl;
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto quiet = static_cast<std::uint16_t>((bits | 0x400000u) >> 16);
    const std::uint16_t nearest = impl::float_to_bfloat16_rtne<true>(value).value;
    return impl::raw_uint16_to_bfloat16((bits & 0x7fffffffu) > 0x7f800000u ? quiet : nearest);
  } else if constexpr (std::same_as<To, float> && std::same_as<From, bf16>) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value.value) << 16);
  } else if constexpr (std::same_as<To, float> && std::same_as<From, Eigen::half>) {
    return widen(value);
  } else if constexpr (SixteenBitFloat<From>) {
    return convert<To>(convert<float>(value));
  } else if constexpr (SixteenBitFloat<To> && std::is_arithmetic_v<From> &&
                       !std::same_as<From, float>) {
    return convert<To>(detail::round_to_odd(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
