// SPDX-License-Identifier: Apache-2.0
// Rows between token order and expert order. Both directions read: whoever owns the output row
// gathers what belongs to it, so nothing is ever scattered.
#pragma once

#include <algorithm>
#include <span>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// row (size) *= weight
template <class T>
void scale_row(Wide<T> weight, Index size, T* row) {
  for (Index col = 0; col < size; ++col) {
    row[col] = static_cast<T>(weight * static_cast<Wide<T>>(row[col]));
  }
}

/// y (D) = base (D, or null for zero) + the sum of weight[i] * rows.row(slot[i]) over the slots in
/// their order; weight may be null for ones. A dropped slot adds nothing. The sum is made first,
/// then the base is added, all in Wide<T>.
template <class T>
void combine_row(const Matrix<T>& rows, std::span<const Index> slot, const Wide<T>* weight,
                 const T* base, T* y) {
  constexpr Index block = 64;
  for (Index col = 0; col < rows.cols(); col += block) {
    const Index size = std::min(block, rows.cols() - col);
    Wide<T> sum[block];
    std::fill(sum, sum + size, Wide<T>(0));
    for (std::size_t i = 0; i < slot.size(); ++i) {
      if (slot[i] == dropped) {
        continue;
      }
      const T* row = &rows.coeffRef(slot[i], col);
      for (Index j = 0; j < size; ++j) {
        const Wide<T> value = static_cast<Wide<T>>(row[j]);
        sum[j] += weight == nullptr ? value : weight[i] * value;
      }
    }
    for (Index j = 0; j < size; ++j) {
      y[col + j] =
          static_cast<T>(base == nullptr ? sum[j] : static_cast<Wide<T>>(base[col + j]) + sum[j]);
    }
  }
}

/// The sum of a[i] * b[i], in order.
template <class T>
Wide<T> dot(const T* a, const T* b, Index size) {
  Wide<T> sum(0);
  for (Index i = 0; i < size; ++i) {
    sum += static_cast<Wide<T>>(a[i]) * static_cast<Wide<T>>(b[i]);
  }
  return sum;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
