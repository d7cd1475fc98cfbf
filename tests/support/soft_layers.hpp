// SPDX-License-Identifier: Apache-2.0
// Layers of Soft MoE for their tests.
#pragma once

#include <cstdint>

#include "moe/layers/soft_moe.hpp"
#include "sequences.hpp"

namespace moe::testing::soft {

using namespace sequences;
using testing::run_step;

inline SoftMoEConfig small_config(Index slots = 2) {
  return {.d_model = 5, .d_ff = 6, .num_experts = 3, .slots = slots, .d_out = 4};
}

/// A layer whose tensors are all random.
template <class Layer>
Layer randomised(Layer layer) {
  randomise(layer.router().params(), 8, 1.5);
  std::uint64_t seed = 20;
  for (auto& expert : layer.experts()) {
    randomise(expert.params(), seed++);
  }
  return layer;
}
template <Real T>
SoftMoELayer<T> make_soft(const SoftMoEConfig& config) {
  return randomised(SoftMoELayer<T>(config, 1));
}
/// Without the normalised router.
template <Real T>
SoftMoELayer<T, LinearGate<T>> make_plain(const SoftMoEConfig& config) {
  const LinearGate<T> gate(config.d_model, config.num_experts * config.slots, {.bias = true});
  return randomised(
      SoftMoELayer<T, LinearGate<T>>(SlotRouter<T, LinearGate<T>>(gate, gate.initial_params(1)),
                                     make_experts<T>(config.experts(), 2)));
}

}  // namespace moe::testing::soft
