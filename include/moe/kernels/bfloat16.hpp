// SPDX-License-Identifier: Apache-2.0
// Packets of bfloat16: rounding to it, and products of pairs summed in float. Intrinsics are in
// this file, half.hpp, mask.hpp, decode_e4m3.hpp and the tiles of integers alone.
//
// A packet of floats stands for as many pairs (k, k + 1), the lower half of each 32 bits first.
// With AVX512_BF16 one instruction adds both products of a pair, and takes denormals for zero.
// Elsewhere the halves are widened and added one after the other; also on processors that have AMX
// too (Intel since Sapphire Rapids), where that instruction takes the time of four multiply-adds of
// float. The sums differ by the rounding of single additions: at most about depth * 2^-24 of the
// sum of absolute products.
#pragma once

#include <bit>
#include <cstring>
#include <type_traits>

#include "../types.hpp"
#include "convert.hpp"
#include "half.hpp"

// Not where Eigen was told to do without packets.
#if defined(__AVX512BF16__) && defined(__AVX512DQ__) && defined(EIGEN_VECTORIZE_AVX512)
#define MOE_AVX512_BF16
#if !defined(__AMX_BF16__) && !defined(__AMXBF16__)
#define MOE_DOTS_OF_BFLOAT16
#endif
#endif

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Whether one instruction multiplies pairs of bfloat16 and adds them up in float, and it pays.
inline constexpr bool multiplies_bfloat16 =
#ifdef MOE_DOTS_OF_BFLOAT16
    true;
#else
    false;
#endif

/// convert() of each lane, bit for bit.
template <class Packet, class T>
void narrow_packet(const Packet& value, T* to) {
  using Traits = Eigen::internal::unpacket_traits<Packet>;
#ifdef MOE_AVX512_BF16
  if constexpr (Traits::size == 16 && std::is_same_v<T, bf16>) {
    // One instruction, but it takes denormals for zero: they go the long way.
    if (constexpr int denormal = 0x20; _mm512_fpclass_ps_mask(value, denormal) == 0) {
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                                 std::bit_cast<__m256i>(_mm512_cvtneps_pbh(value)));
    }
  }
#endif
  typename Traits::type wide[Traits::size];
  Eigen::internal::pstoreu(wide, value);
  for (int i = 0; i < Traits::size; ++i) {
    to[i] = convert<T>(wide[i]);
  }
}

/// Each lane rounded to T, bit for bit as convert() does.
template <class T, class Packet>
Packet round_packet(const Packet& value) {
  using Traits = Eigen::internal::unpacket_traits<Packet>;
  typename Traits::type wide[Traits::size];
  T narrow[Traits::size];
  narrow_packet(value, narrow);
  for (int i = 0; i < Traits::size; ++i) {
    wide[i] = convert<typename Traits::type>(narrow[i]);
  }
  return Eigen::internal::ploadu<Packet>(wide);
}

/// The first (number 0) or the second of each pair, widened to float.
template <int number, class Packet>
Packet half_of_pairs(const Packet& pairs) {
  namespace ei = Eigen::internal;
  if constexpr (std::is_same_v<Packet, float>) {  // without vectorisation a packet is a number
    const auto bits = std::bit_cast<std::uint32_t>(pairs);
    return std::bit_cast<float>(number == 0 ? bits << 16 : bits & 0xffff0000U);
  } else if constexpr (number == 0) {
    using Bits = typename ei::unpacket_traits<Packet>::integer_packet;
    return ei::preinterpret<Packet>(ei::plogical_shift_left<16>(ei::preinterpret<Bits>(pairs)));
  } else {
    return ei::pand(pairs, ei::pset1frombits<Packet>(0xffff0000u));
  }
}

/// sum + a.low * b.low + a.high * b.high, lane by lane.
template <class Packet>
Packet dot_pairs(const Packet& a, const Packet& b, const Packet& sum) {
  namespace ei = Eigen::internal;
#ifdef MOE_DOTS_OF_BFLOAT16
  if constexpr (sizeof(Packet) == 64) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(a), std::bit_cast<__m512bh>(b));
  }
#endif
  return ei::pmadd(half_of_pairs<1>(a), half_of_pairs<1>(b),
                   ei::pmadd(half_of_pairs<0>(a), half_of_pairs<0>(b), sum));
}

// A pair has the alignment of its halves, so that a single one is no float to be read in place.
template <class Packet>
Packet load_step(const Eigen::bfloat16* panel) {
  if constexpr (std::is_same_v<Packet, float>) {
    float bits;
    std::memcpy(&bits, panel, sizeof(bits));
    return bits;
  }
  return Eigen::internal::ploadu<Packet>(reinterpret_cast<const float*>(panel));
}

/// pair[0] = low, pair[1] = high, at once: as two stores no loop of it is vectorised.
inline void store_pair(bf16 low, bf16 high, bf16* pair) {
  const std::uint32_t bits = low.value | static_cast<std::uint32_t>(high.value) << 16;
  std::memcpy(static_cast<void*>(pair), &bits, sizeof(bits));
}

template <class Packet>
void store_step(Eigen::bfloat16* panel, const Packet& packet) {
  if constexpr (std::is_same_v<Packet, float>) {
    std::memcpy(static_cast<void*>(panel), &packet, sizeof(packet));
    return;
  }
  Eigen::internal::pstoreu(reinterpret_cast<float*>(panel), packet);
}

template <class Packet>
Packet broadcast_step(const Eigen::bfloat16* pair) {
  float bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return Eigen::internal::pset1<Packet>(bits);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels

#undef MOE_AVX512_BF16
#undef MOE_DOTS_OF_BFLOAT16
