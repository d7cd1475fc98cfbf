// SPDX-License-Identifier: Apache-2.0
// Rows from token order to expert order, for experts that want theirs side by side.
#pragma once

#include <algorithm>

#include "../detail/parallel.hpp"
#include "../detail/reserve.hpp"
#include "../growing_matrix.hpp"
#include "../kernels/row_sums.hpp"
#include "../row_groups.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The rows (S, D) that the input asks for, in expert order and with their weights: x itself where
/// that is what it holds, and `memory` has no rows then, else copied to `memory`, which only grows.
/// Checks nothing: a set does so before (check_set_call).
template <Real T>
ConstMatrixRef<T> gather_rows(const ExpertInput<T>& input, GrowingMatrix<T>& memory, int threads) {
  const Index num_rows = input.groups.num_rows(), width = input.x.cols();
  if (input.in_order()) {
    memory.resize(0, width);
    return input.x.topRows(num_rows);
  }
  memory.resize(num_rows, detail::spread_width<T>(width));
  detail::for_rows(num_rows, threads, [&](Index row) {
    T* to = &memory.coeffRef(row, 0);
    std::copy_n(&input.x.coeffRef(input.groups.token_of(row), 0), width, to);
    if (!input.weight.empty()) {
      kernels::scale_row(input.weight[static_cast<std::size_t>(row)], width, to);
    }
  });
  return memory.leftCols(width);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
