// SPDX-License-Identifier: Apache-2.0
// Half as a product takes it: widened to float where it is read. Everything else is float's.
//
// Eigen 3.4 means to use the instruction for it, but with GCC does not.
#pragma once

#include <type_traits>

#include "../types.hpp"
#include "convert.hpp"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// What a product packs numbers of type T as.
template <class T>
using PackedAs = std::conditional_t<std::is_same_v<T, Eigen::half>, float, T>;

template <class Packet>
Packet load_step(const Eigen::half* from) {
#ifdef __AVX512F__
  if constexpr (sizeof(Packet) == 64) {
    return _mm512_maskz_cvtph_ps(0xffff,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
#endif
#ifdef __F16C__
  if constexpr (sizeof(Packet) == 32) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
#endif
  constexpr int size = Eigen::internal::unpacket_traits<Packet>::size;
  float wide[size];
  for (int i = 0; i < size; ++i) {
    wide[i] = convert<float>(from[i]);
  }
  return Eigen::internal::ploadu<Packet>(wide);
}

template <class Packet>
Packet broadcast_step(const Eigen::half* value) {
  return Eigen::internal::pset1<Packet>(convert<float>(*value));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
