// SPDX-License-Identifier: Apache-2.0
// Sinkhorn: a rule for the whole table. Tokens take their best experts by the exponentials of the
// logits, scaled in turn by row and column until every token and every expert has an equal share of
// them (Clark et al. 2022, Unified Scaling Laws for Routed Language Models, S-BASE; Megatron-LM's
// sinkhorn load balancing).
//
// In training looks across the batch, and is not causal: a token's experts depend on all tokens of
// its sequence. In evaluation, which is a call without noise seed, it looks at one token.
#pragma once

#include <algorithm>
#include <cmath>

#include "../detail/reserve.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct SinkhornConfig {
  Index top_k = 1;
  /// Scaling ends when the factors of the experts change by less on average, or after so many
  /// rounds.
  double tolerance = 1e-4;
  Index most_rounds = 1000;
  /// Also calls without a noise seed are balanced.
  bool in_evaluation = false;

  void validate(Index num_experts) const {
    detail::throw_unless(top_k >= 1 && top_k <= num_experts, "Sinkhorn: top_k = ", top_k,
                         ", expected in [1, num_experts = ", num_experts, "]");
    detail::throw_unless(std::isfinite(tolerance) && tolerance > 0.0,
                         "Sinkhorn: tolerance = ", tolerance, ", expected positive and finite");
    detail::throw_unless(most_rounds >= 1, "Sinkhorn: most_rounds = ", most_rounds,
                         ", expected at least 1");
  }
};

/// Weights are the scores of the chosen: sigmoids for top_k = 1, else a softmax over all experts.
/// The balance has no gradient and is in no weight. A token with a logit that is not finite and not
/// masked takes no part in it.
template <Real W>
class Sinkhorn {
 public:
  using Params = NoParams;
  static constexpr const char* name = "Sinkhorn";

  /// Throws std::invalid_argument if the config is out of its range.
  Sinkhorn(Index num_experts, const SinkhornConfig& config)
      : num_experts_(num_experts), config_(config) {
    config.validate(num_experts);
  }

  Index num_experts() const { return num_experts_; }
  const SinkhornConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  Sinkhorn<V> cast() const {
    return {num_experts_, config_};
  }
  bool probs_sum_to_one() const { return sums_to_one(score()); }
  /// With one round of scaling: each is shared out anew.
  double multiply_adds(Index rows) const { return 2.0 * score_work(rows, num_experts_); }

  void route(const Params&, const CallOptions& call, GatedTable<W>& table) const {
    const Index num_tokens = table.logits.rows(), num_experts = table.logits.cols();
    const bool balanced = call.noise_seed.has_value() || config_.in_evaluation;
    table.expert.resize(num_tokens, config_.top_k);
    table.weight.resize(num_tokens, config_.top_k);
    table.probs.resize(num_tokens, num_experts);
    detail::grow_both(table.scratch, num_tokens + 2, num_experts + 1);
    for (Index b = 0; balanced && b < call.tokens.num_sequences(num_tokens); ++b) {
      balance(call.tokens.sequence(b, num_tokens), table);
    }
    detail::for_rows(num_tokens, table.num_threads, [&](Index row) {
      if (table.is_padding(row)) {
        return;
      }
      TokenRoute<W> token = token_route<W>(row, 0, table);
      token.scratch = nullptr;  // its rows are those of tokens here
      write_scores(score(), token);
      const bool takes_part = balanced && share(table, row) > W(0);
      const Index chosen = kernels::top_k(takes_part ? rank(table, row) : token.logits,
                                          token.allowed, num_experts, token.top_k, token.expert);
      write_weights(weights, chosen, token);
    });
  }

