// SPDX-License-Identifier: Apache-2.0
// Selection: the k best of a row, in descending order.
#pragma once

#include <algorithm>
#include <cmath>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// The order of selection: the larger value first, every number before NaN. False on a tie, so
/// that whoever was met first keeps the place.
template <class T>
bool ranks_above(const T& a, const T& b) {
  using std::isnan;
  return a > b || (isnan(b) && !isnan(a));
}

/// Writes the experts of the k best values to chosen, best first; ties go to the lower expert.
/// allowed (E), or null for all: an expert with allowed == 0 is never chosen. Where fewer than k
/// are allowed, the rest of chosen is `none`. Returns how many were chosen.
template <class T>
Index top_k(const T* value, const std::uint8_t* allowed, Index num_experts, Index k,
            ExpertId* chosen) {
  Index count = 0;
  for (Index expert = 0; expert < num_experts; ++expert) {
    if (allowed != nullptr && allowed[expert] == 0) {
      continue;
    }
    if (count == k && !ranks_above(value[expert], value[chosen[k - 1]])) {
      continue;
    }
    Index place = count < k ? count++ : k - 1;
    for (; place > 0 && ranks_above(value[expert], value[chosen[place - 1]]); --place) {
      chosen[place] = chosen[place - 1];
    }
    chosen[place] = static_cast<ExpertId>(expert);
  }
  std::fill(chosen + count, chosen + k, none);
  return count;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
