// SPDX-License-Identifier: Apache-2.0
// One token into and out of a latent layer's experts, in double.
#pragma once

#include <cmath>

#include "../experts/latent.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// What the experts read of x.
template <Real T>
Row enter_latent(const Latent<T>& latent, const Row& x) {
  return linear(latent.params().down, Matrix<T>(), x);
}

/// The routed output of the sum of the experts' outputs.
template <Real T>
Row leave_latent(const Latent<T>& latent, Row v) {
  if (latent.config().norm) {
    double squares = 0.0;
    for (const double value : v) {
      squares += value * value;
    }
    const Row weight = row_of(latent.params().norm, 0);
    const double root = std::sqrt(squares / static_cast<double>(v.size()) + latent.config().eps);
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] *= weight[i] / root;
    }
  }
  return linear(latent.params().up, Matrix<T>(), v);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
