// SPDX-License-Identifier: Apache-2.0
// Mask: what a comparison of two registers says of each lane, and the choice by it. Eigen keeps it
// in a vector register; where the machine has mask registers, that is two instructions more for
// every choice.
#pragma once

#include <type_traits>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

#ifdef EIGEN_VECTORIZE_AVX512

/// A bit for each lane. Comparisons with NaN are false.
template <class T>
struct Mask {
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  static constexpr bool single = sizeof(T) == 4;
  using Bits = std::conditional_t<single, __mmask16, __mmask8>;

  Bits bits;

  template <int Kind>
  static Mask compare(const Packet& a, const Packet& b) {
    if constexpr (single) {
      return {_mm512_cmp_ps_mask(a, b, Kind)};
    } else {
      return {_mm512_cmp_pd_mask(a, b, Kind)};
    }
  }
  static Mask equal(const Packet& a, const Packet& b) { return compare<_CMP_EQ_OQ>(a, b); }
  static Mask less(const Packet& a, const Packet& b) { return compare<_CMP_LT_OQ>(a, b); }
  static Mask less_equal(const Packet& a, const Packet& b) { return compare<_CMP_LE_OQ>(a, b); }

  friend Mask operator&(const Mask& a, const Mask& b) {
    return {static_cast<Bits>(a.bits & b.bits)};
  }

  /// a where the comparison holds, else b.
  Packet select(const Packet& a, const Packet& b) const {
    if constexpr (single) {
      return _mm512_mask_blend_ps(bits, b, a);
    } else {
      return _mm512_mask_blend_pd(bits, b, a);
    }
  }
};

#else

/// All bits of a lane are set where a comparison holds. Comparisons with NaN are false.
template <class T>
struct Mask {
  using Packet = typename Eigen::internal::packet_traits<T>::type;

  Packet lanes;

  static Mask equal(const Packet& a, const Packet& b) { return {Eigen::internal::pcmp_eq(a, b)}; }
  static Mask less(const Packet& a, const Packet& b) { return {Eigen::internal::pcmp_lt(a, b)}; }
  static Mask less_equal(const Packet& a, const Packet& b) {
    return {Eigen::internal::pcmp_le(a, b)};
  }

  friend Mask operator&(const Mask& a, const Mask& b) {
    return {Eigen::internal::pand(a.lanes, b.lanes)};
  }

  /// a where the comparison holds, else b.
  Packet select(const Packet& a, const Packet& b) const {
    return Eigen::internal::pselect(lanes, a, b);
  }
};

#endif

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
