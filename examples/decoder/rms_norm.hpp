// SPDX-License-Identifier: Apache-2.0
// RMSNorm (Zhang and Sennrich 2019): x * weight / sqrt(mean(x^2) + epsilon).
#pragma once

#include <cmath>

#include "linear.hpp"

namespace decoder {

struct RmsNorm {
  Rows weight;  // (1, width)
  double epsilon = 0.0;

  /// In place, of each `width` elements of a row by themselves: all of the row, or its heads.
  void apply(Rows& x) const {
    const Index width = weight.cols();
    for (Index row = 0; row < x.rows(); ++row) {
      for (Index begin = 0; begin < x.cols(); begin += width) {
        auto part = x.row(row).segment(begin, width);
        const double mean = static_cast<double>(part.squaredNorm()) / static_cast<double>(width);
        part *= static_cast<float>(1.0 / std::sqrt(mean + epsilon));
        part.array() *= weight.row(0).array();
      }
    }
  }
};

}  // namespace decoder
