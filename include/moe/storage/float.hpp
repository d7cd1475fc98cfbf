// SPDX-License-Identifier: Apache-2.0
// Weights stored as they are computed with: float and double.
#pragma once

#include "panels.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <kernels::Vectorised S>
class PackedMatrix<S> : public StoredPanels<kernels::RegisterTile<S>, S> {
 public:
  using Input = S;
  using Precision = S;
  using Weight = S;
  static constexpr Index buffer_size = 0;

  using StoredPanels<kernels::RegisterTile<S>, S>::StoredPanels;

  const S* panel(Index number, Index k, Index /*size*/, S* /*buffer*/) const {
    return this->stored(number, k);
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
