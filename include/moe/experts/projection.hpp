// SPDX-License-Identifier: Apache-2.0
// One projection of a feed-forward with its bias, forward and back, and how several of them are
// added up in 16 bits: in float, rounded once.
#pragma once

#include <algorithm>
#include <concepts>

#include "../detail/part.hpp"
#include "../detail/reserve.hpp"
#include "../kernels/gemm.hpp"
#include "../kernels/row_sums.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// A weight (out, in) with its bias (1, out) or none, or the gradients of both; and what each of
/// the n rows multiplies the bias with, null for ones.
template <class M>
struct Projection {
  M &weight, &bias;
  const Wide<typename M::Scalar>* bias_weight = nullptr;
};

/// z (n, columns) += the bias of each row, if there is one.
template <Real T, Real C>
void add_bias(const Projection<const Matrix<T>>& to, Index begin, MatrixRef<C> z) {
  for (Index row = 0; to.bias.size() > 0 && row < z.rows(); ++row) {
    kernels::add_rows<T>(to.bias.middleCols(begin, z.cols()),
                         to.bias_weight == nullptr ? nullptr : to.bias_weight + row,
                         &z.coeffRef(row, 0));
  }
}

/// z (n, columns) = x (n, in) weight^T + the bias of each row, for the columns
/// [begin, begin + z.cols()). C is T or Wide<T>.
template <Real T, Real C>
void project(ConstMatrixRef<T> x, const Projection<const Matrix<T>>& to, Index begin,
             MatrixRef<C> z, kernels::GemmMemory<T>& packing) {
  const auto weight = kernels::view(to.weight.middleRows(begin, z.cols()));
  // In 16 bits the sum begins with the bias: added in the end it would be rounded once more.
  const bool bias_first = to.bias.size() > 0 && !std::same_as<T, Wide<T>>;
  if (bias_first) {
    z.setZero();
    add_bias<T, C>(to, begin, z);
  }
  kernels::gemm<T, C>(kernels::view(x), weight.transpose(), z,
                      bias_first ? kernels::Update::add : kernels::Update::assign, packing);
  if (!bias_first) {
    add_bias<T, C>(to, begin, z);
  }
}

/// grad.weight += dz (n, out)^T x (n, in), and the bias the sums of dz's columns; the rows of one
/// part.
template <Real T>
void project_backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dz, Part part,
                      const Projection<Matrix<Wide<T>>>& grad, kernels::GemmMemory<T>& packing) {
  constexpr Index step = kernels::RegisterTile<Wide<T>>::rows;
  const Index size = grad.weight.rows(), begin = part.begin(size, step);
  const Index rows = part.end(size, step) - begin;
  kernels::gemm<T, Wide<T>>(kernels::view(dz).block(0, begin, dz.rows(), rows).transpose(),
                            kernels::view(x), grad.weight.middleRows(begin, rows),
                            kernels::Update::add, packing);
  if (grad.bias.size() > 0) {
    kernels::add_rows<T>(dz.middleCols(begin, rows), grad.bias_weight, grad.bias.data() + begin);
  }
}

/// Sums that are rounded when they are complete: memory of one thread, which only 16 bits need.
template <Real T>
class RoundedSums {
 public:
  using W = Wide<T>;

  /// Makes it large enough for an output of so many rows.
  void reserve(Index rows) {
    if constexpr (!std::same_as<T, W>) {
      grow_both(memory_, (std::min)(rows, most_rows), cols);
    }
  }

  /// sum(sums, row, col) writes in W what belongs into out from (row, col) on: all of out, where
  /// that is in W, else some rows and columns at a time, which are then rounded once. Not called
  /// for no rows.
  template <class Sum>
  void write(MatrixRef<T> out, Sum&& sum) {
    if constexpr (std::same_as<T, W>) {
      if (out.rows() > 0) {
        sum(out, 0, 0);
      }
    } else {
      for (Index row = 0; row < out.rows(); row += most_rows) {
        for (Index col = 0; col < out.cols(); col += cols) {
          MatrixRef<W> sums = memory_.topLeftCorner((std::min)(most_rows, out.rows() - row),
                                                    (std::min)(cols, out.cols() - col));
          sum(sums, row, col);
          kernels::copy_rows(kernels::view(sums), &out.coeffRef(row, col), out.outerStride());
        }
      }
    }
  }

 private:
  static constexpr Index most_rows = 512;  // that meet a packed panel, as in gemm_narrow.hpp
  static constexpr Index cols = kernels::RegisterTile<W>::cols;

  Matrix<W> memory_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
