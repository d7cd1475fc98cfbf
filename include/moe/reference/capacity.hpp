// SPDX-License-Identifier: Apache-2.0
// Who keeps its place, in plain loops: expert by expert, a queue of those that ask for it.
#pragma once

#include <algorithm>
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
      struct Waiting {
        std::size_t number;  // of the choice among its token's
        double probability, priority;
        Choice* choice;
      };
      std::vector<Waiting> queue;
      for (Index t = sequence.begin; t < sequence.end; ++t) {
        auto& choices = routing[static_cast<std::size_t>(t)];
        const Row& p = probs[static_cast<std::size_t>(t)];
        for (std::size_t k = 0; k < choices.size(); ++k) {
          if (choices[k].expert == e) {
            queue.push_back({k, p[static_cast<std::size_t>(e)],
                             p[static_cast<std::size_t>(choices[0].expert)], &choices[k]});
          }
        }
      }
      // From the last criterion to the first.
      const auto sort_by = [&](auto&& before) {
        std::stable_sort(queue.begin(), queue.end(), before);
      };
      if (capacity.policy == DropPolicy::probability) {
        sort_by([](const Waiting& x, const Waiting& y) {
          return is_before(x.probability, y.probability);
        });
      } else if (capacity.policy != DropPolicy::position) {
        if (capacity.policy == DropPolicy::second_choices_by_priority) {
          sort_by(
              [](const Waiting& x, const Waiting& y) { return is_before(x.priority, y.priority); });
        }
        sort_by([](const Waiting& x, const Waiting& y) { return x.number < y.number; });
      }
      for (std::size_t i = static_cast<std::size_t>(limit); i < queue.size(); ++i) {
        queue[i].choice->kept = false;
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
