// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b, by Eigen's product. A token is a row here and everywhere.
#pragma once

#include <moe/types.hpp>

namespace decoder {

using moe::Index;
using Rows = moe::Matrix<float>;
using RowsRef = moe::MatrixRef<float>;
using ConstRowsRef = moe::ConstMatrixRef<float>;

struct Linear {
  Rows weight;  // (out, in), as in PyTorch
  Rows bias;    // (1, out), or empty

  void forward(const ConstRowsRef& x, Rows& y) const {
    y.noalias() = x * weight.transpose();
    if (bias.size() > 0) {
      y.rowwise() += bias.row(0);
    }
  }
};

}  // namespace decoder
