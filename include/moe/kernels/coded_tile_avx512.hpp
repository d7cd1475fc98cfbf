// SPDX-License-Identifier: Apache-2.0
// The register tile for weights in integers with registers of 64 bytes: by their dot product
// (AVX-512 VNNI), or without it by sums of two products: of 4 bits in 16, of 8 bits in 32.
#pragma once

#include "coded_steps.hpp"

#ifdef MOE_BYTE_DOTS_OF_64
#include <immintrin.h>

#include "coded_pairs.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

// With a mask, as GCC 12 takes what those without one leave undefined for a mistake of the user's.
inline constexpr __mmask16 all_columns = 0xffff;

inline __m512 load_scales(const Eigen::half* from) {
  return _mm512_maskz_cvtph_ps(all_columns,
                               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
/// 2^(e - 127): 0 is 2^-127, and 255 NaN.
inline __m512 load_scales(const std::uint8_t* from) {
  const __m512i e = _mm512_maskz_cvtepu8_epi32(
      all_columns, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  // 0 less 1 is the largest of all.
  const __mmask16 special =
      _mm512_cmpge_epu32_mask(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), _mm512_set1_epi32(254));
  const __m512i bits = _mm512_maskz_slli_epi32(all_columns, e, 23);
  return _mm512_castsi512_ps(
      _mm512_mask_or_epi32(bits, special, bits, _mm512_set1_epi32(0x400000)));
}

/// Exactly.
inline __m512 load_scales(Multiples from) {
  const __m512i multiple = _mm512_maskz_cvtepu8_epi32(
      all_columns, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.multiple)));
  return _mm512_mul_ps(load_scales(from.of), _mm512_maskz_cvtepi32_ps(all_columns, multiple));
}

/// The numbers of 4 k of 16 columns; of 4 bits, from the low or the high half of the bytes.
template <class F>
__m512i numbers_of(const std::uint8_t* line, int half) {
  const __m512i bytes = _mm512_load_si512(line);
  if constexpr (F::bits == 8) {
    return bytes;
  } else {
    const __m512i codes =
        _mm512_and_si512(half == 0 ? bytes : _mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
    if constexpr (HasTable<F>) {
      const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(F::table));
      return _mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(all_columns, table), codes);
    } else {
      return codes;
    }
  }
}

#ifndef MOE_BYTE_DOTS_IN_HALVES
/// sum + products of bytes of w without a sign and of x with one, four for each 32 bits.
inline __m512i add_products(__m512i sum, __m512i w, __m512i x) {
  return _mm512_dpbusd_epi32(sum, w, x);
}
inline __m512i whole_sum(__m512i sum) { return sum; }
#else
/// Of 16 bits, as in coded_tile_avx2.hpp.
inline __m512i add_products(__m512i sum, __m512i w, __m512i x) {
  return in_order(_mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x)));
}
inline __m512i whole_sum(__m512i sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
#endif

/// The sums of products with 32 k of Groups times 16 columns, for Rows rows.
template <int Rows, int Groups>
using BlockSums = __m512i[Rows][Groups];

/// dot += block `b` of the rows times the lines of the first of the groups.
template <class F, int Rows, int Groups>
EIGEN_ALWAYS_INLINE void add_bytes(const CodedInput* const* row, Index b, const std::uint8_t* lines,
                                   BlockSums<Rows, Groups>& dot) {
  using Block = CodedBlock<F>;
  MOE_UNROLL_LOOP for (int i = 0; i < 8; ++i) {  // 4 k each
    __m512i w[Groups];
    MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
      w[g] = numbers_of<F>(lines + (g * Block::lines + i % Block::lines) * Block::line, i / 4);
    }
    MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
      const __m512i x = _mm512_set1_epi32(four_codes(row[r][b].code + Index{4} * i));
      MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
        dot[r][g] = add_products(dot[r][g], w[g], x);
      }
    }
  }
}

