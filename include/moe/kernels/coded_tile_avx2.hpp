// SPDX-License-Identifier: Apache-2.0
// The register tile for weights in integers with registers of 32 bytes: by their dot product
// (AVX-VNNI), or without it by sums of two products: of 4 bits in 16, of 8 bits in 32.
#pragma once

#include "coded_steps.hpp"

#ifdef MOE_BYTE_DOTS_OF_32
#include <immintrin.h>

#include "coded_pairs.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

inline __m256 load_scales(const Eigen::half* from) { return load_step<__m256>(from); }
/// 2^(e - 127): 0 is 2^-127, and 255 NaN.
inline __m256 load_scales(const std::uint8_t* from) {
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  const __m256i special = _mm256_or_si256(_mm256_cmpeq_epi32(e, _mm256_setzero_si256()),
                                          _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255)));
  return _mm256_castsi256_ps(_mm256_or_si256(
      _mm256_slli_epi32(e, 23), _mm256_and_si256(special, _mm256_set1_epi32(0x400000))));
}

/// Exactly.
inline __m256 load_scales(Multiples from) {
  const __m256i multiple =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from.multiple)));
  return _mm256_mul_ps(load_scales(from.of), _mm256_cvtepi32_ps(multiple));
}

/// Numbers of 4 k of 8 columns, from the low or the high halves of the bytes.
template <class F>
__m256i numbers_of(__m256i bytes, int half) {
  const __m256i codes =
      _mm256_and_si256(half == 0 ? bytes : _mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
  if constexpr (HasTable<F>) {
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(F::table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
  } else {
    return codes;
  }
}

#ifndef MOE_BYTE_DOTS_IN_HALVES
/// sum + products of bytes of w without a sign and of x with one, four for each 32 bits.
inline __m256i add_products(__m256i sum, __m256i w, __m256i x) {
  return _mm256_dpbusd_avx_epi32(sum, w, x);
}
inline __m256i whole_sum(__m256i sum) { return sum; }
#else
/// Of 16 bits: a product of two bytes and its neighbour's fit, and so does what 16 k add up to,
/// less their bias, whatever the sum of some of them is: it wraps round.
inline __m256i add_products(__m256i sum, __m256i w, __m256i x) {
  return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)));
}
inline __m256i whole_sum(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
#endif

/// The scales of 8 columns of a block, and their minima if there are any.
template <class F>
struct ColumnScales {
  __m256 scale, minimum;

  ColumnScales(const BlockOf32<F>& block, Index col)
      : scale(load_scales(block.scale + col)), minimum(_mm256_setzero_ps()) {
    if constexpr (HasMinima<F>) {
      minimum = load_scales(block.minimum + col);
    }
  }
};

/// to += the sums of a block for 8 columns, times their scales.
template <class F>
void finish_block(__m256i dot, const ColumnScales<F>& of, const CodedInput& x, float* to) {
  const __m256 both = _mm256_mul_ps(of.scale, _mm256_set1_ps(x.scale * F::unit));
  __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, _mm256_loadu_ps(to));
  if constexpr (HasMinima<F>) {
    sum = _mm256_fnmadd_ps(of.minimum, _mm256_set1_ps(x.sum()), sum);
  }
  _mm256_storeu_ps(to, sum);
}

/// sums += a block of 16 columns from `col` on.
template <class F, int Rows>
EIGEN_ALWAYS_INLINE void multiply_block_of_16(const CodedInput* const* row,
                                              const BlockOf32<F>& block, Index b, Index col,
                                              float* sums, Index stride) {
  using Block = CodedBlock<F>;
  __m256i dot[Rows][2];
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    dot[r][0] = dot[r][1] = _mm256_set1_epi32(first_sum<F>(row[r][b]));
  }
  const std::uint8_t* lines = block.code + col / Block::group * Block::lines * Block::line;
  MOE_KEEP_LOOP for (Index i = 0; i < Block::lines; ++i) {
    const auto* line = reinterpret_cast<const __m256i*>(lines + i * Block::line);
    const __m256i first = _mm256_load_si256(line), second = _mm256_load_si256(line + 1);
    const auto add_lines = [&](__m256i w0, __m256i w1, Index k) {
      MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
        const __m256i x = _mm256_set1_epi32(four_codes(row[r][b].code + k));
        dot[r][0] = add_products(dot[r][0], w0, x);
        dot[r][1] = add_products(dot[r][1], w1, x);
      }
    };
    if constexpr (F::bits == 8) {
      add_lines(first, second, 4 * i);
    } else {
      add_lines(numbers_of<F>(first, 0), numbers_of<F>(second, 0), 4 * i);
      add_lines(numbers_of<F>(first, 1), numbers_of<F>(second, 1), 16 + 4 * i);
    }
  }
  const ColumnScales<F> scale0(block, col), scale1(block, col + 8);
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    float* to = sums + r * stride + col;
    finish_block(whole_sum(dot[r][0]), scale0, row[r][b], to);
    finish_block(whole_sum(dot[r][1]), scale1, row[r][b], to + 8);
  }
}

