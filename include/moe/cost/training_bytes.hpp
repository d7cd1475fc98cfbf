// SPDX-License-Identifier: Apache-2.0
// What training keeps of each parameter, beside the tapes (tape_bytes.hpp).
#pragma once

#include <concepts>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Bytes of parameters, of their gradients, and of an optimiser's moments and main weights.
struct TrainingBytes {
  double parameters = 0, gradients = 0, moments = 0;
  double main = 0;  ///< where parameters have 16 bits

  double total() const { return parameters + gradients + moments + main; }
};

/// Of so many parameters in T and an optimiser with so many moments: AdamW has 2, Sgd 1. A
/// parameter takes 16 bytes in float, 18 in 16 bits, 32 in double, with AdamW. A layer's router is
/// in float where its experts have 16 bits: it is to be counted apart.
template <Real T>
TrainingBytes training_bytes(Index parameters, Index num_moments = 2) {
  const double count = static_cast<double>(parameters), wide = count * sizeof(Wide<T>);
  return {count * sizeof(T), wide, static_cast<double>(num_moments) * wide,
          std::same_as<T, Wide<T>> ? 0.0 : wide};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
