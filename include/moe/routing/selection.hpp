// SPDX-License-Identifier: Apache-2.0
// A step of routing: which experts a token takes. The choice is piecewise constant, so there is
// nothing to take back from it.
#pragma once

#include <type_traits>

#include "../config.hpp"
#include "../kernels/topk.hpp"
#include "gated_table.hpp"
#include "groups.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Writes the token's top_k best allowed experts, best first, and `none` where fewer are allowed;
/// behind them those that are always chosen. Returns how many of the choices may be used. They are
/// the best by logits, or, with a bias (E) and not null, or with groups, by score + bias, for which
/// probs must have been written. Leaves those that the call gave.
template <Real W>
Index select_experts(const SelectionConfig& config, const std::type_identity_t<W>* bias,
                     const TokenRoute<W>& token) {
  if (token.chosen) {
    return token.top_k;
  }
  const Index ranked = token.num_experts - config.always, best = token.top_k - config.always;
  const W* rank = token.logits;
  if (bias != nullptr || config.groups) {
    for (Index e = 0; e < ranked; ++e) {
      token.scratch[e] = bias == nullptr ? token.probs[e] : token.probs[e] + bias[e];
    }
    rank = token.scratch;
  }
  if (config.groups) {
    return TokenGroups<W>(*config.groups, token, token.scratch, token.scratch + token.num_experts)
        .select();
  }
  const Index found = kernels::top_k(rank, token.allowed, ranked, best, token.expert);
  for (Index i = 0; i < config.always; ++i) {
    const Index e = ranked + i;
    const bool allowed = token.allowed == nullptr || token.allowed[e] != 0;
    token.expert[best + i] = allowed ? static_cast<ExpertId>(e) : none;
  }
  return config.always > 0 ? token.top_k : found;
}

/// FLOPs of a token, by the rule of cost.hpp; comparisons are none.
constexpr Index selection_flops(const SelectionConfig& config, Index num_experts) {
  return (config.bias ? num_experts - config.always : 0) +
         (config.groups ? group_flops(*config.groups) : 0);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
