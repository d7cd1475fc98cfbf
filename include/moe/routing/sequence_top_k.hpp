// SPDX-License-Identifier: Apache-2.0
// SequenceTopK: a rule for the whole table. A sequence of n tokens has n * top_k choices, and
// spends them on the pairs of a token and an expert with the largest scores: a hard token takes
// more experts than an easy one, which may take none (Wen et al. 2025, Route Experts by Sequence,
// Not by Token).
//
// Looks across the batch, and is not causal: how many experts a token has depends on all tokens of
// its sequence, on later ones too. A layer of it cannot generate token by token what it was trained
// on.
#pragma once

#include <algorithm>
#include <optional>

#include "../detail/reserve.hpp"
#include "../flops.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct SequenceTopKConfig {
  /// Choices of a token on average. Padding is no token; what a token with fewer allowed experts
  /// leaves is spent on others.
  Index top_k = 1;
  /// The most that a token can have: the width of the table. Not set: all experts.
  std::optional<Index> most = std::nullopt;
  Score score = Score::softmax;
  WeightConfig weight = {.renormalise = false};

  void validate(Index num_experts) const {
    const Index limit = most.value_or(num_experts);
    detail::throw_unless(limit >= 1 && limit <= num_experts, "SequenceTopK: most = ", limit,
                         ", expected in [1, num_experts = ", num_experts, "]");
    detail::throw_unless(top_k >= 1 && top_k <= limit, "SequenceTopK: top_k = ", top_k,
                         ", expected in [1, most = ", limit, "]");
    detail::check_enum(score, all_scores.back(), "SequenceTopK: score");
    weight.validate_without_tensors("SequenceTopK");
    weight.validate_sum("SequenceTopK", score);
  }
};

/// Of equal scores the first token's counts, and of a token's the lowest expert's. A score that is
/// NaN comes after all others; a token without a choice gets what one without experts gets.
template <Real W>
class SequenceTopK {
 public:
  using Params = NoParams;
  static constexpr const char* name = "SequenceTopK";

  /// Throws std::invalid_argument if the config is out of its range.
  SequenceTopK(Index num_experts, const SequenceTopKConfig& config)
      : config_(config), num_experts_(num_experts), most_(config.most.value_or(num_experts)) {
    config.validate(num_experts);
  }

  Index num_experts() const { return num_experts_; }
  const SequenceTopKConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  SequenceTopK<V> cast() const {
    return {num_experts_, config_};
  }
  bool probs_sum_to_one() const { return sums_to_one(config_.score); }
  double multiply_adds(Index rows) const { return 2.0 * score_work(rows, num_experts_); }
  /// Of so many tokens without masks, however their sequences spread the choices.
  Flops forward_flops(Index tokens) const {
    const Index of_choice = weight_flops(config_.weight, most_) / most_;
    return tokens * detail::flops_of_one(
                        0, score_flops(config_.score, num_experts_) + config_.top_k * of_choice);
  }
  Flops backward_flops(Index tokens) const {
    const WeightConfig& weight = config_.weight;
    const Index of_choice = weight_gradient_flops(weight, most_) / most_;
    // A choice that is not used is a zero in the sums.
    const bool softmax = weight.source == WeightSource::softmax_of_chosen;
    const bool divides = weight.source != WeightSource::one && weight.renormalises(most_);
    const Index unused = softmax ? 1 : divides ? 2 : 0;
    return tokens * detail::flops_of_one(0, score_gradient_flops(config_.score, num_experts_) +
                                                config_.top_k * of_choice +
                                                (most_ - config_.top_k) * unused);
  }

  void route(const Params&, const CallOptions& call, GatedTable<W>& table) const {
    const Index num_tokens = table.logits.rows(), num_experts = table.logits.cols();
    table.expert.setConstant(num_tokens, most_, none);
    table.weight.setZero(num_tokens, most_);
    table.probs.resize(num_tokens, num_experts);
    detail::grow_both(table.scratch, 1, 1);  // tokens point there, and write nothing
    detail::for_rows(num_tokens, table.num_threads, [&](Index row) {
      if (!table.is_padding(row)) {
        const TokenRoute<W> token = token_route<W>(row, 0, table);
        write_scores(config_.score, token);
        kernels::top_k(token.probs, token.allowed, num_experts, most_, token.expert);
      }
    });
    const Index sequences = call.tokens.num_sequences(num_tokens), queues = num_tokens * most_;
    detail::grow(table.order, queues + sequences);
    Index* const last = table.order.data() + queues;
    detail::parallel_for(sequences, table.num_threads, [&](Index b, int) {
      last[b] = last_wish(call.tokens.sequence(b, num_tokens), table);
    });
    for (Index b = 0; b < sequences; ++b) {
      const Sequence sequence = call.tokens.sequence(b, num_tokens);
      detail::for_rows(sequence.end - sequence.begin, table.num_threads,
                       [&](Index row) { keep_until(last[b], sequence.begin + row, table); });
    }
  }

  void backward(const Params&, const GatedTable<W>& table, RoutingGradient<W>& gradient) const {
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index row) {
      if (!table.is_padding(row)) {
        const TokenGradient<W> token = token_gradient<W>(row, table, gradient);
        add_weight_gradient(config_.weight, token);
        add_score_gradient(config_.score, token);
      }
    });
  }

 private:
  /// The last wish that a sequence can pay for, in the order of all of them; -1: none. A token's
  /// wishes are its best experts, best first, each with the number token * most + place.
  Index last_wish(const Sequence& sequence, GatedTable<W>& table) const {
    Index* const begin = table.order.data() + sequence.begin * most_;
    Index* end = begin;
    for (Index token = sequence.begin; token < sequence.end; ++token) {
      for (Index k = 0; k < most_ && table.expert(token, k) != none; ++k) {
        *end++ = token * most_ + k;
      }
    }
    const Index tokens = table.count_tokens(sequence.begin, sequence.end);
    const Index choices = (std::min)(tokens * config_.top_k, Index{end - begin});
    if (choices == 0) {
      return -1;
    }
    std::nth_element(begin, begin + choices - 1, end,
                     [&](Index a, Index b) { return is_before(table, a, b); });
    return begin[choices - 1];
  }

  /// Takes from a token the wishes behind the last one that counts, and weighs the others.
  void keep_until(Index last, Index row, GatedTable<W>& table) const {
    const TokenRoute<W> token = token_route<W>(row, 0, table);
    Index count = 0;
    for (; count < most_ && token.expert[count] != none; ++count) {
      const Index wish = row * most_ + count;
      if (wish != last && !is_before(table, wish, last)) {
        break;
      }
    }
    std::fill(token.expert + count, token.expert + most_, none);
    write_weights(config_.weight, count, token);
  }

  /// A strict order, so that what counts is one set only: by score, then the first wish.
  bool is_before(const GatedTable<W>& table, Index a, Index b) const {
    const auto score = [&](Index wish) -> const W& {
      const Index token = wish / most_;
      return table.probs(token, table.expert(token, wish % most_));
    };
    return kernels::ranks_above(score(a), score(b)) ||
           (a < b && !kernels::ranks_above(score(b), score(a)));
  }

  SequenceTopKConfig config_;
  Index num_experts_, most_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
