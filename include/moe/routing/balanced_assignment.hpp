// SPDX-License-Identifier: Apache-2.0
// BalancedAssignment: a rule for the whole table. Every token has one expert and all experts have
// equally many tokens, so that the sum of the logits of all choices is largest (Lewis et al. 2021,
// BASE Layers).
//
// In training looks across the batch, and is not causal: a token's expert depends on all tokens of
// its sequence. In evaluation, which is a call without noise seed, each token has its best.
#pragma once

#include "../detail/reserve.hpp"
#include "../kernels/topk.hpp"
#include "assignment.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct BalancedAssignmentConfig {
  /// Also calls without a noise seed are balanced.
  bool in_evaluation = false;
};

/// The weight is the sigmoid of the logit. Where the number of tokens is no multiple of that of
/// experts, some experts have one token more than the others. A token for which its allowed experts
/// have no place left has none. The assignment runs on one thread.
template <Real W>
class BalancedAssignment {
 public:
  using Params = NoParams;

  explicit BalancedAssignment(const BalancedAssignmentConfig& config) : config_(config) {}

  const BalancedAssignmentConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  BalancedAssignment<V> cast() const {
    return BalancedAssignment<V>(config_);
  }
  bool probs_sum_to_one() const { return sums_to_one(Score::sigmoid); }
  /// Of what is shared out.
  double multiply_adds(Index rows, Index num_experts) const {
    return score_work(rows, num_experts);
  }

  void route(const Params&, const CallOptions& call, GatedTable<W>& table) const {
    const Index num_tokens = table.logits.rows(), num_experts = table.logits.cols();
    const bool balanced = call.noise_seed.has_value() || config_.in_evaluation;
    table.expert.setConstant(num_tokens, 1, none);
    table.weight.resize(num_tokens, 1);
    detail::grow_both(table.scratch, 1, num_experts);
    table.probs.resize(num_tokens, num_experts);
    for (Index b = 0; balanced && b < call.tokens.num_sequences(num_tokens); ++b) {
      Assignment<W>(call.tokens.sequence(b, num_tokens), table).write();
    }
    detail::for_rows(num_tokens, table.num_threads, [&](Index row) {
      if (table.is_padding(row)) {
        return;
      }
      const TokenRoute<W> token = token_route<W>(row, 0, table);
      write_scores(Score::sigmoid, token);
      if (!balanced) {
        kernels::top_k(token.logits, token.allowed, num_experts, 1, token.expert);
      }
      write_weights(weights, 1, token);
    });
  }

  void backward(const Params&, const GatedTable<W>& table, RoutingGradient<W>& gradient) const {
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index row) {
      if (!table.is_padding(row)) {
        const TokenGradient<W> token = token_gradient<W>(row, table, gradient);
        add_weight_gradient(weights, token);
        add_score_gradient(Score::sigmoid, token);
      }
    });
  }

 private:
  static constexpr WeightConfig weights{.renormalise = false};

  BalancedAssignmentConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
