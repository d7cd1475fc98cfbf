// SPDX-License-Identifier: Apache-2.0
// The norm of one token's output, in double.
#pragma once

#include <cmath>

#include "../layers/output_norm.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

template <Real T>
Row output_norm(const OutputNorm<T>& norm, Row v) {
  double squares = 0.0;
  for (const double value : v) {
    squares += value * value;
  }
  const double root = std::sqrt(squares / static_cast<double>(v.size()) + norm.config().eps);
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] *= static_cast<double>(norm.params().scale(0, static_cast<Index>(i))) / root;
  }
  return v;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
