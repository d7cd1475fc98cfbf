// SPDX-License-Identifier: Apache-2.0
// How much of one token's output is routed and how much shared, in double.
#pragma once

#include <cmath>

#include "../layers/coefficients.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

template <Real T>
Row coefficients(const Coefficients<T>& of, const Row& x) {
  const Row z = linear(of.params().weight, of.params().bias, x);
  const double routed = 1.0 / (1.0 + std::exp(z[1] - z[0]));
  return {routed, 1.0 - routed};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
