// SPDX-License-Identifier: Apache-2.0
// How rules write a token's choices where these are not found in order: each to its place among
// those before it.
#pragma once

#include "../kernels/topk.hpp"
#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Puts an expert behind the `count` choices of a token that weigh as much or more. Experts that
/// come in ascending order thus stand best first, of equals the lowest first.
template <Real W>
void insert_choice(ExpertId e, const W& value, Index count, ExpertId* expert, W* weight) {
  Index place = count;
  for (; place > 0 && kernels::ranks_above(value, weight[place - 1]); --place) {
    expert[place] = expert[place - 1];
    weight[place] = weight[place - 1];
  }
  expert[place] = e;
  weight[place] = value;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
