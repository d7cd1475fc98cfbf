// SPDX-License-Identifier: Apache-2.0
// Who keeps its place, in plain loops: expert by expert, a queue of those that ask for it.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../dispatch/capacity.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// Marks what is over capacity: for each sequence and expert, those that come last. Padding, which
/// has no choices, counts for nothing. probs (N) of (E).
inline void drop(const Capacity& capacity, const Tokens& tokens, Index num_experts, Index top_k,
                 const std::vector<Row>& probs, Routing& routing) {
  const auto num_tokens = static_cast<Index>(routing.size());
  for (Index b = 0; capacity.limited() && b < tokens.num_sequences(num_tokens); ++b) {
    const Sequence sequence = tokens.sequence(b, num_tokens);
    Index length = 0;
    for (Index t = sequence.begin; t < sequence.end; ++t) {
      length += tokens.is_padding(t) ? 0 : 1;
    }
    const Index limit = capacity_rows(capacity, length, num_experts, top_k);
    for (Index e = 0; e < num_experts; ++e) {
      std::vector<std::pair<double, Choice*>> queue;
      for (Index t = sequence.begin; t < sequence.end; ++t) {
        for (Choice& choice : routing[static_cast<std::size_t>(t)]) {
          if (choice.expert == e) {
            queue.emplace_back(probs[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)],
                               &choice);
          }
        }
      }
      if (capacity.policy == DropPolicy::probability) {
        std::stable_sort(queue.begin(), queue.end(),
                         [](const auto& x, const auto& y) { return is_before(x.first, y.first); });
      }
      for (std::size_t i = static_cast<std::size_t>(limit); i < queue.size(); ++i) {
        queue[i].second->kept = false;
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
