// SPDX-License-Identifier: Apache-2.0
// Sequence-level top-k in plain loops: all pairs of a token and an expert of a sequence in one
// queue.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "../routing/sequence_top_k.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of all tokens of their logits (N) of (E), -inf where masked, for weights that are
/// scores.
inline Routing sequence_top_k(const std::vector<Row>& logits, const SequenceTopKConfig& config,
                              const Tokens& tokens) {
  struct Pair {
    std::size_t token;
    Choice choice;
  };
  const auto num_tokens = static_cast<Index>(logits.size());
  const Index num_experts = logits.empty() ? 0 : static_cast<Index>(logits[0].size());
  const Index most = config.most.value_or(num_experts);
  Routing routing(logits.size());
  for (Index b = 0; b < tokens.num_sequences(num_tokens); ++b) {
    const Sequence sequence = tokens.sequence(b, num_tokens);
    std::vector<Pair> queue;
    Index choices = 0;
    for (Index t = sequence.begin; t < sequence.end; ++t) {
      if (tokens.is_padding(t)) {
        continue;
      }
      choices += config.top_k;
      const auto token = static_cast<std::size_t>(t);
      const Row probs = score(config.score, logits[token]);
      for (std::size_t e = 0; e < probs.size(); ++e) {
        if (!(logits[token][e] < std::numeric_limits<double>::lowest())) {
          queue.push_back({token, {static_cast<Index>(e), probs[e]}});
        }
      }
    }
    std::stable_sort(queue.begin(), queue.end(), [](const Pair& x, const Pair& y) {
      return is_before(x.choice.weight, y.choice.weight);
    });
    for (const Pair& pair : queue) {
      std::vector<Choice>& chosen = routing[pair.token];
      if (choices > 0 && static_cast<Index>(chosen.size()) < most) {
        chosen.push_back(pair.choice);
        --choices;
      }
    }
  }
  for (std::vector<Choice>& chosen : routing) {
    double sum = 1.0;
    if (config.weight.renormalises(most)) {
      sum = std::accumulate(chosen.begin(), chosen.end(), config.weight.epsilon,
                            [](double s, const Choice& choice) { return s + choice.weight; });
    }
    for (Choice& choice : chosen) {
      choice.weight *= config.weight.scale / sum;
    }
  }
  return routing;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
