// SPDX-License-Identifier: Apache-2.0
// LinearRouter: the linear gate before any rule, for the rules that change the shape of the
// decision. The top-k rule has its own, Router<T>.
#pragma once

#include <utility>

#include "gate.hpp"
#include "gated_router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T, RuleLike<Wide<T>> Rule>
using LinearRouter = GatedRouter<T, LinearGate<T>, Rule>;

/// A gate with random weights before a rule without parameters. Throws std::invalid_argument if a
/// size or the config is out of its range.
template <Real T, RuleLike<Wide<T>> Rule>
LinearRouter<T, Rule> linear_router(Index d_model, Index num_experts, Rule rule, std::uint64_t seed,
                                    const LogitsConfig& config = {}) {
  const LinearGate<T> gate(d_model, num_experts, config);
  return {gate, std::move(rule), {gate.initial_params(seed), {}}};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
