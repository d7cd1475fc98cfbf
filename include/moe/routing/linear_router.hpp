// SPDX-License-Identifier: Apache-2.0
// Routers of any gate and rule with random weights, and LinearRouter, that of the linear gate. The
// top-k rule behind a linear gate has its own, Router<T>.
#pragma once

#include <utility>

#include "gate.hpp"
#include "gated_router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T, RuleLike<Wide<T>> Rule>
using LinearRouter = GatedRouter<T, LinearGate<T>, Rule>;

/// A gate with random weights before a rule, with the parameters that it begins with, if it has
/// any. Throws std::invalid_argument if they do not fit.
template <Real T, GateLike<T> Gate, RuleLike<Wide<T>> Rule>
GatedRouter<T, Gate, Rule> gated_router(Gate gate, Rule rule, std::uint64_t seed) {
  auto weights = gate.initial_params(seed);
  if constexpr (requires { rule.initial_params(); }) {
    auto of_rule = rule.initial_params();
    return {std::move(gate), std::move(rule), {std::move(weights), std::move(of_rule)}};
  } else {
    return {std::move(gate), std::move(rule), {std::move(weights), {}}};
  }
}

/// The same with a linear gate of a config.
template <Real T, RuleLike<Wide<T>> Rule>
LinearRouter<T, Rule> linear_router(Index d_model, Index num_experts, Rule rule, std::uint64_t seed,
                                    const LogitsConfig& config = {}) {
  return gated_router<T>(LinearGate<T>(d_model, num_experts, config), std::move(rule), seed);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
