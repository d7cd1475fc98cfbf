// SPDX-License-Identifier: Apache-2.0
// Floats of 8 bits to those that a tile multiplies, exactly: denormals are numbers, and NaN stays
// NaN. As fast as a panel is read from memory, where the instruction set allows.
#pragma once

#include <array>

#include "bfloat16.hpp"
#include "eight_bit_floats.hpp"
#include "register_tile.hpp"

#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#define MOE_TABLES_OF_128_BYTES
#endif

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// to (size) = the values of the codes.
template <class To>
void decode_e4m3_plainly(const std::uint8_t* codes, Index size, To* to) {
  for (Index i = 0; i < size; ++i) {
    to[i] = convert<To>(e4m3{codes[i]});
  }
}

#ifdef MOE_TABLES_OF_128_BYTES

/// The low or the high bytes of the bfloat16 of all codes without a sign.
constexpr std::array<std::uint8_t, 128> bytes_of_bfloat16(int shift) {
  std::array<std::uint8_t, 128> bytes{};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned exponent = code >> 3, fraction = code & 7u;
    if (exponent == 0 && fraction != 0) {  // a multiple of 2^-9
      for (exponent = 1; fraction < 8; fraction *= 2) {
        --exponent;  // may wrap round, and comes back with the bias
      }
      fraction &= 7u;
    }
    const unsigned number = (exponent + 120u) << 7 | fraction << 4;
    const unsigned value = code == 0 ? 0u : code == 127 ? 0x7fc0u : number;
    bytes[code] = static_cast<std::uint8_t>(value >> shift);
  }
  return bytes;
}

/// 64 codes at once; those a page ahead are asked for.
inline void decode_e4m3(const std::uint8_t* codes, Index size, bf16* to) {
  alignas(64) static constexpr auto low_bytes = bytes_of_bfloat16(0),
                                    high_bytes = bytes_of_bfloat16(8);
  const __m512i low0 = _mm512_load_si512(low_bytes.data()),
                low1 = _mm512_load_si512(low_bytes.data() + 64),
                high0 = _mm512_load_si512(high_bytes.data()),
                high1 = _mm512_load_si512(high_bytes.data() + 64);
  // Bytes are paired in each quarter of a register: the one with the order that this gives.
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  const __m512i sign = _mm512_set1_epi8(-128);
  constexpr __mmask8 every = 0xff;
  Index i = 0;
  for (; i + 64 <= size; i += 64) {
    prefetch(codes + i + 4096);
    const __m512i code =
        _mm512_maskz_permutexvar_epi64(every, order, _mm512_loadu_si512(codes + i));
    const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, code, high1);
    const __m512i high = _mm512_or_si512(magnitude, _mm512_and_si512(code, sign));
    _mm512_storeu_si512(to + i, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + i + 32, _mm512_unpackhi_epi8(low, high));
  }
  decode_e4m3_plainly(codes + i, size - i, to + i);
}

#else

inline void decode_e4m3(const std::uint8_t* codes, Index size, bf16* to) {
  decode_e4m3_plainly(codes, size, to);
}

#endif

#if defined(EIGEN_VECTORIZE_AVX2) && defined(__F16C__)

/// 16 codes at once, read as halves, which have an exponent with a bias of 15 for 7; those a page
/// ahead are asked for.
inline void decode_e4m3(const std::uint8_t* codes, Index size, float* to) {
  const __m256i no_bit_14 = _mm256_set1_epi16(static_cast<short>(0xbfff)),
                sign = _mm256_set1_epi16(static_cast<short>(0x8000)),
                nan = _mm256_set1_epi16(static_cast<short>(0xbf80));
  const __m256 bias = _mm256_set1_ps(256.0f);
  Index i = 0;
  for (; i + 16 <= size; i += 16) {
    if (i % 64 == 0) {
      prefetch(codes + i + 4096);
    }
    const __m256i code =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), no_bit_14);
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_or_si256(half, sign), nan);
    const __m256i value = _mm256_or_si256(half, is_nan);
    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(value)), bias));
    _mm256_storeu_ps(to + i + 8,
                     _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(value, 1)), bias));
  }
  decode_e4m3_plainly(codes + i, size - i, to + i);
}

#else

inline void decode_e4m3(const std::uint8_t* codes, Index size, float* to) {
  decode_e4m3_plainly(codes, size, to);
}

#endif

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels

#undef MOE_TABLES_OF_128_BYTES