#ifdef MOE_BYTE_DOTS_IN_HALVES
/// sums += a block of 16 columns of 8 bits: two products of bytes do not fit 16 bits.
template <class F, int Rows>
EIGEN_ALWAYS_INLINE void multiply_pairs_of_16(const CodedInput* const* row,
                                              const CodePairs<Rows>& x, const CodedBlock<F>& block,
                                              Index b, Index col, float* sums, Index stride) {
  using Block = CodedBlock<F>;
  __m256i dot[Rows][2];
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    dot[r][0] = dot[r][1] = _mm256_set1_epi32(row[r][b].correction);
  }
  const std::uint8_t* lines = block.code + col / Block::group * Block::lines * Block::line;
  const auto add_lines = [&](__m256i w0, __m256i w1, int half, Index i) {
    MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
      const __m256i pair = _mm256_set1_epi32(x.pair[r][half][i]);
      dot[r][0] = in_order(_mm256_add_epi32(dot[r][0], _mm256_madd_epi16(w0, pair)));
      dot[r][1] = in_order(_mm256_add_epi32(dot[r][1], _mm256_madd_epi16(w1, pair)));
    }
  };
  MOE_KEEP_LOOP for (Index i = 0; i < Block::lines; ++i) {
    const auto* line = reinterpret_cast<const __m256i*>(lines + i * Block::line);
    const __m256i first = _mm256_load_si256(line), second = _mm256_load_si256(line + 1);
    const __m256i low = _mm256_set1_epi16(255);
    add_lines(_mm256_and_si256(first, low), _mm256_and_si256(second, low), 0, i);
    add_lines(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(second, 8), 1, i);
  }
  const ColumnScales<F> scale0(block, col), scale1(block, col + 8);
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    float* to = sums + r * stride + col;
    finish_block(dot[r][0], scale0, row[r][b], to);
    finish_block(dot[r][1], scale1, row[r][b], to + 8);
  }
}
#endif

/// One block after the other in the order of memory, all of its columns; sums are in the caches.
template <class F, int Rows>
EIGEN_DONT_INLINE void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel,
                                      Index blocks, Sums<CodedInput> sums, Ahead ahead) {
  BlockFetch<F, Rows> fetch(ahead);
  const CodedInput* row[Rows];
  MOE_UNROLL_LOOP for (int r = 0; r < Rows; ++r) {
    row[r] = rows[r];
    for (Index col = 0; sums.update == Update::assign && col < CodedBlock<F>::cols; col += 8) {
      _mm256_storeu_ps(sums.data + r * sums.stride + col, _mm256_setzero_ps());
    }
  }
  for (Index b = 0; b < blocks; ++b) {
    fetch(panel, b);
#ifdef MOE_BYTE_DOTS_IN_HALVES
    if constexpr (F::bits == 8) {
      const CodePairs<Rows> x(row, b);
      for (Index col = 0; col < CodedBlock<F>::cols; col += 16) {
        multiply_pairs_of_16<F, Rows>(row, x, panel[b], b, col, sums.data, sums.stride);
      }
      continue;
    }
#endif
    for (Index col = 0; col < CodedBlock<F>::cols; col += 16) {
      multiply_block_of_16<F, Rows>(row, block_at(panel, b), b, col, sums.data, sums.stride);
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
#endif
