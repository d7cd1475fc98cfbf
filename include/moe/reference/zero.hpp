// SPDX-License-Identifier: Apache-2.0
// One row through an expert that computes nothing or next to nothing, in double.
#pragma once

#include <algorithm>
#include <cmath>

#include "../experts/zero.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// `number` is that of the expert among those of its kind of set; p is of a constant one.
template <Real T>
Row zero_expert(const ZeroComputation& zero, Index number, const ConstantParams<T>& p,
                const Row& x) {
  Row y = x;
  if (number < zero.constants) {
    const Row z = linear(p.mixing, Matrix<T>(), x), v = row_of(p.vector, 0);
    const double a = std::exp(z[0]), b = std::exp(z[1]);
    for (std::size_t i = 0; i < y.size(); ++i) {
      y[i] = a / (a + b) * x[i] + b / (a + b) * v[i];
    }
  } else if (number >= zero.constants + zero.copies) {
    std::fill(y.begin(), y.end(), 0.0);
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
