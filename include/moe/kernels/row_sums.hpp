// SPDX-License-Identifier: Apache-2.0
// Sums of whole rows: how slots come together in the row of a token, and gradients in that of a
// bias. Whoever owns the row gathers what belongs to it, so nothing is ever scattered.
#pragma once

#include <span>

#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// row (size) *= weight
template <class T>
void scale_row(Wide<T> weight, Index size, T* row) {
  using W = Wide<T>;
  for_lanes<W>(size, [&](auto at) { at.store(row, LanesOr<W>(weight) * at.load(row)); });
}

/// What a sum of rows and its base are multiplied with; none: both are 1.
template <class W>
struct SumScales {
  W sum = W(1), base = W(1);
  bool none = true;
};

/// The rows (D) that a sum of others is added to, null for none, and the scales of both.
template <class T>
struct BaseRows {
  const T *first, *second;
  SumScales<Wide<T>> scales;

  BaseRows(const T* row, const T* other = nullptr, const SumScales<Wide<T>>& scales_of_both = {})
      : first(row), second(other), scales(scales_of_both) {}
};

/// y (D) = base.first + base.second + the sum of weight[slot] * rows.row(slot) over the slots in
/// their order; weight, one for each row, may be null for ones. The sum is made first and added to
/// that of the base, each times its scale, all in Wide<T>, and rounded once.
template <class T>
void combine_row(const ConstMatrixRef<T>& rows, std::span<const Index> slots, const Wide<T>* weight,
                 const BaseRows<T>& base, T* y) {
  using W = Wide<T>;
  const SumScales<W> scales = base.scales;
  const bool scaled = !scales.none;
  for_lanes<W>(rows.cols(), [&](auto at) {
    LanesOr<W> sum(W(0));
    for (const Index slot : slots) {
      const auto value = at.load(&rows.coeffRef(slot, 0));
      sum = weight == nullptr ? sum + value : madd(LanesOr<W>(weight[slot]), value, sum);
    }
    if (scaled) {
      sum = LanesOr<W>(scales.sum) * sum;
    }
    if (base.first != nullptr) {
      auto under = at.load(base.first);
      if (base.second != nullptr) {
        under = under + at.load(base.second);
      }
      sum = scaled ? madd(LanesOr<W>(scales.base), under, sum) : under + sum;
    }
    at.store(y, sum);
  });
}

/// out (size) += the sum of weight[i] * rows.row(i) over the rows (n, size) in their order; weight
/// (n) may be null for ones. It is rounded to Out once.
template <class T, class Out>
void add_rows(ConstMatrixRef<T> rows, const Wide<T>* weight, Out* out) {
  using W = Wide<T>;
  for_lanes<W>(rows.cols(), [&](auto at) {
    auto sum = at.load(out);
    for (Index i = 0; i < rows.rows(); ++i) {
      const auto value = at.load(&rows.coeffRef(i, 0));
      sum = weight == nullptr ? sum + value : madd(LanesOr<W>(weight[i]), value, sum);
    }
    at.store(out, sum);
  });
}

/// The sum of a[i] * b[i]: a sum for each lane, in order, and then their sum.
template <class A, class B>
Wide<A> dot(const A* a, const B* b, Index size) {
  using W = Wide<A>;
  LanesOr<W> sums(W(0));
  for_lanes<W>(size, [&](auto at) { sums = madd(at.load(a), at.load(b), sums); });
  return sum_of(sums);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
