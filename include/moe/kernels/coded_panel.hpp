// SPDX-License-Identifier: Apache-2.0
// Weights in integers of 4 or 8 bits with a scale for every 32 of them, as a panel holds them: the
// same on every instruction set, and in files of moe. And the product with rows of CodedInput in
// plain loops, which says what all others compute.
//
// A format F of such weights:
//
//   bits           of a code, 4 or 8
//   Scale          a scale as it is stored; F::scale_of(Scale) as a float, exactly
//   unit           the weight is unit * scale * (F::number(code) - bias)
//   bias           number(code) is not negative
//   number(code)   an integer, the code itself or the place in `table` (16 bytes), if F has that
//
// A format with minima has two integers up to F::most_multiple for every 32 weights, and two halves
// for every 256, which they are multiples of; its Scale is BlockScales. There
//
//   the weight is scale * number(code) - minimum
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "coded_rows.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

template <class F>
concept HasTable = requires {
  F::table[0];
};

template <class F>
concept HasMinima = requires {
  F::most_multiple;
};

/// Where the codes of 32 k of the 64 columns of a panel are. Columns are in four groups of 16, and
/// a group in lines of 64 bytes: 4 k of each column, k fastest. A byte of 4-bit codes has in its
/// low half one of the first 16 k, and in its high half the one that is 16 further on.
template <class F>
struct CodedLines {
  static constexpr Index cols = 64, group = 16, groups = cols / group;
  static constexpr Index line = 64, lines = F::bits;  ///< of a group
  static constexpr Index bytes = groups * lines * line;

  struct Place {
    Index byte;
    int shift;
  };
  static constexpr Place place(Index col, Index k) {
    const Index stored_k = F::bits == 4 ? k % 16 : k;
    const Index in_line = col % group * 4 + stored_k % 4;
    return {(col / group * lines + stored_k / 4) * line + in_line, F::bits == 4 && k >= 16 ? 4 : 0};
  }
  static unsigned code_at(const std::uint8_t* code, Index col, Index k) {
    const Place at = place(col, k);
    return (code[at.byte] >> at.shift) & ((1u << F::bits) - 1u);
  }
  /// Where the code was 0.
  static void set_code(std::uint8_t* code, Index col, Index k, unsigned value) {
    const Place at = place(col, k);
    code[at.byte] = static_cast<std::uint8_t>(code[at.byte] | (value << at.shift));
  }
};

/// `depth` k of the 64 columns of a panel. Sizes are whole cache lines.
template <class F>
struct alignas(64) CodedBlock : CodedLines<F> {
  using Lines = CodedLines<F>;
  static constexpr Index depth = block_size;

  typename F::Scale scale[Lines::cols];
  std::uint8_t code[Lines::bytes];

  static_assert(sizeof(typename F::Scale) * Lines::cols % Lines::line == 0);

  unsigned code_at(Index col, Index k) const { return Lines::code_at(code, col, k); }
  void set_code(Index col, Index k, unsigned value) { Lines::set_code(code, col, k, value); }
  void set_scale(Index col, const typename F::Scale& value) { scale[col] = value; }
  float weight(Index col, Index k) const {
    return F::scale_of(scale[col]) *
           (F::unit * static_cast<float>(F::number(code_at(col, k)) - F::bias));
  }
};

/// What 256 weights have beside their codes, in a format with minima.
struct BlockScales {
  Eigen::half scale, minimum;
  std::array<std::uint8_t, 8> scales, minima;  ///< multiples of them, for 32 weights each
};

/// Scales or minima of columns: products of a half and of a multiple are exact in float.
struct Multiples {
  const Eigen::half* of;
  const std::uint8_t* multiple;

  Multiples operator+(Index col) const { return {of + col, multiple + col}; }
  float operator[](Index col) const { return widen(of[col]) * static_cast<float>(multiple[col]); }
};

