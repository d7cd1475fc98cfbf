// SPDX-License-Identifier: Apache-2.0
// The register tile for weights in integers: what multiply_coded_plainly() computes, to the bit, by
// the dot product of bytes that the instruction set has.
#pragma once

#include <cstring>
#include <utility>

#include "coded_panel.hpp"
#include "half.hpp"
#include "register_tile.hpp"

#if defined(EIGEN_VECTORIZE_AVX2)
#include <immintrin.h>
#endif

namespace moe::inline MOE_INSTRUCTION_SET {

template <>
struct WideOf<kernels::CodedInput> {
  using type = float;
};

namespace kernels {

#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
inline constexpr int coded_rows = 6;
#else
inline constexpr int coded_rows = 4;
#endif

template <>
inline constexpr Index numbers_in<CodedInput> = block_size;

/// A step is a block of k.
template <class F>
struct RegisterTile<CodedInput, CodedBlock<F>> {
  using Sum = float;
  static constexpr Index cols = CodedBlock<F>::cols, step = block_size;
  static constexpr int rows = coded_rows;
  static constexpr Index depth = 262144 / Index{sizeof(CodedBlock<F>)} * step;

  static constexpr Index whole_steps(Index k) { return (k + step - 1) / step * step; }
};

#if defined(__GNUC__) && !defined(__clang__)
#define MOE_UNROLL _Pragma("GCC unroll 8")
#define MOE_NO_UNROLL _Pragma("GCC unroll 1")
#else
#define MOE_UNROLL _Pragma("unroll")
#define MOE_NO_UNROLL _Pragma("nounroll")
#endif

/// Four codes of a row, to be met by four of each column.
inline std::int32_t four_codes(const std::int8_t* code) {
  std::int32_t four;
  std::memcpy(&four, code, sizeof four);
  return four;
}

#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512VNNI__) && defined(__AVX512BW__)

// With a mask, as GCC 12 takes what those without one leave undefined for a mistake of the user's.
inline constexpr __mmask16 all = 0xffff;

inline __m512 load_scales(const Eigen::half* from) {
  return _mm512_maskz_cvtph_ps(all, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
/// 2^(e - 127): 0 is 2^-127, and 255 NaN.
inline __m512 load_scales(const std::uint8_t* from) {
  const __m512i e =
      _mm512_maskz_cvtepu8_epi32(all, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __mmask16 special = _mm512_cmpeq_epi32_mask(e, _mm512_setzero_si512()) |
                            _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
  const __m512i bits = _mm512_maskz_slli_epi32(all, e, 23);
  return _mm512_castsi512_ps(
      _mm512_mask_or_epi32(bits, special, bits, _mm512_set1_epi32(0x400000)));
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
      return _mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(all, table), codes);
    } else {
      return codes;
    }
  }
}

/// Sums of float stay in registers from the first block to the last, so a tile of many rows takes
/// the groups of columns two by two.
template <class F, int Rows, int Groups>
EIGEN_DONT_INLINE void multiply_coded_groups(const CodedInput* const* rows,
                                             const CodedBlock<F>* panel, Index blocks, float* sums,
                                             Index stride, bool add, Index first) {
  using Block = CodedBlock<F>;
  const CodedInput* row[Rows];
  __m512 total[Rows][Groups];
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    row[r] = rows[r];
    MOE_UNROLL for (int g = 0; g < Groups; ++g) {
      total[r][g] = add ? _mm512_loadu_ps(sums + r * stride + (first + g) * Block::group)
                        : _mm512_setzero_ps();
    }
  }
  for (Index b = 0; b < blocks; ++b, ++panel) {
    __m512i dot[Rows][Groups];
    MOE_UNROLL for (int r = 0; r < Rows; ++r) {
      MOE_UNROLL for (int g = 0; g < Groups; ++g) {
        dot[r][g] = _mm512_set1_epi32(row[r][b].correction);
      }
    }
    const std::uint8_t* lines = panel->code + first * Block::lines * Block::line;
    MOE_UNROLL for (int i = 0; i < 8; ++i) {  // 4 k each
      __m512i w[Groups];
      MOE_UNROLL for (int g = 0; g < Groups; ++g) {
        w[g] = numbers_of<F>(lines + (g * Block::lines + i % Block::lines) * Block::line, i / 4);
      }
      MOE_UNROLL for (int r = 0; r < Rows; ++r) {
        const __m512i x = _mm512_set1_epi32(four_codes(row[r][b].code + 4 * i));
        MOE_UNROLL for (int g = 0; g < Groups; ++g) {
          dot[r][g] = _mm512_dpbusd_epi32(dot[r][g], w[g], x);
        }
      }
    }
    MOE_UNROLL for (int g = 0; g < Groups; ++g) {
      const __m512 scale = load_scales(panel->scale + (first + g) * Block::group);
      MOE_UNROLL for (int r = 0; r < Rows; ++r) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(row[r][b].scale * F::unit));
        total[r][g] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(all, dot[r][g]), both, total[r][g]);
      }
    }
  }
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL for (int g = 0; g < Groups; ++g) {
      _mm512_storeu_ps(sums + r * stride + (first + g) * Block::group, total[r][g]);
    }
  }
}

