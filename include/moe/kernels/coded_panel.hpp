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
#pragma once

#include <concepts>
#include <cstdint>

#include "coded_rows.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

template <class F>
concept HasTable = requires {
  F::table[0];
};

/// 32 k of the 64 columns of a panel. Columns are in four groups of 16, and a group in lines of 64
/// bytes: 4 k of each column, k fastest. A byte of 4-bit codes has in its low half one of the first
/// 16 k, and in its high half the one that is 16 further on. Sizes are whole cache lines.
template <class F>
struct alignas(64) CodedBlock {
  static constexpr Index cols = 64, group = 16, groups = cols / group;
  static constexpr Index line = 64, lines = F::bits;  ///< of a group

  typename F::Scale scale[cols];
  std::uint8_t code[groups * lines * line];

  static_assert(sizeof(typename F::Scale) * cols % line == 0);

  struct Place {
    Index byte;
    int shift;
  };
  static constexpr Place place(Index col, Index k) {
    const Index stored_k = F::bits == 4 ? k % 16 : k;
    const Index in_line = col % group * 4 + stored_k % 4;
    return {(col / group * lines + stored_k / 4) * line + in_line, F::bits == 4 && k >= 16 ? 4 : 0};
  }
  unsigned code_at(Index col, Index k) const {
    const Place at = place(col, k);
    return (code[at.byte] >> at.shift) & ((1u << F::bits) - 1u);
  }
  /// Where the code was 0.
  void set_code(Index col, Index k, unsigned value) {
    const Place at = place(col, k);
    code[at.byte] = static_cast<std::uint8_t>(code[at.byte] | (value << at.shift));
  }
};

/// The bias of the numbers that sums are made of.
template <class F>
inline constexpr std::int32_t bias_of_sums = F::bits == 8 && bytes_have_signs ? 0 : F::bias;

/// sums (rows, 64), `stride` from one to the next, = or += rows (blocks each) times the panel: each
/// sum of a block is an integer, and one chain of float in the order of k adds them up.
template <class F>
void multiply_coded_plainly(Index num_rows, const CodedInput* const* rows,
                            const CodedBlock<F>* panel, Index blocks, float* sums, Index stride,
                            bool add) {
  for (Index r = 0; r < num_rows; ++r) {
    for (Index col = 0; col < CodedBlock<F>::cols; ++col) {
      float sum = add ? sums[r * stride + col] : 0.0f;
      for (Index b = 0; b < blocks; ++b) {
        std::int32_t dot = 0;
        for (Index k = 0; k < block_size; ++k) {
          dot += (F::number(panel[b].code_at(col, k)) - F::bias) * rows[r][b].code[k];
        }
        const float scale = F::scale_of(panel[b].scale[col]) * (rows[r][b].scale * F::unit);
        sum = multiply_add(static_cast<float>(dot), scale, sum);
      }
      sums[r * stride + col] = sum;
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
