// SPDX-License-Identifier: Apache-2.0
// ExpertChoice: a rule for the whole table. Experts choose their tokens, and each takes equally
// many; a token is taken by none, one or several (Zhou et al. 2022, Mixture-of-Experts with Expert
// Choice Routing).
//
// Looks across the batch, and is not causal: who takes a token depends on all tokens of its
// sequence, on later ones too. A layer of it cannot generate token by token what it was trained on.
#pragma once

#include <algorithm>
#include <cmath>

#include "../detail/reserve.hpp"
#include "../kernels/softmax.hpp"
#include "concepts.hpp"
#include "insert_choice.hpp"
#include "score.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct ExpertChoiceConfig {
  /// Experts that a token has on average: of a sequence of n tokens each expert takes
  /// ceil(capacity_factor * n / E), at most n. Padding is no token.
  double capacity_factor = 2.0;

  void validate() const {
    detail::throw_unless(std::isfinite(capacity_factor) && capacity_factor > 0.0,
                         "ExpertChoice: capacity_factor = ", capacity_factor,
                         ", expected positive and finite");
  }
};

/// The weight is the softmax over all experts. Of equal tokens the first is taken; one with a NaN
/// is taken after all others, or not at all, and then gets what a token without experts gets. In
/// the table K is the most that any token has, and at least 1.
template <Real W>
class ExpertChoice {
 public:
  using Params = NoParams;

  /// Throws std::invalid_argument if the config is out of its range.
  explicit ExpertChoice(const ExpertChoiceConfig& config) : config_(config) { config.validate(); }

  const ExpertChoiceConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  ExpertChoice<V> cast() const {
    return ExpertChoice<V>(config_);
  }
  double multiply_adds(Index rows, Index num_experts) const {
    return 2.0 * score_work(rows, num_experts);
  }

  void route(const Params&, const CallOptions& call, GatedTable<W>& table) const {
    const Index num_tokens = table.logits.rows(), num_experts = table.logits.cols();
    table.probs.resize(num_tokens, num_experts);
    detail::for_rows(num_tokens, table.num_threads, [&](Index token) {
      kernels::softmax(&table.logits.coeffRef(token, 0), num_experts,
                       &table.probs.coeffRef(token, 0));
    });
    const Index sequences = call.tokens.num_sequences(num_tokens);
    const Index counts = sequences * num_experts, queues = counts + num_tokens;
    detail::grow(table.order, queues + num_tokens * table.num_threads);
    for (Index b = 0; b < sequences; ++b) {
      const Sequence sequence = call.tokens.sequence(b, num_tokens);
      const Index rows = rows_of_expert(sequence, table);
      detail::parallel_for(num_experts, table.num_threads, [&](Index e, int worker) {
        Index* queue = &at(table, queues + num_tokens * worker);
        at(table, b * num_experts + e) = last_taken(table, sequence, e, rows, queue);
      });
      detail::for_rows(sequence.end - sequence.begin, table.num_threads, [&](Index row) {
        Index& count = at(table, counts + sequence.begin + row) = 0;
        for_each_taker(table, b, sequence.begin + row, [&](Index) { ++count; });
      });
    }
    Index most = 1;
    for (Index token = 0; token < num_tokens; ++token) {
      most = (std::max)(most, at(table, counts + token));
    }
    table.expert.setConstant(num_tokens, most, none);
    table.weight.setZero(num_tokens, most);
    for (Index b = 0; b < sequences; ++b) {
      const Sequence sequence = call.tokens.sequence(b, num_tokens);
      detail::for_rows(sequence.end - sequence.begin, table.num_threads, [&](Index row) {
        const Index token = sequence.begin + row;
        Index count = 0;
        for_each_taker(table, b, token, [&](Index e) {
          insert_choice(static_cast<ExpertId>(e), table.probs(token, e), count++,
                        &table.expert.coeffRef(token, 0), &table.weight.coeffRef(token, 0));
        });
      });
    }
  }

  void backward(const Params&, const GatedTable<W>& table, RoutingGradient<W>& gradient) const {
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index row) {
      if (table.is_padding(row)) {
        return;
      }
      const TokenGradient<W> token = token_gradient<W>(row, table, gradient);
      for (Index k = 0; k < token.top_k && token.expert[k] != none; ++k) {
        token.dprobs[token.expert[k]] += token.dweight[k];
      }
      kernels::softmax_backward(token.probs, token.num_experts, token.dprobs);
      for (Index e = 0; e < token.num_experts; ++e) {
        token.dlogits[e] += token.dprobs[e];
      }
    });
  }

 private:
  static Index& at(GatedTable<W>& table, Index place) {
    return table.order[static_cast<std::size_t>(place)];
  }

  Index rows_of_expert(const Sequence& sequence, const GatedTable<W>& table) const {
    const double tokens = static_cast<double>(table.count_tokens(sequence.begin, sequence.end));
    const double fair = tokens / static_cast<double>(table.logits.cols());
    return static_cast<Index>((std::min)(std::ceil(config_.capacity_factor * fair), tokens));
  }

  /// A strict order of the tokens of one expert, so that what is taken is one set only.
  static bool is_before(const GatedTable<W>& table, Index e, Index a, Index b) {
    const W &p_a = table.probs(a, e), &p_b = table.probs(b, e);
    return kernels::ranks_above(p_a, p_b) || (a < b && !kernels::ranks_above(p_b, p_a));
  }

  /// The last token that expert e takes, in its order: all before it are taken, too. -1: none is.
  static Index last_taken(const GatedTable<W>& table, const Sequence& sequence, Index e, Index rows,
                          Index* queue) {
    Index* end = queue;
    for (Index token = sequence.begin; token < sequence.end; ++token) {
      if (table.may_have(token, e)) {
        *end++ = token;
      }
    }
    rows = (std::min)(rows, Index{end - queue});
    if (rows == 0) {
      return -1;
    }
    std::nth_element(queue, queue + rows - 1, end,
                     [&](Index a, Index b) { return is_before(table, e, a, b); });
    return queue[rows - 1];
  }

  /// body(e) for each expert that takes a token of sequence b.
  template <class Body>
  static void for_each_taker(const GatedTable<W>& table, Index b, Index token, Body&& body) {
    const Index num_experts = table.logits.cols();
    for (Index e = 0; e < num_experts; ++e) {
      const Index last = table.order[static_cast<std::size_t>(b * num_experts + e)];
      if (last >= 0 && table.may_have(token, e) &&
          (token == last || is_before(table, e, token, last))) {
        body(e);
      }
    }
  }

  ExpertChoiceConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
