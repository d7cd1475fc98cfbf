// SPDX-License-Identifier: Apache-2.0
// Floats of 8 and of 4 bits, as checkpoints store them, to float and double: exactly, NaN as NaN.
// Files and storages decode by these, and nothing computes in such types.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>

#include "convert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// A sign, 4 bits of exponent, 3 of fraction (Micikevicius et al. 2022, FP8 Formats for Deep
/// Learning): up to 448, without infinities; 0x7f and 0xff are NaN.
struct e4m3 {
  std::uint8_t bits;
};
/// A sign, 5 bits of exponent, 2 of fraction (likewise): the first byte of a half, with infinities.
struct e5m2 {
  std::uint8_t bits;
};
/// A scale 2^(bits - 127), 255 is NaN (Open Compute Project 2023, Microscaling Formats).
struct e8m0 {
  std::uint8_t bits;
};

template <class T>
concept EightBitFloat = std::same_as<T, e4m3> || std::same_as<T, e5m2> || std::same_as<T, e8m0>;

inline Eigen::half half_of_bits(std::uint32_t bits) {
  return Eigen::half_impl::raw_uint16_to_half(static_cast<std::uint16_t>(bits));
}

// In steps without a branch, as the one of half.

inline float widen(e4m3 value) {
  const std::uint32_t bits = value.bits, magnitude = bits & 0x7fu;
  // Read as a half, the exponent has a bias of 15 for 7.
  const float scaled = widen(half_of_bits((bits & 0x80u) << 8 | magnitude << 7)) * 0x1p8f;
  const std::uint32_t nan = magnitude == 0x7fu ? 0x7fc00000u : 0u;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | nan);
}

inline float widen(e5m2 value) {
  return widen(half_of_bits(static_cast<std::uint32_t>(value.bits) << 8));
}

/// The least is 2^-127, a denormal float.
inline float widen(e8m0 value) {
  const std::uint32_t special = value.bits == 0 || value.bits == 255 ? 0x400000u : 0u;
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 23 | special);
}

/// As above; into 16 bits rounded to nearest.
template <class To, EightBitFloat From>
To convert(const From& value) {
  if constexpr (std::same_as<To, From>) {
    return value;
  } else if constexpr (std::same_as<To, double> && std::same_as<From, e8m0>) {
    // Not by way of float, where a processor may take 2^-127 for 0.
    const std::uint64_t exponent = value.bits == 255 ? 0x7ffu : value.bits + (1023u - 127u);
    const std::uint64_t nan = value.bits == 255 ? std::uint64_t{1} << 51 : 0u;
    return std::bit_cast<double>(exponent << 52 | nan);
  } else {
    return convert<To>(widen(value));
  }
}

/// Of the low 4 bits of a code: a sign, 2 bits of exponent, 1 of fraction. 8 is -0.
inline float widen_e2m1(unsigned code) {
  constexpr float values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  return values[code & 15u];
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
