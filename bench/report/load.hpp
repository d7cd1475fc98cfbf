// SPDX-License-Identifier: Apache-2.0
// How a router's choices fall on the experts, with a capacity: even, and skewed by a bias that
// falls with the logarithm of the expert's number (Zipf's law), as untrained balance often looks.
#pragma once

#include <numeric>

#include "results.hpp"

namespace moe::report {

inline Load measure_load(const Grid& grid, std::string name, float skew, int threads) {
  MoEConfig c = grid.load;
  c.router.logits.bias = true;
  Router<float> router(c.d_model, c.num_experts, c.top_k, c.router, 1);
  for (Index e = 0; e < c.num_experts; ++e) {
    router.params().bias(0, e) = -skew * std::log(static_cast<float>(e + 1));
  }
  const auto x = random_tokens(grid.load_tokens, c.d_model, 9);
  Router<float>::Table table;
  KeptChoices kept;
  DispatchPlan plan;
  router.route(x, {.num_threads = threads}, table);
  kept.select(table, c.num_experts, c.capacity, {});
  plan.build(table, kept, c.num_experts);

  Load load{.routing = std::move(name)};
  load.capacity = capacity_rows(c.capacity, grid.load_tokens, c.num_experts, c.top_k);
  const auto asked = [&](Index e) { return plan.kept(e) + kept.dropped_of(e); };
  std::vector<Index> order(static_cast<std::size_t>(c.num_experts));
  std::iota(order.begin(), order.end(), Index{0});
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return asked(a) > asked(b); });
  double sum = 0, squares = 0;
  for (const Index e : order) {
    load.kept.push_back(plan.kept(e));
    load.dropped.push_back(kept.dropped_of(e));
    sum += static_cast<double>(asked(e));
    squares += static_cast<double>(asked(e) * asked(e));
  }
  const double experts = static_cast<double>(c.num_experts), mean = sum / experts;
  load.variation = std::sqrt(std::max(0.0, squares / experts - mean * mean)) / mean;
  load.dropped_share = static_cast<double>(kept.num_dropped()) / sum;
  return load;
}

}  // namespace moe::report
