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

/// The weight of each row of a plan (S), from that of its choice (N, K), times a factor of at least
/// 1. Throws std::invalid_argument on another shape.
template <class T>
void gather_weights(const GrowingMatrix<T>& weight, const DispatchPlan& plan,
                    std::vector<T>& row_weight, double factor = 1.0) {
  detail::check_shape(weight, plan.num_tokens(), plan.top_k(), "gather_weights: weight");
  row_weight.resize(plan.token().size());
  for (std::size_t row = 0; row < row_weight.size(); ++row) {
    row_weight[row] = weight(plan.token()[row], plan.choice()[row]);
    if (factor > 1.0) {
      row_weight[row] *= T(factor);
    }
  }
}

/// What the rows of a token are added to: nothing, or one matrix (N, D), or the sum of two, each of
/// which may be null; and the scales of the sum of rows and of this base, the same for all tokens
/// or of each (N, 2).
template <Real T>
struct CombineBase {
  using Scales = kernels::SumScales<Wide<T>>;
  const MatrixRef<T>*first, *second;
  Scales scales;
  const GrowingMatrix<Wide<T>>* of_tokens = nullptr;

  CombineBase(const MatrixRef<T>* matrix, const MatrixRef<T>* other = nullptr,
              const Scales& scales_of_both = {})
      : first(matrix != nullptr ? matrix : other),
        second(matrix != nullptr ? other : nullptr),
        scales(scales_of_both) {}
  CombineBase(const MatrixRef<T>* matrix, const GrowingMatrix<Wide<T>>& scales_of_tokens)
      : first(matrix), second(nullptr), of_tokens(&scales_of_tokens) {}

  kernels::BaseRows<T> of(Index token) const {
    return {row_of(first, token), row_of(second, token),
            of_tokens == nullptr ? scales
                                 : Scales{(*of_tokens)(token, 0), (*of_tokens)(token, 1), false}};
  }

 private:
  static const T* row_of(const MatrixRef<T>* matrix, Index token) {
    return matrix == nullptr ? nullptr : &matrix->coeffRef(token, 0);
  }
};

/// y (N, D) = base + the sum of each token's rows, each times its weight (S), or as it is if empty;
/// in 16 bits rounded once. rows is in expert order. base may hold y. Throws std::invalid_argument
/// on other shapes.
template <Real T>
void combine_rows(ConstMatrixRef<T> rows, const DispatchPlan& plan, std::span<const Wide<T>> weight,
                  const CombineBase<T>& base, MatrixRef<T> y, int num_threads) {
  detail::check_shape(y, plan.num_tokens(), y.cols(), "combine_rows: y");
  detail::throw_unless(
      plan.num_rows() == 0 || (rows.rows() >= plan.num_rows() && rows.cols() == y.cols()),
      "combine_rows: rows is (", rows.rows(), ", ", rows.cols(), "), expected at least (",
      plan.num_rows(), ", ", y.cols(), ")");
  detail::throw_unless(weight.empty() || static_cast<Index>(weight.size()) == plan.num_rows(),
                       "combine_rows: weight has ", weight.size(), " elements, expected ",
                       plan.num_rows());
  for (const MatrixRef<T>* matrix : {base.first, base.second}) {
    if (matrix != nullptr) {
      detail::check_shape(*matrix, y.rows(), y.cols(), "combine_rows: base");
    }
  }
  detail::for_rows(y.rows(), num_threads, [&](Index token) {
    kernels::combine_row<T>(rows, plan.slots_of(token), weight.empty() ? nullptr : weight.data(),
                            base.of(token), &y.coeffRef(token, 0));
  });
}

/// y (N, D) = y + base, each times its scale; rounded once.
template <Real T>
void add_base(const CombineBase<T>& base, MatrixRef<T> y, int num_threads) {
  if (base.first == nullptr && base.scales.none) {
    return;
  }
  detail::for_rows(y.rows(), num_threads, [&](Index token) {
    kernels::combine_row<T>(y, {&token, 1}, nullptr, base.of(token), &y.coeffRef(token, 0));
  });
}

/// memory = the rows, each times scale_of(row).
template <Real T, class ScaleOf>
ConstMatrixRef<T> scaled_each(ConstMatrixRef<T> rows, ScaleOf&& scale_of, GrowingMatrix<T>& memory,
                              int num_threads) {
  memory.resize(rows.rows(), rows.cols());
  detail::for_rows(rows.rows(), num_threads, [&](Index row) {
    std::copy_n(&rows.coeffRef(row, 0), rows.cols(), &memory.coeffRef(row, 0));
    kernels::scale_row(scale_of(row), rows.cols(), &memory.coeffRef(row, 0));
  });
  return memory;
}

/// The rows times a scale: themselves if it is 1, else in `memory`.
template <Real T>
ConstMatrixRef<T> scaled_rows(ConstMatrixRef<T> rows, double scale, GrowingMatrix<T>& memory,
                              int num_threads) {
  if (detail::equals(scale, 1.0)) {
    return rows;
  }
  return scaled_each<T>(
      rows, [scale](Index) { return static_cast<Wide<T>>(scale); }, memory, num_threads);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
