// SPDX-License-Identifier: Apache-2.0
// ReLU routing in plain loops.
#pragma once

#include <algorithm>
#include <vector>

#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of one token of its logits (E), -inf where masked.
inline std::vector<Choice> relu_routing(const Row& logits) {
  std::vector<Choice> choices;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (logits[e] > 0.0) {
      choices.push_back({static_cast<Index>(e), logits[e]});
    }
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return is_before(a.weight, b.weight); });
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
