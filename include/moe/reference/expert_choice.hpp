// SPDX-License-Identifier: Apache-2.0
// Expert choice in plain loops: expert by expert, a queue of the tokens that it may take.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of all tokens of their logits (N) of (E), -inf where masked.
inline Routing expert_choice(const std::vector<Row>& logits, double capacity_factor,
                             const Tokens& tokens) {
  const auto num_tokens = static_cast<Index>(logits.size());
  Routing routing(logits.size());
  for (Index b = 0; b < tokens.num_sequences(num_tokens); ++b) {
    const Sequence sequence = tokens.sequence(b, num_tokens);
    std::vector<std::size_t> members;
    for (Index t = sequence.begin; t < sequence.end; ++t) {
      if (!tokens.is_padding(t)) {
        members.push_back(static_cast<std::size_t>(t));
      }
    }
    const std::size_t num_experts = logits.empty() ? 0 : logits[0].size();
    const double fair = static_cast<double>(members.size()) / static_cast<double>(num_experts);
    for (std::size_t e = 0; e < num_experts; ++e) {
      std::vector<std::pair<double, std::size_t>> queue;
      for (const std::size_t t : members) {
        if (!(logits[t][e] < std::numeric_limits<double>::lowest())) {
          queue.emplace_back(softmax(logits[t])[e], t);
        }
      }
      std::stable_sort(queue.begin(), queue.end(),
                       [](const auto& x, const auto& y) { return is_before(x.first, y.first); });
      const double rows = std::ceil(capacity_factor * fair);
      for (std::size_t i = 0; i < queue.size() && static_cast<double>(i) < rows; ++i) {
        routing[queue[i].second].push_back({static_cast<Index>(e), queue[i].first});
      }
    }
  }
  for (std::vector<Choice>& choices : routing) {
    std::stable_sort(choices.begin(), choices.end(), [](const Choice& x, const Choice& y) {
      return is_before(x.weight, y.weight);
    });
  }
  return routing;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
