// SPDX-License-Identifier: Apache-2.0
// The square root of lanes, to the nearest as that of a scalar. Eigen's own is an estimate in
// float, and the compiler vectorises no loop of std::sqrt, which may set errno.
#pragma once

#include <cmath>

#include "lanes.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

void root_of();  // declared, so that the name is there without any of the following

#if defined(EIGEN_VECTORIZE_AVX512)
// With a mask, as GCC 12 takes what those without one leave undefined for a mistake of the user's.
inline __m512 root_of(__m512 packet) { return _mm512_maskz_sqrt_ps(0xffff, packet); }
inline __m512d root_of(__m512d packet) { return _mm512_maskz_sqrt_pd(0xff, packet); }
#elif defined(EIGEN_VECTORIZE_AVX)
inline __m256 root_of(__m256 packet) { return _mm256_sqrt_ps(packet); }
inline __m256d root_of(__m256d packet) { return _mm256_sqrt_pd(packet); }
#elif defined(EIGEN_VECTORIZE_SSE)
inline __m128 root_of(__m128 packet) { return _mm_sqrt_ps(packet); }
inline __m128d root_of(__m128d packet) { return _mm_sqrt_pd(packet); }
#elif defined(EIGEN_VECTORIZE_NEON) && defined(__aarch64__)
inline float32x4_t root_of(float32x4_t packet) { return vsqrtq_f32(packet); }
inline float64x2_t root_of(float64x2_t packet) { return vsqrtq_f64(packet); }
#endif

template <class T>
Lanes<T> square_root(const Lanes<T>& value) {
  if constexpr (requires { root_of(value.packet); } && Lanes<T>::size > 1) {
    return Lanes<T>::of(root_of(value.packet));
  } else {
    T each[Lanes<T>::size];
    value.store(each);
    for (T& one : each) {
      one = std::sqrt(one);
    }
    return Lanes<T>::load(each);
  }
}
template <class T>
requires(!Vectorised<T>) T square_root(const T& value) {
  using std::sqrt;
  return sqrt(value);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
