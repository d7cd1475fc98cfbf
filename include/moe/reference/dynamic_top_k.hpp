// SPDX-License-Identifier: Apache-2.0
// Top-p and relative threshold in plain loops: a token's experts in order, one after the other.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../routing/dynamic_top_k.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of one token of its logits (E), -inf where masked.
inline std::vector<Choice> dynamic_top_k(const Row& logits, const DynamicTopKConfig& config) {
  const Row probs = softmax(logits);
  std::vector<std::size_t> order;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (!(logits[e] < std::numeric_limits<double>::lowest())) {
      order.push_back(e);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return is_before(logits[a], logits[b]); });
  std::vector<Choice> choices;
  double before = 0.0;
  for (const std::size_t e : order) {
    const auto number = static_cast<Index>(choices.size());
    const bool wanted = !(config.top_p && before >= *config.top_p) &&
                        !(config.relative && !(probs[e] >= *config.relative * probs[order[0]]));
    if (number == config.most.value_or(number + 1) || (number >= config.least && !wanted)) {
      break;
    }
    choices.push_back({static_cast<Index>(e), 0.0});
    before += probs[e];
  }
  Row weight;
  for (const Choice& choice : choices) {
    const auto e = static_cast<std::size_t>(choice.expert);
    weight.push_back(config.weight.source == WeightSource::score ? probs[e]
                     : config.weight.source == WeightSource::one ? 1.0
                                                                 : logits[e]);
  }
  if (config.weight.source == WeightSource::softmax_of_chosen) {
    weight = softmax(weight);
  }
  const Index most = config.most.value_or(static_cast<Index>(logits.size()));
  const double sum =
      config.weight.renormalises(most) ? std::accumulate(weight.begin(), weight.end(), 1e-20) : 1.0;
  for (std::size_t k = 0; k < choices.size(); ++k) {
    choices[k].weight = config.weight.scale * weight[k] / sum;
  }
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
