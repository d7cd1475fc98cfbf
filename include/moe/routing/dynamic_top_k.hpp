// SPDX-License-Identifier: Apache-2.0
// DynamicTopK: a rule for a token. It takes its best experts, but as many as it needs: those that
// together have a probability (top-p; Huang et al. 2024, Harder Tasks Need More Experts; Yang et
// al. 2024, XMoE), or each that is not much less probable than the best (min-p).
//
// Looks at one token, and is causal. What balances it is hugging_face_load_balancing_loss, which
// counts the tokens of an expert, not its share of the choices (Huang 2024).
#pragma once

#include <algorithm>
#include <optional>

#include "../flops.hpp"
#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// At least one of top_p and relative; with both, a token has the fewer.
struct DynamicTopKConfig {
  /// As few experts as have together at least this probability, in (0, 1].
  std::optional<double> top_p = std::nullopt;
  /// Those with at least this part of the largest probability, in (0, 1].
  std::optional<double> relative = std::nullopt;
  /// Whatever these say, no fewer and no more; `most` not set: all.
  Index least = 1;
  std::optional<Index> most = std::nullopt;
  WeightConfig weight = {.renormalise = false};

  void validate(Index num_experts) const {
    const auto in_unit = [](const std::optional<double>& value, const char* name) {
      detail::throw_unless(!value || (*value > 0.0 && *value <= 1.0), "DynamicTopK: ", name, " = ",
                           value.value_or(0.0), ", expected in (0, 1]");
    };
    detail::throw_unless(top_p || relative,
                         "DynamicTopK: top_p and relative are both not set, expected one");
    in_unit(top_p, "top_p");
    in_unit(relative, "relative");
    const Index limit = most.value_or(num_experts);
    detail::throw_unless(limit >= 1 && limit <= num_experts, "DynamicTopK: most = ", limit,
                         ", expected in [1, num_experts = ", num_experts, "]");
    detail::throw_unless(least >= 1 && least <= limit, "DynamicTopK: least = ", least,
                         ", expected in [1, most = ", limit, "]");
    weight.validate_without_tensors("DynamicTopK");
  }
};

/// Scores are a softmax. A row with a NaN has all `most` experts by top_p, `least` by relative.
template <Real W>
class DynamicTopK {
 public:
  using Params = NoParams;
  static constexpr const char* name = "DynamicTopK";

  /// Throws std::invalid_argument if the config is out of its range.
  DynamicTopK(Index num_experts, const DynamicTopKConfig& config)
      : num_experts_(num_experts), config_(config) {
    config.validate(num_experts);
  }

  Index num_experts() const { return num_experts_; }
  /// The most that a token can have: the width of the table.
  Index top_k() const { return config_.most.value_or(num_experts_); }
  const DynamicTopKConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  DynamicTopK<V> cast() const {
    return {num_experts_, config_};
  }
  double multiply_adds(Index rows) const { return score_work(rows, num_experts_); }

  /// Of the call that wrote the table; with padding or a mask, an upper bound.
  Flops forward_flops(const RoutingTable<W>& table) const {
    const Index width = top_k(), of_choice = weight_flops(config_.weight, width) / width;
    const Index tokens = table.num_tokens();
    const Index chosen = table.num_choices();
    Index looks = 0;  // at experts that are compared with the best
    for (Index token = 0; config_.relative && token < table.num_tokens(); ++token) {
      const Index count = table.num_choices(token);
      looks += count == 0 ? 0 : (std::min)(count + 1, width) - config_.least;
    }
    return detail::flops_of_one(
        0, tokens * score_flops(Score::softmax, num_experts_) + looks + chosen * (1 + of_choice));
  }
  Flops backward_flops(const RoutingTable<W>& table) const {
    const WeightConfig& weight = config_.weight;
    const Index width = top_k(), of_choice = weight_gradient_flops(weight, width) / width;
    const bool softmax = weight.source == WeightSource::softmax_of_chosen;
    const bool divides = weight.source != WeightSource::one && weight.renormalises(width);
    const Index unused = softmax ? 1 : divides ? 2 : 0;  // of a zero in the sums
    const Index tokens = table.num_tokens();
    const Index chosen = table.num_choices();
    return detail::flops_of_one(0, tokens * score_gradient_flops(Score::softmax, num_experts_) +
                                       chosen * of_choice + (tokens * width - chosen) * unused);
  }

  void route(const Params&, const TokenRoute<W>& token) const {
    write_scores(Score::softmax, token);
    const Index best =
        kernels::top_k(token.logits, token.allowed, token.num_experts, token.top_k, token.expert);
    const Index chosen = count(token, best);
    std::fill(token.expert + chosen, token.expert + token.top_k, none);
    write_weights(config_.weight, chosen, token);
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    add_weight_gradient(config_.weight, token);
    add_score_gradient(Score::softmax, token);
  }

 private:
  /// How many of the token's best experts it takes.
  Index count(const TokenRoute<W>& token, Index best) const {
    const auto prob = [&](Index k) { return token.probs[token.expert[k]]; };
    Index chosen = (std::min)(config_.least, best);
    W sum(0);
    for (Index k = 0; k < chosen; ++k) {
      sum += prob(k);
    }
    for (; chosen < best; ++chosen) {
      const bool enough = config_.top_p && sum >= W(*config_.top_p);
      const bool too_small = config_.relative && !(prob(chosen) >= W(*config_.relative) * prob(0));
      if (enough || too_small) {
        break;
      }
      sum += prob(chosen);
    }
    return chosen;
  }

  Index num_experts_;
  DynamicTopKConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
