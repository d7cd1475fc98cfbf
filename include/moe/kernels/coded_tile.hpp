// SPDX-License-Identifier: Apache-2.0
// The register tile for weights in integers: what multiply_coded_plainly() computes, to the bit, by
// the dot product of bytes that the instruction set has.
#pragma once

#include "coded_tile_avx2.hpp"
#include "coded_tile_avx512.hpp"
#include "coded_tile_neon.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

#if !defined(MOE_BYTE_DOTS_OF_64) && !defined(MOE_BYTE_DOTS_OF_32) && \
    !defined(MOE_BYTE_DOTS_WITH_SIGN)
template <class F, int Rows>
void multiply_coded(const CodedInput* const* rows, const CodedBlock<F>* panel, Index blocks,
                    Sums<CodedInput> sums, Ahead /*ahead*/) {
  multiply_coded_plainly(Rows, rows, panel, blocks, sums.data, sums.stride,
                         sums.update == Update::add);
}
#endif

/// As the tile of floats.
template <class F>
void multiply_tile(Index num_rows, RowPointers<CodedInput> a,
                   Panel<CodedInput, CodedBlock<F>> panel, Index depth, Sums<CodedInput> c,
                   Ahead ahead) {
  with_tile_rows<RegisterTile<CodedInput, CodedBlock<F>>>(num_rows, [&](auto rows) {
    multiply_coded<F, rows()>(a.row, panel.data, depth / block_size, c, ahead);
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
