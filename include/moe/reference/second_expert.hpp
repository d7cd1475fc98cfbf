// SPDX-License-Identifier: Apache-2.0
// Top-2 with a second expert that is not always taken, in plain loops.
#pragma once

#include <optional>
#include <vector>

#include "../routing/second_expert.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of the token in a row of the batch of its logits (E), -inf where masked.
inline std::vector<Choice> second_expert(const Row& logits, const SecondExpertConfig& config,
                                         std::optional<std::uint64_t> seed, Index row) {
  using Draws = SecondExpert<double>;
  const auto num_experts = static_cast<Index>(logits.size());
  const Row probs = softmax(logits);
  const auto best = [&](Index without, bool noisy) {
    Index found = none;
    double value = 0.0;
    for (Index e = 0; e < num_experts; ++e) {
      const double z = logits[static_cast<std::size_t>(e)] +
                       (noisy ? Draws::sampling_draw(*seed, row, e, num_experts) : 0.0);
      if (e != without && z > std::numeric_limits<double>::lowest() &&
          (found == none || z > value)) {
        found = e;
        value = z;
      }
    }
    return found;
  };
  const Index first = best(none, false);
  if (first == none) {
    return {};
  }
  const double p1 = probs[static_cast<std::size_t>(first)];
  const Index second = best(first, config.policy == SecondPolicy::sampled && seed);
  if (second == none) {
    return {{first, config.normalise == SecondNormalise::never ? p1 : 1.0}};
  }
  const double p2 = probs[static_cast<std::size_t>(second)];
  const double value = config.of_share ? p2 / (p1 + p2) : p2;
  bool keep = true;
  if (config.policy == SecondPolicy::threshold) {
    keep = value > config.threshold;
  } else if (config.policy == SecondPolicy::random && seed) {
    keep = Draws::keeping_draw(*seed, row) < value / config.threshold;
  }
  const double sum = config.normalise == SecondNormalise::never            ? 1.0
                     : config.normalise == SecondNormalise::after && !keep ? p1
                                                                           : p1 + p2;
  std::vector<Choice> choices = {{first, p1 / sum}};
  if (keep) {
    choices.push_back({second, p2 / sum});
  }
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
