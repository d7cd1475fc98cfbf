// SPDX-License-Identifier: Apache-2.0
// Balanced assignment by trying all of them: for a handful of tokens.
#pragma once

#include <algorithm>
#include <vector>

#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The expert of each token of its logits (N) of (E), -inf where masked: of all ways to give every
/// expert n / E tokens, or one more, the first with the largest sum. Empty if there is none.
inline std::vector<Index> balanced_assignment(const std::vector<Row>& logits) {
  const std::size_t tokens = logits.size(), experts = tokens == 0 ? 0 : logits[0].size();
  std::vector<Index> best, current(tokens, 0);
  double most = -std::numeric_limits<double>::infinity();
  for (bool more = tokens > 0; more;) {
    std::vector<std::size_t> size(experts, 0);
    double sum = 0.0;
    for (std::size_t t = 0; t < tokens; ++t) {
      sum += logits[t][static_cast<std::size_t>(current[t])];
      ++size[static_cast<std::size_t>(current[t])];
    }
    const bool even = std::all_of(size.begin(), size.end(), [&](std::size_t s) {
      return s == tokens / experts || s == (tokens + experts - 1) / experts;
    });
    if (even && sum > most) {
      most = sum;
      best = current;
    }
    more = false;
    for (std::size_t t = 0; t < tokens && !more; ++t) {  // counts up, in base E
      more = ++current[t] < static_cast<Index>(experts);
      current[t] = more ? current[t] : 0;
    }
  }
  return best;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
