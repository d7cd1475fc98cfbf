// SPDX-License-Identifier: Apache-2.0
// Routing tables that the tests of losses share: by hand, balanced, and of a router with noise.
#pragma once

#include <cmath>

#include "../support/random_matrix.hpp"
#include "moe/losses/loss.hpp"
#include "moe/routing/router.hpp"

namespace moe::testing {

using Table = RoutingTable<double>;
using Loss = RoutingLoss<double>;

/// Three tokens, three experts, two choices each.
inline Table tiny_table() {
  Table table;
  table.expert.resize(3, 2);
  table.expert << 0, 1, 0, 2, 2, none;
  table.weight.resize(3, 2);
  table.weight << 0.6, 0.4, 0.7, 0.3, 1.0, 0.0;
  table.probs.resize(3, 3);
  table.probs << 0.5, 0.3, 0.2, 0.6, 0.1, 0.3, 0.2, 0.2, 0.6;
  table.logits.resize(3, 3);
  table.logits << 0.0, 0.0, 0.0, std::log(2.0), 0.0, 0.0, 1.0, 1.0, 1.0;
  return table;
}

/// Tokens and experts in a circle: token t chooses t, t + 1, ... t + k - 1.
inline Table balanced_table(Index num_experts, Index top_k) {
  const Index tokens = 2 * num_experts;
  Table table;
  table.expert.resize(tokens, top_k);
  for (Index t = 0; t < tokens; ++t) {
    for (Index k = 0; k < top_k; ++k) {
      table.expert(t, k) = static_cast<ExpertId>((t + k) % num_experts);
    }
  }
  const double share = 1.0 / static_cast<double>(num_experts);
  table.weight.setConstant(tokens, top_k, 1.0 / static_cast<double>(top_k));
  table.probs.setConstant(tokens, num_experts, share);
  table.logits.setConstant(tokens, num_experts, 0.75);
  table.clean_logits = table.logits;
  table.noise_scale.setConstant(tokens, num_experts, 0.5);
  return table;
}

inline Router<double> noisy_router(Score score = Score::softmax) {
  Router<double> router(3, 5, 2, {.logits = {.bias = true, .noisy = true}, .score = score}, 1);
  randomise(router.params(), 2, 0.8);
  return router;
}

inline Table random_table(Index tokens, Score score = Score::softmax) {
  Router<double>::Table table;
  noisy_router(score).route(random_matrix<double>(tokens, 3, 3), {.noise_seed = 4}, table);
  return table;
}

}  // namespace moe::testing
