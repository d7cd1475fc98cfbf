// SPDX-License-Identifier: Apache-2.0
// What the tiles of coded_tile_avx2.hpp and coded_tile_avx512.hpp share where there is no dot
// product of bytes (VNNI), and sums of two products stand in its place.
#pragma once

#include "coded_steps.hpp"

#ifdef MOE_BYTE_DOTS_IN_HALVES
#include <immintrin.h>

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// The same sum, which no compiler sees through: GCC would make all products of a line first, to
/// add them up in another order, and spill.
template <class Register>
Register in_order(Register sum) {
#ifdef __GNUC__  // and Clang
#ifdef __AVX512F__
  asm("" : "+v"(sum));
#else
  asm("" : "+x"(sum));
#endif
#endif
  return sum;
}

/// Codes of rows in 16 bits, to meet weights of 8 bits, as two products of bytes do not fit: of
/// each four k the first and the third in 32 bits, and then the other two.
template <int Rows>
struct CodePairs {
  alignas(32) std::int32_t pair[Rows][2][block_size / 4];

  CodePairs(const CodedInput* const* row, Index b) {
    MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
      const auto* code = reinterpret_cast<const __m256i*>(row[r][b].code);
      const __m256i fours = _mm256_loadu_si256(code);
      auto* to = reinterpret_cast<__m256i*>(pair[r]);
      _mm256_store_si256(to, _mm256_srai_epi16(_mm256_slli_epi16(fours, 8), 8));
      _mm256_store_si256(to + 1, _mm256_srai_epi16(fours, 8));
    }
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
#endif
