// SPDX-License-Identifier: Apache-2.0
// A step of routing: from a token's logits to the scores of all experts, and the gradient of the
// scores back to the logits.
#pragma once

#include "../kernels/softmax.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Whether the scores of a token sum to 1.
constexpr bool sums_to_one(Score score) { return score == Score::softmax; }

/// probs = the scores. Exactly 0 for a logit of -inf, as of a masked expert, unless the softmax of
/// the row is NaN.
template <Real W>
void write_scores(Score score, const TokenRoute<W>& token) {
  if (score == Score::softmax) {
    kernels::softmax(token.logits, token.num_experts, token.probs);
  } else {
    kernels::sigmoid(token.logits, token.num_experts, token.probs);
  }
}

/// dlogits += what dprobs makes of it; dprobs is used up.
template <Real W>
void add_score_gradient(Score score, const TokenGradient<W>& token) {
  if (score == Score::softmax) {
    kernels::softmax_backward(token.probs, token.num_experts, token.dprobs);
  } else {
    kernels::sigmoid_backward(token.probs, token.num_experts, token.dprobs);
  }
  for (Index e = 0; e < token.num_experts; ++e) {
    token.dlogits[e] += token.dprobs[e];
  }
}

/// FLOPs of a token, by the rule of cost.hpp.
constexpr Index score_flops(Score score, Index num_experts) {
  return (score == Score::softmax ? 4 : 3) * num_experts;
}
constexpr Index score_gradient_flops(Score score, Index num_experts) {
  return (score == Score::softmax ? 5 : 4) * num_experts;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
