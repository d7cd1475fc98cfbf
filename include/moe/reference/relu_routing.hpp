// SPDX-License-Identifier: Apache-2.0
// ReLU routing in plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// The choices of one token of its logits (E); allowed (E), 0 masks, or empty: no mask.
inline std::vector<Choice> relu_routing(const Row& logits,
                                        const std::vector<std::uint8_t>& allowed = {}) {
  std::vector<Choice> choices;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    const bool is_number = logits[e] >= std::numeric_limits<double>::lowest();
    if ((allowed.empty() || allowed[e] != 0) && (!is_number || logits[e] > 0.0)) {
      choices.push_back({static_cast<Index>(e), is_number ? logits[e] : std::nan("")});
    }
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return is_before(a.weight, b.weight); });
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
