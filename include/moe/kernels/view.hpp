// SPDX-License-Identifier: Apache-2.0
// What a product reads: a matrix in memory, whatever its strides.
#pragma once

#include <type_traits>

#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// A read-only matrix with a stride in both directions, in elements; null if it may have none.
template <class T>
struct View {
  const T* data;
  Index rows, cols, row_stride, col_stride;

  View transpose() const { return {data, cols, rows, col_stride, row_stride}; }
  View block(Index row, Index col, Index num_rows, Index num_cols) const {
    const Index offset = row * row_stride + col * col_stride;
    return {data == nullptr ? data : data + offset, num_rows, num_cols, row_stride, col_stride};
  }
};

/// What a product writes. A block is of this type, too, but says nothing of C where C is deduced.
template <class C>
using Into = std::type_identity_t<MatrixRef<C>>;

/// A view of a row-major matrix or block in memory.
template <class M>
View<typename M::Scalar> view(const M& m) {
  return {m.data(), m.rows(), m.cols(), m.outerStride(), 1};
}

/// Copies a matrix with contiguous rows, rounded to To, to memory whose rows are `to_stride` apart.
template <class From, class To>
void copy_rows(View<From> from, To* to, Index to_stride) {
  for (Index row = 0; row < from.rows; ++row) {
    const From* from_row = from.data + row * from.row_stride;
    To* to_row = to + row * to_stride;
    for_lanes<Wide<From>>(from.cols, [&](auto at) { at.store(to_row, at.load(from_row)); });
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