/// A block of 32 k in one of 256, with the names that a block of 32 has.
struct BlockOf256 {
  Multiples scale, minimum;
  const std::uint8_t* code;
};

template <HasMinima F>
struct alignas(64) CodedBlock<F> : CodedLines<F> {
  using Lines = CodedLines<F>;
  static constexpr Index parts = 8, depth = parts * block_size;

  struct Part {
    std::uint8_t scale[Lines::cols], minimum[Lines::cols], code[Lines::bytes];
  };
  Eigen::half scale[Lines::cols], minimum[Lines::cols];
  Part part[parts];

  static_assert(sizeof(Part) % Lines::line == 0 && sizeof(scale) % Lines::line == 0);

  unsigned code_at(Index col, Index k) const {
    return Lines::code_at(part[k / block_size].code, col, k % block_size);
  }
  void set_code(Index col, Index k, unsigned value) {
    Lines::set_code(part[k / block_size].code, col, k % block_size, value);
  }
  void set_scale(Index col, const BlockScales& value) {
    scale[col] = value.scale;
    minimum[col] = value.minimum;
    for (std::size_t i = 0; i < value.scales.size(); ++i) {
      part[i].scale[col] = value.scales[i];
      part[i].minimum[col] = value.minima[i];
    }
  }
  BlockOf256 block(Index number) const {
    const Part& at = part[number];
    return {{scale, at.scale}, {minimum, at.minimum}, at.code};
  }
  float weight(Index col, Index k) const {
    const BlockOf256 at = block(k / block_size);
    return at.scale[col] * static_cast<float>(F::number(code_at(col, k))) - at.minimum[col];
  }
};

template <class F>
using BlockOf32 = std::conditional_t<HasMinima<F>, BlockOf256, CodedBlock<F>>;

/// Block `number` of 32 k of a panel: its code, scale and, if there are any, minimum.
template <class F>
const CodedBlock<F>& block_at(const CodedBlock<F>* panel, Index number) {
  return panel[number];
}
template <HasMinima F>
BlockOf256 block_at(const CodedBlock<F>* panel, Index number) {
  return panel[number / CodedBlock<F>::parts].block(number % CodedBlock<F>::parts);
}

/// The bias of the numbers that sums are made of.
template <class F>
inline constexpr std::int32_t bias_of_sums = HasMinima<F>                       ? none_but_sum
                                             : F::bits == 8 && bytes_have_signs ? 0
                                                                                : F::bias;

/// What the sum of products with a block begins with.
template <class F>
std::int32_t first_sum(const CodedInput& x) {
  return HasMinima<F> ? 0 : x.correction;
}

/// sums (rows, 64), `stride` from one to the next, = or += rows (blocks each) times the panel: each
/// sum of a block is an integer, and one chain of float in the order of k adds them up. A minimum
/// meets the sum of the block of a row.
template <class F>
void multiply_coded_plainly(Index num_rows, const CodedInput* const* rows,
                            const CodedBlock<F>* panel, Index blocks, float* sums, Index stride,
                            bool add) {
  for (Index r = 0; r < num_rows; ++r) {
    for (Index col = 0; col < CodedBlock<F>::cols; ++col) {
      float sum = add ? sums[r * stride + col] : 0.0f;
      for (Index b = 0; b < blocks; ++b) {
        const CodedInput& x = rows[r][b];
        const auto& block = block_at(panel, b);
        std::int32_t dot = 0;
        for (Index k = 0; k < block_size; ++k) {
          const unsigned code = CodedLines<F>::code_at(block.code, col, k);
          dot += (F::number(code) - F::bias) * x.code[k];
        }
        const float scale = F::scale_of(block.scale[col]) * (x.scale * F::unit);
        sum = multiply_add(static_cast<float>(dot), scale, sum);
        if constexpr (HasMinima<F>) {
          sum = multiply_add(-block.minimum[col], x.sum(), sum);
        }
      }
      sums[r * stride + col] = sum;
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
