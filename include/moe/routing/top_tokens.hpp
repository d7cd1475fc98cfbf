// SPDX-License-Identifier: Apache-2.0
// TopTokens: a rule for the whole table, with one expert. Of each sequence the tokens with the
// largest logits take it, and the logit is the weight (Raposo et al. 2024, Mixture-of-Depths).
//
// Looks across the batch, and is not causal: whether a token is taken depends on all tokens of its
// sequence, on later ones too. takes() asks one token alone; selection_loss teaches logits to
// answer it as the sequence would.
#pragma once

#include <algorithm>
#include <cmath>

#include "../detail/reserve.hpp"
#include "../flops.hpp"
#include "../kernels/softmax.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct TopTokensConfig {
  /// The part of a sequence that is taken: of n tokens ceil(capacity * n). Padding is no token.
  double capacity = 0.125;
  /// What a logit must exceed where one token is asked alone; 0 is a sigmoid of 0.5.
  double threshold = 0.0;

  void validate() const {
    detail::throw_unless(capacity > 0.0 && capacity <= 1.0, "TopTokens: capacity = ", capacity,
                         ", expected in (0, 1]");
    detail::throw_unless(std::isfinite(threshold), "TopTokens: threshold = ", threshold,
                         ", expected finite");
  }
};

/// Probs are sigmoids of the logits. Of equal tokens the first is taken, one with a NaN after all
/// others.
template <Real W>
class TopTokens {
 public:
  using Params = NoParams;

  /// Throws std::invalid_argument if the config is out of its range.
  explicit TopTokens(const TopTokensConfig& config) : config_(config) { config.validate(); }

  const TopTokensConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  TopTokens<V> cast() const {
    return TopTokens<V>(config_);
  }
  bool probs_sum_to_one() const { return false; }
  double multiply_adds(Index rows) const { return 16.0 * static_cast<double>(rows); }
  /// Of so many tokens, of which so many are taken.
  Flops forward_flops(Index tokens) const {
    return tokens * detail::flops_of_one(0, score_flops(Score::sigmoid, 1));
  }
  Flops backward_flops(Index tokens, Index taken) const {
    return tokens * detail::flops_of_one(0, score_gradient_flops(Score::sigmoid, 1)) +
           taken * detail::flops_of_one(0, 1);
  }
  /// Tokens of a sequence of so many that are taken.
  Index count(Index num_tokens) const {
    const double tokens = static_cast<double>(num_tokens);
    return static_cast<Index>((std::min)(std::ceil(config_.capacity * tokens), tokens));
  }
  /// True of NaN, so that it reaches y.
  bool takes(const W& logit) const { return !(logit <= W(config_.threshold)); }

  /// Whether a token that may be has been taken.
  static void take(bool taken, Index token, GatedTable<W>& table) {
    table.expert(token, 0) = taken ? 0 : none;
    table.weight(token, 0) = taken ? table.logits(token, 0) : W(0);
  }

  /// Throws std::invalid_argument unless there is one expert.
  void route(const Params&, const CallOptions& call, GatedTable<W>& table) const {
    const Index num_tokens = table.logits.rows();
    detail::throw_unless(table.logits.cols() == 1, "TopTokens: num_experts = ", table.logits.cols(),
                         ", expected 1");
    table.expert.resize(num_tokens, 1);
    table.weight.resize(num_tokens, 1);
    table.probs.resize(num_tokens, 1);
    detail::grow(table.order, num_tokens);
    detail::for_rows(num_tokens, table.num_threads, [&](Index token) {
      take(false, token, table);
      const bool is_masked = !table.may_have(token, 0);
      const W& logit = table.logits.coeffRef(token, 0);
      const W number = is_masked ? logit : kernels::finite_or_nan(logit);
      kernels::sigmoid(&number, 1, &table.probs.coeffRef(token, 0));
    });
    detail::parallel_for(
        call.tokens.num_sequences(num_tokens), table.num_threads,
        [&](Index b, int) { take_best(call.tokens.sequence(b, num_tokens), table); });
  }

  void backward(const Params&, const GatedTable<W>& table, RoutingGradient<W>& gradient) const {
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index token) {
      W& dprob = gradient.probs(token, 0);
      kernels::sigmoid_backward(&table.probs.coeffRef(token, 0), 1, &dprob);
      gradient.logits(token, 0) +=
          table.expert(token, 0) == none ? dprob : dprob + gradient.weight(token, 0);
    });
  }

 private:
  void take_best(const Sequence& sequence, GatedTable<W>& table) const {
    Index* const begin = table.order.data() + sequence.begin;
    Index* end = begin;
    const Index num_tokens = table.count_tokens(sequence.begin, sequence.end);
    for (Index token = sequence.begin; token < sequence.end; ++token) {
      if (table.may_have(token, 0)) {
        *end++ = token;
      }
    }
    const Index taken = (std::min)(count(num_tokens), Index{end - begin});
    if (taken == 0) {
      return;
    }
    // A strict order, so that what is taken is one set only.
    std::nth_element(begin, begin + taken - 1, end, [&](Index a, Index b) {
      const W &of_a = table.logits(a, 0), &of_b = table.logits(b, 0);
      return kernels::ranks_above(of_a, of_b) || (a < b && !kernels::ranks_above(of_b, of_a));
    });
    std::for_each(begin, begin + taken, [&](Index token) { take(true, token, table); });
  }

  TopTokensConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
