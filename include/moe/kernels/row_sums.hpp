// SPDX-License-Identifier: Apache-2.0
// Sums of whole rows: how slots come together in the row of a token, and gradients in that of a
// bias. Whoever owns the row gathers what belongs to it, so nothing is ever scattered.
#pragma once

#include <algorithm>
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

/// y (D) = base.first + base.second + the sum of weight[k] * rows.row(chosen[k]) in their order,
/// without those that are `none`; the scales of the base are not read. Like combine_row for rows
/// that lie far apart: each is read from its begin to its end.
template <class T, class Row, class Out>
void mix_rows(const ConstMatrixRef<T>& rows, std::span<const Row> chosen, const Wide<T>* weight,
              const BaseRows<Out>& base, Out* y) {
  using W = Wide<T>;
  constexpr Index block = 512;
  W sum[block];
  for (Index col = 0; col < rows.cols(); col += block) {
    const Index size = (std::min)(block, rows.cols() - col);
    std::fill_n(sum, size, W(0));
    for (std::size_t k = 0; k < chosen.size(); ++k) {
      if (chosen[k] == none) {
        continue;
      }
      const T* const row = &rows.coeffRef(chosen[k], col);
      for_lanes<W>(size, [&](auto at) {
        at.store(sum, madd(LanesOr<W>(weight[k]), at.load(row), at.load(sum)));
      });
    }
    for_lanes<W>(size, [&](auto at) {
      auto all = at.load(sum);
      if (base.second != nullptr) {
        all = all + at.load(base.second + col);
      }
      at.store(y + col, base.first == nullptr ? all : at.load(base.first + col) + all);
    });
  }
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