  void backward(const Params&, const GatedTable<W>& table, RoutingGradient<W>& gradient) const {
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index row) {
      if (!table.is_padding(row)) {
        const TokenGradient<W> token = token_gradient<W>(row, table, gradient);
        add_weight_gradient(weights, token);
        add_score_gradient(score(), token);
      }
    });
  }

 private:
  static constexpr WeightConfig weights{.renormalise = false};
  static constexpr double epsilon = 1e-8;  // of Megatron-LM: no sum is 0

  Score score() const { return config_.top_k == 1 ? Score::sigmoid : Score::softmax; }

  // The scratch of the table: a row of exponentials for each token, with its factor behind them,
  // and two rows for the factors of the experts, now and a round ago.
  static W* rank(GatedTable<W>& table, Index row) { return &table.scratch.coeffRef(row, 0); }
  static W& share(GatedTable<W>& table, Index row) {
    return table.scratch(row, table.logits.cols());
  }
  static W* factors(GatedTable<W>& table, Index which) {
    return &table.scratch.coeffRef(table.logits.rows() + which, 0);
  }

  /// Leaves in rank() of the sequence's tokens what they choose by, and 0 in share() of those that
  /// take no part.
  void balance(const Sequence& sequence, GatedTable<W>& table) const {
    const Index num_experts = table.logits.cols(), size = sequence.end - sequence.begin;
    detail::for_rows(size, table.num_threads,
                     [&](Index row) { write_exponentials(sequence.begin + row, table); });
    Index members = 0;
    for (Index row = sequence.begin; row < sequence.end; ++row) {
      members += share(table, row) > W(0) ? 1 : 0;
    }
    W *now = factors(table, 0), *before = factors(table, 1);
    std::fill(now, now + num_experts, W(1));
    for (Index round = 0; members > 0 && round < config_.most_rounds; ++round) {
      std::copy(now, now + num_experts, before);
      scale_tokens(sequence, members, table);
      scale_experts(sequence, table);
      W change(0);
      for (Index e = 0; e < num_experts; ++e) {
        change += now[e] > before[e] ? now[e] - before[e] : before[e] - now[e];
      }
      if (!(change > W(config_.tolerance * static_cast<double>(num_experts)))) {
        break;
      }
    }
    // The factor of a token is the same for all its experts.
    detail::for_rows(size, table.num_threads, [&](Index row) {
      W* value = rank(table, sequence.begin + row);
      for (Index e = 0; e < num_experts; ++e) {
        value[e] *= now[e];
      }
    });
  }

  static void write_exponentials(Index row, GatedTable<W>& table) {
    using std::exp;
    const Index num_experts = table.logits.cols();
    const W* logit = &table.logits.coeffRef(row, 0);
    const std::uint8_t* allowed = table.allowed(row);
    W* value = rank(table, row);
    W max = kernels::minus_infinity<W>();
    bool finite = !table.is_padding(row);
    for (Index e = 0; e < num_experts; ++e) {
      if (allowed == nullptr || allowed[e] != 0) {
        finite = finite && logit[e] >= Eigen::NumTraits<W>::lowest() &&
                 logit[e] <= Eigen::NumTraits<W>::highest();
        max = logit[e] > max ? logit[e] : max;
      }
    }
    finite = finite && max >= Eigen::NumTraits<W>::lowest();
    share(table, row) = finite ? W(1) : W(0);
    for (Index e = 0; e < num_experts; ++e) {
      value[e] = finite ? W(exp(logit[e] - max)) : W(0);
    }
  }

  static void scale_tokens(const Sequence& sequence, Index members, GatedTable<W>& table) {
    const Index num_experts = table.logits.cols();
    const W* factor = factors(table, 0);
    detail::for_rows(sequence.end - sequence.begin, table.num_threads, [&](Index row) {
      row += sequence.begin;
      const W* value = rank(table, row);
      W sum(0);
      for (Index e = 0; e < num_experts; ++e) {
        sum += factor[e] * value[e];
      }
      if (share(table, row) > W(0)) {
        share(table, row) = W(1) / (W(static_cast<double>(members)) * (sum + W(epsilon)));
      }
    });
  }

  /// Each expert adds up its tokens in order, whatever the threads.
  static void scale_experts(const Sequence& sequence, GatedTable<W>& table) {
    const Index num_experts = table.logits.cols();
    W* factor = factors(table, 0);
    detail::for_blocks(num_experts, 16, table.num_threads, [&](Index first, Index size) {
      const Index last = first + size;
      std::fill(factor + first, factor + last, W(0));
      for (Index row = sequence.begin; row < sequence.end; ++row) {
        const W* value = rank(table, row);
        for (Index e = first; e < last; ++e) {
          factor[e] += share(table, row) * value[e];
        }
      }
      for (Index e = first; e < last; ++e) {
        factor[e] = W(1) / (W(static_cast<double>(num_experts)) * (factor[e] + W(epsilon)));
      }
    });
  }

  Index num_experts_;
  SinkhornConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
