// SPDX-License-Identifier: Apache-2.0
// Rows between token order and expert order, along a plan. Both directions read: whoever owns the
// output row gathers what belongs to it, so nothing is ever scattered.
#pragma once

#include "../detail/parallel.hpp"
#include "../kernels/row_sums.hpp"
#include "plan.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// rows (S, D), in expert order, = the tokens x (N, D) they come from; each times its weight (N, K)
/// unless null. rows may be higher than the plan needs, and wider than x.
template <Real T>
void gather_rows(ConstMatrixRef<T> x, const DispatchPlan& plan, const Matrix<Wide<T>>* weight,
                 Matrix<T>& rows, int num_threads) {
  detail::for_blocks(plan.num_rows(), num_threads, [&](Index row) {
    const auto slot = static_cast<std::size_t>(row);
    const Index token = plan.token()[slot];
    rows.row(row).head(x.cols()) = x.row(token);
    if (weight != nullptr) {
      kernels::scale_row((*weight)(token, plan.choice()[slot]), x.cols(), &rows.coeffRef(row, 0));
    }
  });
}

/// y (N, D) = base (N, D), or zero if null, + the sum of each token's rows, choices in order, each
/// times its weight (N, K) unless null. rows is in expert order and may be higher than the plan
/// needs. base may be y.
template <Real T>
void combine_rows(const Matrix<T>& rows, const DispatchPlan& plan, const Matrix<Wide<T>>* weight,
                  const MatrixRef<T>* base, MatrixRef<T> y, int num_threads) {
  detail::for_blocks(y.rows(), num_threads, [&](Index token) {
    kernels::combine_row(
        rows, plan.slots_of(token), weight == nullptr ? nullptr : &weight->coeffRef(token, 0),
        base == nullptr ? nullptr : &base->coeffRef(token, 0), &y.coeffRef(token, 0));
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
