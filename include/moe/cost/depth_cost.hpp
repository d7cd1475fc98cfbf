// SPDX-License-Identifier: Apache-2.0
// What Mixture-of-Depths moves. How many parameters it has, parameters(layer) says, and what it
// computes, a member of the layer.
#pragma once

#include "../layers/depth.hpp"
#include "part_cost.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Bytes of one forward without the predictor, of a block all of whose weights are read once: x and
/// y, and of the taken tokens what the block gets and what it makes, each written and read.
template <Real T, class Block, class Gate, class PredictorGate>
LayerBytes forward_bytes(const DepthLayer<T, Block, Gate, PredictorGate>& layer, Index tokens,
                         Index taken, Index scalar_size) {
  const Index weights = parameters(layer.router()) + (taken > 0 ? parameters(layer.block()) : 0);
  const double size = static_cast<double>(scalar_size);
  return {size * static_cast<double>(weights),
          size * static_cast<double>(2 * tokens + 4 * taken) * static_cast<double>(layer.d_in())};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
