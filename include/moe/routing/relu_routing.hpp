// SPDX-License-Identifier: Apache-2.0
// ReluRouting: a rule for a token. Its experts are those whose logit is positive, and the logit is
// the weight, so that the router is differentiable also where an expert comes or goes (Wang, Zhu
// and Chen 2024, ReMoE). balanced_l1_loss, with a coefficient that SparsityControl adapts, keeps
// the experts few.
//
// Looks at one token, and is causal.
#pragma once

#include <algorithm>

#include "../flops.hpp"
#include "../kernels/finite.hpp"
#include "concepts.hpp"
#include "insert_choice.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Scores are max(logit, 0). A token may have all experts or none, in which case its y is 0. An
/// expert whose logit is NaN is chosen, so that y is NaN, too, and so is one whose logit is -inf
/// without a mask.
template <Real W>
class ReluRouting {
 public:
  using Params = NoParams;
  static constexpr const char* name = "ReluRouting";

  /// Throws std::invalid_argument if there are no experts.
  explicit ReluRouting(Index num_experts) : num_experts_(num_experts) {
    detail::throw_unless(num_experts >= 1, "ReluRouting: num_experts = ", num_experts,
                         ", expected at least 1");
  }

  Index num_experts() const { return num_experts_; }
  /// The most that a token can have: the width of the table.
  Index top_k() const { return num_experts_; }
  /// This rule in another scalar.
  template <Real V>
  ReluRouting<V> cast() const {
    return ReluRouting<V>(num_experts_);
  }
  bool probs_sum_to_one() const { return false; }
  double multiply_adds(Index rows) const {
    return static_cast<double>(rows) * static_cast<double>(num_experts_);
  }

  /// Comparisons are none.
  Flops forward_flops(Index) const { return {}; }
  Flops backward_flops(const RoutingTable<W>& table) const {
    return detail::flops_of_one(0, 2 * table.num_choices());
  }

  void route(const Params&, const TokenRoute<W>& token) const {
    std::fill(token.expert, token.expert + token.top_k, none);
    std::fill(token.weight, token.weight + token.top_k, W(0));
    Index count = 0;
    for (Index e = 0; e < token.num_experts; ++e) {
      const bool allowed = token.allowed == nullptr || token.allowed[e] != 0;
      const W logit = allowed && token.logits[e] < W(0) ? kernels::finite_or_nan(token.logits[e])
                                                        : token.logits[e];
      token.probs[e] = logit <= W(0) ? W(0) : logit;
      if (!(logit <= W(0))) {
        insert_choice(static_cast<ExpertId>(e), logit, count++, token.expert, token.weight);
      }
    }
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    for (Index k = 0; k < token.top_k && token.expert[k] != none; ++k) {
      const ExpertId e = token.expert[k];
      token.dlogits[e] += token.dweight[k] + token.dprobs[e];
    }
  }

 private:
  Index num_experts_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
