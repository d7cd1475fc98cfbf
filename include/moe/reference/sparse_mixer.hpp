// SPDX-License-Identifier: Apache-2.0
// SparseMixer-v2 in plain loops: the picks of a token, and its estimate of their gradient.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../routing/sparse_mixer.hpp"
#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// A pick: its choice, the softmax (E) among the near experts, 0 for all others, and the best.
struct Pick {
  Choice choice;
  Row softmax;
  Index best;
};

/// The picks of the token in a row of the batch of its logits (E), -inf where masked.
inline std::vector<Pick> sparse_mixer(const Row& logits, double jitter,
                                      std::optional<std::uint64_t> seed, Index row) {
  using Draws = SparseMixer<double>;
  const double lowest = -std::numeric_limits<double>::infinity();
  Row left = logits;
  std::vector<Pick> picks;
  for (Index pick = 0; pick < 2; ++pick) {
    const auto best = std::max_element(left.begin(), left.end()) - left.begin();
    const double max = left[static_cast<std::size_t>(best)];
    if (!(max > lowest)) {
      break;
    }
    Row close = left, noisy = left;
    for (std::size_t e = 0; e < close.size(); ++e) {
      if ((max - logits[e]) / (std::max)(std::abs(logits[e]), max) > 2.0 * jitter) {
        close[e] = lowest;
      }
      noisy[e] = close[e] + (seed ? Draws::drawing_noise(*seed, row, pick, static_cast<Index>(e),
                                                         static_cast<Index>(close.size()))
                                  : 0.0);
    }
    const auto e = std::max_element(noisy.begin(), noisy.end()) - noisy.begin();
    const Row p = softmax(close);
    const double scale = seed && e != best && Draws::third(*seed, row, pick) ? 1.0 / 3.0 : 1.0;
    picks.push_back({{e, scale * p[static_cast<std::size_t>(e)]}, p, best});
    left[static_cast<std::size_t>(e)] = lowest;
  }
  return picks;
}

/// The estimate of the gradient of the logits (E) from that of the picks' weights.
inline Row sparse_mixer_gradient(const std::vector<Pick>& picks, const Row& dweight) {
  Row dlogits(picks.empty() ? 0 : picks[0].softmax.size(), 0.0);
  for (std::size_t i = 0; i < picks.size(); ++i) {
    const Row& p = picks[i].softmax;
    const auto chosen = static_cast<std::size_t>(picks[i].choice.expert);
    for (std::size_t e = 0; e < p.size(); ++e) {
      dlogits[e] += dweight[i] * p[chosen] * ((e == chosen ? 1.0 : 0.0) - p[e]);
    }
  }
  return dlogits;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
