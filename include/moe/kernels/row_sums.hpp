// SPDX-License-Identifier: Apache-2.0
// Sums of whole rows: how slots come together in the row of a token, and gradients in that of a
// bias. Whoever owns the row gathers what belongs to it, so nothing is ever scattered.
#pragma once

#include <span>
#include <type_traits>

#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// row (size) *= weight
template <class T>
void scale_row(Wide<T> weight, Index size, T* row) {
  using W = Wide<T>;
  for_lanes<W>(size, [&](auto at) { at.store(row, LanesOr<W>(weight) * at.load(row)); });
}

/// What a sum of rows and its base are multiplied with.
struct SumScales {
  double sum = 1.0, base = 1.0;

  bool none() const { return sum == 1.0 && base == 1.0; }
};

/// y (D) = base (D, or null for zero) + the sum of weight[slot] * rows.row(slot) over the slots in
/// their order; weight, one for each row, may be null for ones. The sum is made first, then the
/// base is added, each times its scale, all in Wide<T>.
template <class T>
void combine_row(const ConstMatrixRef<T>& rows, std::span<const Index> slots, const Wide<T>* weight,
                 const T* base, T* y, const SumScales& scales = {}) {
  using W = Wide<T>;
  const bool scaled = !scales.none();
  for_lanes<W>(rows.cols(), [&](auto at) {
    LanesOr<W> sum(W(0));
    for (const Index slot : slots) {
      const auto value = at.load(&rows.coeffRef(slot, 0));
      sum = weight == nullptr ? sum + value : madd(LanesOr<W>(weight[slot]), value, sum);
    }
    if (!scaled) {
      at.store(y, base == nullptr ? sum : at.load(base) + sum);
    } else if (base == nullptr) {
      at.store(y, LanesOr<W>(scales.sum) * sum);
    } else {
      at.store(y, madd(LanesOr<W>(scales.sum), sum, LanesOr<W>(scales.base) * at.load(base)));
    }
  });
}

/// out (size) += the sum of weight[i] * rows.row(i) over the rows (n, size) in their order; weight
/// (n) may be null for ones. It is rounded to Out once.
template <class T, class Weight = T, class Out>
void add_rows(ConstMatrixRef<T> rows, const std::type_identity_t<Weight>* weight, Out* out) {
  using W = Wide<T>;
  for_lanes<W>(rows.cols(), [&](auto at) {
    auto sum = at.load(out);
    for (Index i = 0; i < rows.rows(); ++i) {
      const auto value = at.load(&rows.coeffRef(i, 0));
      sum =
          weight == nullptr ? sum + value : madd(LanesOr<W>(static_cast<W>(weight[i])), value, sum);
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
