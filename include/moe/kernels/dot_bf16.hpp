// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 pairs summed in float: the only file with intrinsics. A packet of floats
// stands for as many pairs (k, k + 1), the lower half of each 32 bits first.
//
// With AVX512_BF16 one instruction adds both products of a pair, and takes denormals for zero.
// Elsewhere the halves are widened and added one after the other. The sums differ by the rounding
// of single additions: at most about depth * 2^-24 of the sum of absolute products.
#pragma once

#include <cstring>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// sum + a.low * b.low + a.high * b.high, lane by lane.
template <class Packet>
Packet dot_pairs(const Packet& a, const Packet& b, const Packet& sum) {
  namespace ei = Eigen::internal;
#ifdef __AVX512BF16__
  if constexpr (sizeof(Packet) == 64) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
#endif
  using Bits = typename ei::unpacket_traits<Packet>::integer_packet;
  const auto low = [](const Packet& v) {
    return ei::preinterpret<Packet>(ei::plogical_shift_left<16>(ei::preinterpret<Bits>(v)));
  };
  const Packet mask = ei::pset1frombits<Packet>(0xffff0000u);
  return ei::pmadd(ei::pand(a, mask), ei::pand(b, mask), ei::pmadd(low(a), low(b), sum));
}

template <class Packet>
Packet load_group(const Eigen::bfloat16* panel) {
  return Eigen::internal::pload<Packet>(reinterpret_cast<const float*>(panel));
}

template <class Packet>
Packet broadcast_group(const Eigen::bfloat16* pair) {
  float bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return Eigen::internal::pset1<Packet>(bits);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
