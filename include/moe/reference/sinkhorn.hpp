// SPDX-License-Identifier: Apache-2.0
// Sinkhorn balancing in plain loops.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../routing/sinkhorn.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// exp(logits) (N) of (E), each times a factor of its token and one of its expert, so that every
/// token and every expert has the same sum. Logits are finite, or -inf where masked.
inline std::vector<Row> sinkhorn(const std::vector<Row>& logits, const SinkhornConfig& config) {
  const std::size_t tokens = logits.size(), experts = tokens == 0 ? 0 : logits[0].size();
  Row of_token(tokens, 1.0), of_expert(experts, 1.0);
  double change = 1e9;
  for (Index round = 0; round < config.most_rounds && change > config.tolerance; ++round) {
    for (std::size_t t = 0; t < tokens; ++t) {
      double sum = 1e-8;
      for (std::size_t e = 0; e < experts; ++e) {
        sum += of_expert[e] * std::exp(logits[t][e]);
      }
      of_token[t] = 1.0 / (static_cast<double>(tokens) * sum);
    }
    change = 0.0;
    for (std::size_t e = 0; e < experts; ++e) {
      double sum = 1e-8;
      for (std::size_t t = 0; t < tokens; ++t) {
        sum += of_token[t] * std::exp(logits[t][e]);
      }
      const double factor = 1.0 / (static_cast<double>(experts) * sum);
      change += std::abs(factor - of_expert[e]) / static_cast<double>(experts);
      of_expert[e] = factor;
    }
  }
  std::vector<Row> plan = logits;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t e = 0; e < experts; ++e) {
      plan[t][e] = of_token[t] * std::exp(logits[t][e]) * of_expert[e];
    }
  }
  return plan;
}

/// The choices of all tokens that compete, which are those of one sequence.
inline Routing sinkhorn_choices(const std::vector<Row>& logits, const SinkhornConfig& config) {
  Routing routing;
  const std::vector<Row> plan = sinkhorn(logits, config);
  for (std::size_t t = 0; t < logits.size(); ++t) {
    const Row probs = score(config.top_k == 1 ? Score::sigmoid : Score::softmax, logits[t]);
    std::vector<std::size_t> order(probs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return is_before(plan[t][a], plan[t][b]);
    });
    std::vector<Choice> choices;
    for (std::size_t k = 0; k < static_cast<std::size_t>(config.top_k); ++k) {
      choices.push_back({static_cast<Index>(order[k]), probs[order[k]]});
    }
    routing.push_back(choices);
  }
  return routing;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
