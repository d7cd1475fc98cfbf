// SPDX-License-Identifier: Apache-2.0
// Rows that are no tokens, for routers that know nothing of them: what the layer takes back of
// their tables, and keeps from their backward.
#pragma once

#include <algorithm>

#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// Padding is given to no expert, and has no score. A tensor with other rows than tokens stays as
/// it is: whoever reads it refuses it.
template <Real T>
void clear_padding(RoutingTable<T>& table) {
  for (Index token = 0; token < table.num_tokens(); ++token) {
    if (!table.is_padding(token)) {
      continue;
    }
    table.expert.row(token).setConstant(none);
    for (GrowingMatrix<T>* tensor : {&table.weight, &table.probs}) {
      if (tensor->rows() == table.num_tokens()) {
        tensor->row(token).setZero();
      }
    }
  }
}

/// Rows of padding become zeros.
template <Real T>
void clear_rows(MatrixRef<T> rows, const std::vector<std::uint8_t>& padding) {
  for (std::size_t row = 0; row < padding.size(); ++row) {
    if (padding[row] != 0) {
      rows.row(static_cast<Index>(row)).setZero();
    }
  }
}

/// Rows with zeros for padding: themselves where there is none, else a copy in `memory`.
template <Real T>
ConstMatrixRef<T> zero_padding(const ConstMatrixRef<T>& rows,
                               const std::vector<std::uint8_t>& padding, GrowingMatrix<T>& memory,
                               int num_threads) {
  if (std::ranges::all_of(padding, [](std::uint8_t mark) { return mark == 0; })) {
    return rows;
  }
  memory.resize(rows.rows(), rows.cols());
  for_rows(rows.rows(), num_threads, [&](Index row) {
    T* to = &memory.coeffRef(row, 0);
    if (padding[static_cast<std::size_t>(row)] != 0) {
      std::fill_n(to, rows.cols(), T(0));
    } else {
      std::copy_n(&rows.coeffRef(row, 0), rows.cols(), to);
    }
  });
  return memory;
}

/// zero_padding of x (N, D). Padding has no gradient after it.
template <Real T>
ConstMatrixRef<T> without_padding(const ConstMatrixRef<T>& x, const RoutingTable<Wide<T>>& table,
                                  RoutingGradient<Wide<T>>& gradient, GrowingMatrix<T>& memory,
                                  int num_threads) {
  for (Index token = 0; token < static_cast<Index>(table.padding.size()); ++token) {
    if (table.is_padding(token)) {
      gradient.clear(token);
    }
  }
  return zero_padding<T>(x, table.padding, memory, num_threads);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
