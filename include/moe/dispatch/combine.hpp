// SPDX-License-Identifier: Apache-2.0
// From expert order back to token order: each token gathers its own rows along the plan, in the
// order of its choices, so nothing is ever scattered and one thread owns each output row.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "../detail/parallel.hpp"
#include "../kernels/row_sums.hpp"
#include "plan.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The weight of each row of a plan (S), from that of its choice (N, K). Throws
/// std::invalid_argument on another shape.
template <class T>
void gather_weights(const GrowingMatrix<T>& weight, const DispatchPlan& plan,
                    std::vector<T>& row_weight) {
  detail::check_shape(weight, plan.num_tokens(), plan.top_k(), "gather_weights: weight");
  row_weight.resize(plan.token().size());
  for (std::size_t row = 0; row < row_weight.size(); ++row) {
    row_weight[row] = weight(plan.token()[row], plan.choice()[row]);
  }
}

/// y (N, D) = base (N, D), or zero if null, + the sum of each token's rows, each times its weight
/// (S), or as it is if empty; base and sum each times its scale. rows is in expert order. base may
/// be y. Throws std::invalid_argument on other shapes.
template <Real T>
void combine_rows(ConstMatrixRef<T> rows, const DispatchPlan& plan, std::span<const Wide<T>> weight,
                  const MatrixRef<T>* base, MatrixRef<T> y, int num_threads,
                  const kernels::SumScales& scales = {}) {
  detail::check_shape(y, plan.num_tokens(), y.cols(), "combine_rows: y");
  detail::throw_unless(
      plan.num_rows() == 0 || (rows.rows() >= plan.num_rows() && rows.cols() == y.cols()),
      "combine_rows: rows is (", rows.rows(), ", ", rows.cols(), "), expected at least (",
      plan.num_rows(), ", ", y.cols(), ")");
  detail::throw_unless(weight.empty() || static_cast<Index>(weight.size()) == plan.num_rows(),
                       "combine_rows: weight has ", weight.size(), " elements, expected ",
                       plan.num_rows());
  if (base != nullptr) {
    detail::check_shape(*base, y.rows(), y.cols(), "combine_rows: base");
  }
  detail::for_rows(y.rows(), num_threads, [&](Index token) {
    kernels::combine_row<T>(rows, plan.slots_of(token), weight.empty() ? nullptr : weight.data(),
                            base == nullptr ? nullptr : &base->coeffRef(token, 0),
                            &y.coeffRef(token, 0), scales);
  });
}

/// y (N, D) = y + base, or y if null, each times its scale.
template <Real T>
void add_base(const MatrixRef<T>* base, MatrixRef<T> y, int num_threads,
              const kernels::SumScales& scales) {
  if (base == nullptr && scales.none()) {
    return;
  }
  detail::for_rows(y.rows(), num_threads, [&](Index token) {
    kernels::combine_row<T>(y, {&token, 1}, nullptr,
                            base == nullptr ? nullptr : &base->coeffRef(token, 0),
                            &y.coeffRef(token, 0), scales);
  });
}

/// The rows times a scale: themselves if it is 1, else in `memory`.
template <Real T>
ConstMatrixRef<T> scaled_rows(ConstMatrixRef<T> rows, double scale, GrowingMatrix<T>& memory,
                              int num_threads) {
  if (scale == 1.0) {
    return rows;
  }
  memory.resize(rows.rows(), rows.cols());
  detail::for_rows(rows.rows(), num_threads, [&](Index row) {
    std::copy_n(&rows.coeffRef(row, 0), rows.cols(), &memory.coeffRef(row, 0));
    kernels::scale_row(static_cast<Wide<T>>(scale), rows.cols(), &memory.coeffRef(row, 0));
  });
  return memory;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
