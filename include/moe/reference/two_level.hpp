// SPDX-License-Identifier: Apache-2.0
// Hierarchical routing in plain loops: a softmax over groups, and one within each.
#pragma once

#include <algorithm>
#include <vector>

#include "../routing/two_level.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The numbers of the best of z, at most so many, best first; none that is -inf.
inline std::vector<std::size_t> best_of(const Row& z, Index most) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < z.size(); ++i) {
    if (!(z[i] < std::numeric_limits<double>::lowest())) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return is_before(z[a], z[b]); });
  order.resize((std::min)(order.size(), static_cast<std::size_t>(most)));
  return order;
}

/// The choices of one token of its logits (E), -inf where masked.
inline std::vector<Choice> two_level(const Row& logits, const TwoLevelConfig& config) {
  const std::size_t size = logits.size() / static_cast<std::size_t>(config.num_groups);
  const auto softmax_of = [](const Row& z, const std::vector<std::size_t>& chosen) {
    Row of_chosen;
    for (const std::size_t i : chosen) {
      of_chosen.push_back(z[i]);
    }
    return softmax(of_chosen);
  };
  Row group_logits;
  for (std::size_t first = 0; first < logits.size(); first += size) {
    double sum = 0.0;
    for (std::size_t e = first; e < first + size; ++e) {
      sum += std::exp(logits[e]);
    }
    group_logits.push_back(std::log(sum));
  }
  const std::vector<std::size_t> groups = best_of(group_logits, config.top_groups);
  const Row group_weights = softmax_of(group_logits, groups);
  std::vector<Choice> choices;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(groups[i] * size);
    const Row within(begin, begin + static_cast<std::ptrdiff_t>(size));
    const std::vector<std::size_t> experts = best_of(within, config.top_k);
    const Row weights = softmax_of(within, experts);
    for (std::size_t k = 0; k < experts.size(); ++k) {
      choices.push_back(
          {static_cast<Index>(groups[i] * size + experts[k]), group_weights[i] * weights[k]});
    }
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return is_before(a.weight, b.weight); });
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