template <class F, int Rows>
void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel, Index blocks,
                    float* sums, Index stride, bool add) {
  constexpr int at_once = Rows <= 3 ? 4 : 2;
  for (Index first = 0; first < CodedBlock<F>::groups; first += at_once) {
    multiply_coded_groups<F, Rows, at_once>(rows, panel, blocks, sums, stride, add, first);
  }
}

#elif defined(EIGEN_VECTORIZE_AVX2) && defined(__FMA__)

inline __m256 load_scales(const Eigen::half* from) { return load_step<__m256>(from); }
/// 2^(e - 127): 0 is 2^-127, and 255 NaN.
inline __m256 load_scales(const std::uint8_t* from) {
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  const __m256i special = _mm256_or_si256(_mm256_cmpeq_epi32(e, _mm256_setzero_si256()),
                                          _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255)));
  return _mm256_castsi256_ps(_mm256_or_si256(
      _mm256_slli_epi32(e, 23), _mm256_and_si256(special, _mm256_set1_epi32(0x400000))));
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

/// 8 columns, or 16 of 4 bits. A product of two bytes and its neighbour's fit 16 bits, and so does
/// what 16 k add up to, less their bias, whatever the sum of some of them is: it wraps round.
template <class F, int Rows>
EIGEN_DONT_INLINE void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel,
                                      Index blocks, float* sums, Index stride, bool add) {
  using Block = CodedBlock<F>;
  // Of 8 bits the two are the halves of the bytes, else 8 columns each.
  constexpr int at_once = F::bits == 8 ? 8 : 16;
  const __m256i ones = _mm256_set1_epi16(1);
  for (Index col = 0; col < Block::cols; col += at_once) {
    const Index group = col / Block::group;
    for (Index b = 0; b < blocks; ++b) {
      __m256i dot[Rows][2];
      MOE_UNROLL for (int r = 0; r < Rows; ++r) {
        const __m256i correction = _mm256_set1_epi32(rows[r][b].correction);
        dot[r][0] = F::bits == 8 ? _mm256_setzero_si256() : correction;
        dot[r][1] = correction;
      }
      const std::uint8_t* lines =
          panel[b].code + group * Block::lines * Block::line + col % Block::group * 4;
      // Not unrolled: GCC would make all products first, to add them up in another order, and
      // spill.
      MOE_NO_UNROLL for (Index i = 0; i < Block::lines; ++i) {
        const auto* line = reinterpret_cast<const __m256i*>(lines + i * Block::line);
        const __m256i first = _mm256_load_si256(line);
        const auto add_products = [&](__m256i w0, __m256i w1, Index k) {
          MOE_UNROLL for (int r = 0; r < Rows; ++r) {
            const __m256i x = _mm256_set1_epi32(four_codes(rows[r][b].code + k));
            dot[r][0] = _mm256_add_epi16(dot[r][0], _mm256_maddubs_epi16(w0, x));
            dot[r][1] = _mm256_add_epi16(dot[r][1], _mm256_maddubs_epi16(w1, x));
          }
        };
        if constexpr (F::bits == 8) {
          add_products(numbers_of<F>(first, 0), numbers_of<F>(first, 1), 4 * i);
        } else {
          const __m256i second = _mm256_load_si256(line + 1);
          add_products(numbers_of<F>(first, 0), numbers_of<F>(second, 0), 4 * i);
          add_products(numbers_of<F>(first, 1), numbers_of<F>(second, 1), 16 + 4 * i);
        }
      }
      const __m256 scale0 = load_scales(panel[b].scale + col);
      const __m256 scale1 = F::bits == 8 ? scale0 : load_scales(panel[b].scale + col + 8);
      MOE_UNROLL for (int r = 0; r < Rows; ++r) {
        const __m256 x_scale = _mm256_set1_ps(rows[r][b].scale * F::unit);
        const auto finish = [&](__m256i whole, __m256 w_scale, Index at) {
          float* to = sums + r * stride + at;
          const __m256 before = add || b > 0 ? _mm256_loadu_ps(to) : _mm256_setzero_ps();
          const __m256 scale = _mm256_mul_ps(w_scale, x_scale);
          _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, before));
        };
        const __m256i low = _mm256_madd_epi16(dot[r][0], ones),
                      high = _mm256_madd_epi16(dot[r][1], ones);
        if constexpr (F::bits == 8) {
          finish(_mm256_add_epi32(_mm256_slli_epi32(high, 4), low), scale0, col);
        } else {
          finish(low, scale0, col);
          finish(high, scale1, col + 8);
        }
      }
    }
  }
}

#else

template <class F, int Rows>
void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel, Index blocks,
                    float* sums, Index stride, bool add) {
  multiply_coded_plainly(Rows, rows, panel, blocks, sums, stride, add);
}

#endif
#undef MOE_UNROLL
#undef MOE_NO_UNROLL

/// As the tile of floats; what comes next is left to the machine, as a panel is read front to back.
template <class F>
void multiply_tile(Index num_rows, RowPointers<CodedInput> a,
                   Panel<CodedInput, CodedBlock<F>> panel, Index depth, Sums<CodedInput> c,
                   Ahead /*ahead*/) {
  with_tile_rows<RegisterTile<CodedInput, CodedBlock<F>>>(num_rows, [&](auto rows) {
    multiply_coded<F, rows()>(a.row, panel.data, depth / block_size, c.data, c.stride,
                              c.update == Update::add);
  });
}

}  // namespace kernels
}  // namespace moe::inline MOE_INSTRUCTION_SET
