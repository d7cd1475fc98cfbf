// SPDX-License-Identifier: Apache-2.0
// The last step of routing: from the logits and scores of a token's chosen experts to their
// weights, and the gradient of the weights back to them.
#pragma once

#include <algorithm>

#include "../config.hpp"
#include "../kernels/softmax.hpp"
#include "gated_table.hpp"

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

/// Writes the weights of a token, of whose choices the first `chosen` are used where they are not
/// `none`, from its logits and probs.
template <Real W>
void write_weights(const WeightConfig& config, Index chosen, const TokenRoute<W>& token) {
  W* weight = token.weight;
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  std::fill(weight, weight + token.top_k, W(0));
  bool any = false;
  for (Index k = 0; k < chosen; ++k) {
    const ExpertId e = token.expert[k];
    if (e == none) {
      weight[k] = softmax ? kernels::minus_infinity<W>() : W(0);
      continue;
    }
    any = true;
    weight[k] = config.source == WeightSource::score ? token.probs[e]
                : softmax                            ? token.logits[e]
                                                     : W(1);
  }
  if (!any) {
    return std::fill(weight, weight + token.top_k, W(0));  // a softmax of nothing would be NaN
  }
  if (softmax) {
    kernels::softmax(weight, chosen, weight);
  } else if (config.renormalises(token.top_k)) {
    const W sum = renormalising_sum<W>(chosen, [&](Index k) { return weight[k]; });
    for (Index k = 0; k < chosen; ++k) {
      weight[k] /= sum;
    }
  }
  for (Index k = 0; k < chosen; ++k) {
    weight[k] *= W(config.scale);
  }
}

/// Adds to dlogits and dprobs what the gradient of a token's weights makes of them.
template <Real W>
void add_weight_gradient(const WeightConfig& config, const TokenGradient<W>& token) {
  const W *weight = token.weight, *dweight = token.dweight;
  const auto used = [&](Index k) { return token.expert[k] != none; };

  // mean = sum_k w_k dw_k of the weights before the scale: both the softmax over the chosen and
  // the division by the sum take it off.
  W mean(0);
  for (Index k = 0; k < token.top_k; ++k) {
    mean += used(k) ? dweight[k] * weight[k] : W(0);
  }
  const W sum = renormalising_sum<W>(
      token.top_k, [&](Index k) { return used(k) ? token.probs[token.expert[k]] : W(0); });
  for (Index k = 0; k < token.top_k; ++k) {
    if (!used(k)) {
      continue;
    }
    const Index e = token.expert[k];
    if (config.source == WeightSource::softmax_of_chosen) {
      token.dlogits[e] += weight[k] * (dweight[k] - mean / W(config.scale));
    } else if (config.source == WeightSource::score && config.renormalises(token.top_k)) {
      token.dprobs[e] += (W(config.scale) * dweight[k] - mean) / sum;
    } else if (config.source == WeightSource::score) {
      token.dprobs[e] += W(config.scale) * dweight[k];
    }
  }
}

/// FLOPs of a token, by the rule of cost.hpp.
constexpr Index weight_flops(const WeightConfig& config, Index top_k) {
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  return (1 + (softmax ? 4 : config.renormalises(top_k) ? 2 : 0)) * top_k;
}
constexpr Index weight_gradient_flops(const WeightConfig& config, Index top_k) {
  const bool of_score = config.source == WeightSource::score;
  const bool softmax = config.source == WeightSource::softmax_of_chosen;
  return (3 + (softmax || (of_score && config.renormalises(top_k)) ? 4 : of_score ? 2 : 0)) * top_k;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