#ifdef MOE_BYTE_DOTS_IN_HALVES
/// The same with weights of 8 bits, as whole sums: two products of bytes do not fit 16 bits.
template <class F, int Rows, int Groups>
EIGEN_ALWAYS_INLINE void add_pairs(const CodePairs<Rows>& x, const std::uint8_t* lines,
                                   BlockSums<Rows, Groups>& dot) {
  using Block = CodedBlock<F>;
  MOE_KEEP_LOOP for (Index i = 0; i < Block::lines; ++i) {  // 4 k each
    MOE_UNROLL_LOOP for (int half = 0; half < 2; ++half) {
      __m512i w[Groups];
      MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
        const __m512i bytes = _mm512_load_si512(lines + (g * Block::lines + i) * Block::line);
        w[g] = half == 0 ? _mm512_and_si512(bytes, _mm512_set1_epi16(255))
                         : _mm512_srli_epi16(bytes, 8);
      }
      MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
        const __m512i pair = _mm512_set1_epi32(x.pair[r][half][i]);
        MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
          dot[r][g] = in_order(_mm512_add_epi32(dot[r][g], _mm512_madd_epi16(w[g], pair)));
        }
      }
    }
  }
}
#endif

/// dot = block `b` of the rows times the lines of the first of the groups.
template <class F, int Rows, int Groups>
EIGEN_ALWAYS_INLINE void sum_block(const CodedInput* const* row, Index b, const std::uint8_t* lines,
                                   BlockSums<Rows, Groups>& dot) {
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
      dot[r][g] = _mm512_set1_epi32(first_sum<F>(row[r][b]));
    }
  }
#ifdef MOE_BYTE_DOTS_IN_HALVES
  if constexpr (F::bits == 8) {
    const CodePairs<Rows> x(row, b);
    return add_pairs<F, Rows, Groups>(x, lines, dot);
  }
#endif
  add_bytes<F, Rows, Groups>(row, b, lines, dot);
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) { dot[r][g] = whole_sum(dot[r][g]); }
  }
}

/// Sums of float stay in registers from the first block to the last, so a tile of many rows takes
/// the groups of columns two by two.
template <class F, int Rows, int Groups>
EIGEN_DONT_INLINE void multiply_coded_groups(const CodedInput* const* rows,
                                             const CodedBlock<F>* panel, Index blocks,
                                             Sums<CodedInput> sums, Index first, Ahead ahead) {
  using Block = CodedBlock<F>;
  BlockFetch<F, Rows> fetch(ahead);
  const CodedInput* row[Rows];
  __m512 total[Rows][Groups];
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    row[r] = rows[r];
    MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
      total[r][g] = sums.update == Update::add
                        ? _mm512_loadu_ps(sums.data + r * sums.stride + (first + g) * Block::group)
                        : _mm512_setzero_ps();
    }
  }
  for (Index b = 0; b < blocks; ++b) {
    fetch(panel, b);
    const auto& block = block_at(panel, b);
    BlockSums<Rows, Groups> dot;
    sum_block<F, Rows, Groups>(row, b, block.code + first * Block::lines * Block::line, dot);
    MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
      const __m512 scale = load_scales(block.scale + (first + g) * Block::group);
      MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(row[r][b].scale * F::unit));
        total[r][g] =
            _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(all_columns, dot[r][g]), both, total[r][g]);
      }
      if constexpr (HasMinima<F>) {
        const __m512 minimum = load_scales(block.minimum + (first + g) * Block::group);
        MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
          total[r][g] = _mm512_fnmadd_ps(minimum, _mm512_set1_ps(row[r][b].sum()), total[r][g]);
        }
      }
    }
  }
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL_LOOP for (int g = 0; g < Groups; ++g) {
      _mm512_storeu_ps(sums.data + r * sums.stride + (first + g) * Block::group, total[r][g]);
    }
  }
}

template <class F, int Rows>
void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel, Index blocks,
                    Sums<CodedInput> sums, Ahead ahead) {
  constexpr int at_once = Rows <= 3 ? 4 : 2;
  for (Index first = 0; first < CodedBlock<F>::groups; first += at_once) {
    multiply_coded_groups<F, Rows, at_once>(rows, panel, blocks, sums, first, ahead);
    ahead.lines = 0;
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
#endif
