// SPDX-License-Identifier: Apache-2.0
// The last step of routing: from the logits and scores of a token's chosen experts to their
// weights, and the gradient of the weights back to them.
#pragma once

#include <algorithm>

#include "../config.hpp"
#include "../kernels/softmax.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The sum that divides a token's weights, + 1e-20 as in DeepSeek-V3: scores that all underflow
/// make weights of 0, not NaN.
template <Real W>
W renormalising_sum(Index count, const auto& weight_of) {
  W sum = W(1e-20);
  for (Index k = 0; k < count; ++k) {
    sum += weight_of(k);
  }
  return sum;
}

/// Writes the weights of a token, whose first `chosen` choices are used, from its logits and probs.
template <Real W>
void write_weights(const WeightConfig& config, Index token, Index chosen, RoutingTable<W>& table) {
  const W* logits = &table.logits.coeffRef(token, 0);
  const W* probs = &table.probs.coeffRef(token, 0);
  const ExpertId* expert = &table.expert.coeffRef(token, 0);
  W* weight = &table.weight.coeffRef(token, 0);
  std::fill(weight, weight + table.top_k(), W(0));
  for (Index k = 0; k < chosen; ++k) {
    weight[k] = config.source == WeightSource::score               ? probs[expert[k]]
                : config.source == WeightSource::softmax_of_chosen ? logits[expert[k]]
                                                                   : W(1);
  }
  if (config.source == WeightSource::softmax_of_chosen) {
    kernels::softmax(weight, chosen, weight);
  } else if (config.renormalise) {
    const W sum = renormalising_sum<W>(chosen, [&](Index k) { return weight[k]; });
    for (Index k = 0; k < chosen; ++k) {
      weight[k] /= sum;
    }
  }
  for (Index k = 0; k < chosen; ++k) {
    weight[k] *= W(config.scale);
  }
}

/// Adds what the gradient of a token's weights makes of its logits and probs.
template <Real W>
void add_weight_gradient(const WeightConfig& config, Index token, const RoutingTable<W>& table,
                         RoutingGradient<W>& gradient) {
  const W* probs = &table.probs.coeffRef(token, 0);
  const W* weight = &table.weight.coeffRef(token, 0);
  const ExpertId* expert = &table.expert.coeffRef(token, 0);
  const W* dweight = &gradient.weight.coeffRef(token, 0);
  W* dprobs = &gradient.probs.coeffRef(token, 0);
  W* dlogits = &gradient.logits.coeffRef(token, 0);
  const Index chosen = std::find(expert, expert + table.top_k(), none) - expert;

  // mean = sum_k w_k dw_k of the weights before the scale: both the softmax over the chosen and
  // the division by the sum take it off.
  W mean(0);
  for (Index k = 0; k < chosen; ++k) {
    mean += dweight[k] * weight[k];
  }
  const W sum = renormalising_sum<W>(chosen, [&](Index k) { return probs[expert[k]]; });
  for (Index k = 0; k < chosen; ++k) {
    const Index e = expert[k];
    if (config.source == WeightSource::softmax_of_chosen) {
      dlogits[e] += weight[k] * (dweight[k] - mean / W(config.scale));
    } else if (config.source == WeightSource::score && config.renormalise) {
      dprobs[e] += (W(config.scale) * dweight[k] - mean) / sum;
    } else if (config.source == WeightSource::score) {
      dprobs[e] += W(config.scale) * dweight[k];
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
