// SPDX-License-Identifier: Apache-2.0
// Experts that are drawn or taken in turn, in plain loops.
#pragma once

#include <algorithm>
#include <vector>

#include "../routing/uniform_choice.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The experts of the token in a row of the batch, of those that are allowed (E).
inline std::vector<Index> uniform_choice(const std::vector<std::uint8_t>& allowed,
                                         const UniformChoiceConfig& config, std::uint64_t seed,
                                         Index row) {
  const auto num_experts = static_cast<Index>(allowed.size());
  std::vector<Index> order;
  for (Index i = 0; i < num_experts; ++i) {
    order.push_back(
        config.order == UniformOrder::round_robin ? (row * config.top_k + i) % num_experts : i);
  }
  if (config.order == UniformOrder::random) {
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
      return UniformChoice<double>::draw(seed, row, a, num_experts) >
             UniformChoice<double>::draw(seed, row, b, num_experts);
    });
  }
  std::vector<Index> chosen;
  for (const Index e : order) {
    if (allowed[static_cast<std::size_t>(e)] != 0 &&
        static_cast<Index>(chosen.size()) < config.top_k) {
      chosen.push_back(e);
    }
  }
  return chosen;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
