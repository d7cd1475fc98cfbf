// SPDX-License-Identifier: Apache-2.0
// A step of the gate: logits bent into (-cap, cap), and their gradient back.
#pragma once

#include <cmath>

#include "../config.hpp"
#include "../kernels/finite.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// logit = cap * tanh(logit / cap), and NaN for an infinite one.
template <Real W>
void cap_logits(const W& cap, W* logit, Index count) {
  using std::tanh;
  for (Index e = 0; e < count; ++e) {
    logit[e] = cap * tanh(kernels::finite_or_nan(logit[e]) / cap);
  }
}

/// Makes the gradient of the capped logits that of the others, of those experts that are allowed
/// (E); null: of all.
template <Real W>
void cap_logits_backward(const W& cap, const W* capped, const std::uint8_t* allowed, Index count,
                         W* dlogit) {
  for (Index e = 0; e < count; ++e) {
    if (allowed == nullptr || allowed[e] != 0) {  // a masked one is -inf
      const W share = capped[e] / cap;
      dlogit[e] *= W(1) - share * share;
    }
  }
}

/// FLOPs of a token, by the rule of cost.hpp.
constexpr Index softcap_flops(const LogitsConfig& config, Index num_experts) {
  return config.softcap > 0.0 ? 3 * num_experts : 0;
}
constexpr Index softcap_gradient_flops(const LogitsConfig& config, Index num_experts) {
  return config.softcap > 0.0 ? 4 * num_experts : 0;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
