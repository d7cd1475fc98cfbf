// SPDX-License-Identifier: Apache-2.0
// The gate of ZAYA1 on one token, in double: its state, and the logits of it.
#pragma once

#include <cmath>

#include "../routing/state_gate.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

struct StateAndLogits {
  Row state, logits;
};

/// `before` is the state that the layer before handed on, empty in the first.
template <class Params>
StateAndLogits state_gate(const Params& p, const StateGateConfig& config, const Row& x,
                          const Row& before) {
  const auto gelu = [](Row z) {
    for (double& value : z) {
      value *= 0.5 * std::erfc(-value / std::sqrt(2.0));
    }
    return z;
  };
  Row state = linear(p.down.weight, p.down.bias, x);
  double squares = 0.0;
  for (std::size_t i = 0; i < state.size(); ++i) {
    if (config.takes_state) {
      state[i] += static_cast<double>(p.state_scale(0, static_cast<Index>(i))) * before[i];
    }
    squares += state[i] * state[i];
  }
  squares = std::isinf(squares) ? std::nan("") : squares;
  const double root = std::sqrt(squares / static_cast<double>(state.size()) + config.epsilon);
  Row normed = state;
  for (std::size_t i = 0; i < state.size(); ++i) {
    normed[i] *= static_cast<double>(p.norm(0, static_cast<Index>(i))) / root;
  }
  const Row first = gelu(linear(p.first.weight, p.first.bias, normed));
  const Row second = gelu(linear(p.second.weight, p.second.bias, first));
  return {state, linear(p.output.weight, p.output.bias, second)};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
