// SPDX-License-Identifier: Apache-2.0
// TwoLevel: a rule for a token, hierarchical routing in one layer. A token takes its best groups of
// experts, and of each its best experts; an expert weighs the weight of its group times its own
// within the group (Shazeer et al. 2017, Outrageously Large Neural Networks).
//
// The logits of all experts stand for both levels: the softmax over all is the probability of the
// group times that within it, so the logit of a group is the logarithm of the sum of the
// exponentials of its experts' logits. A layer of layers has gates of its own for each level.
//
// Looks at one token, and is causal. Of the balancing losses group_balancing_loss is that of the
// first level, load_balancing_loss that of both together.
#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels/topk.hpp"
#include "concepts.hpp"
#include "insert_choice.hpp"
#include "score.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Experts [i E / G, (i + 1) E / G) are group i.
struct TwoLevelConfig {
  Index num_groups = 1;
  Index top_groups = 1;  ///< that a token takes
  Index top_k = 1;       ///< experts that it takes of each

  static constexpr Index most_groups = 64;  ///< of a token

  void validate(Index num_experts) const {
    detail::throw_unless(num_groups >= 1 && num_experts % num_groups == 0,
                         "TwoLevel: num_groups = ", num_groups,
                         ", expected to divide num_experts = ", num_experts);
    const Index limit = (std::min)(num_groups, most_groups);
    detail::throw_unless(top_groups >= 1 && top_groups <= limit,
                         "TwoLevel: top_groups = ", top_groups, ", expected in [1, ", limit, "]");
    detail::throw_unless(top_k >= 1 && top_k <= num_experts / num_groups,
                         "TwoLevel: top_k = ", top_k,
                         ", expected in [1, experts of a group = ", num_experts / num_groups, "]");
  }
};

/// Scores are a softmax over all experts. Weights are softmaxes over what was chosen: of the
/// groups, and of the experts in each. A group without an allowed expert is never taken.
template <Real W>
class TwoLevel {
 public:
  using Params = NoParams;
  static constexpr const char* name = "TwoLevel";

  /// Throws std::invalid_argument if the config is out of its range.
  TwoLevel(Index num_experts, const TwoLevelConfig& config)
      : num_experts_(num_experts), config_(config) {
    config.validate(num_experts);
  }

  Index num_experts() const { return num_experts_; }
  Index top_k() const { return config_.top_groups * config_.top_k; }
  const TwoLevelConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  TwoLevel<V> cast() const {
    return {num_experts_, config_};
  }
  double multiply_adds(Index rows) const { return 2.0 * score_work(rows, num_experts_); }

  void route(const Params&, const TokenRoute<W>& token) const {
    write_scores(Score::softmax, token);
    std::fill(token.expert, token.expert + token.top_k, none);
    std::fill(token.weight, token.weight + token.top_k, W(0));
    ExpertId group[TwoLevelConfig::most_groups];
    W group_weight[TwoLevelConfig::most_groups];
    const Index groups = choose_groups(token, group, group_weight);
    Index count = 0;
    for (Index i = 0; i < groups; ++i) {
      count = choose_experts(token, group[i], group_weight[i], count);
    }
    for (Index k = 1; k < count; ++k) {
      const W weight = token.weight[k];
      insert_choice(token.expert[k], weight, k, token.expert, token.weight);
    }
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    W mean(0);
    for (Index k = 0; k < token.top_k && token.expert[k] != none; ++k) {
      mean += token.dweight[k] * token.weight[k];
    }
    for (Index group = 0; group < config_.num_groups; ++group) {
      add_group_gradient(token, group, mean);
    }
    add_score_gradient(Score::softmax, token);
  }

 private:
  Index group_size() const { return num_experts_ / config_.num_groups; }

  W group_logit(const W* logits, Index group) const {
    return kernels::log_sum_exp(logits + group * group_size(), group_size());
  }

  Index choose_groups(const TokenRoute<W>& token, ExpertId* group, W* weight) const {
    for (Index i = 0; i < config_.num_groups; ++i) {
      token.scratch[i] = group_logit(token.logits, i);
    }
    Index count =
        kernels::top_k(token.scratch, nullptr, config_.num_groups, config_.top_groups, group);
    while (count > 0 && !has_expert(token, group[count - 1])) {
      --count;
    }
    for (Index i = 0; i < count; ++i) {
      weight[i] = token.scratch[group[i]];
    }
    if (count > 0) {
      kernels::softmax(weight, count, weight);
    }
    return count;
  }

  bool has_expert(const TokenRoute<W>& token, Index group) const {
    const Index first = group * group_size();
    return token.allowed == nullptr ||
           std::any_of(token.allowed + first, token.allowed + first + group_size(),
                       [](std::uint8_t allowed) { return allowed != 0; });
  }

  /// Writes the choices of one group behind `count` others, returns how many there are then.
  Index choose_experts(const TokenRoute<W>& token, Index group, const W& group_weight,
                       Index count) const {
    const Index first = group * group_size();
    ExpertId* expert = token.expert + count;
    W* weight = token.weight + count;
    const std::uint8_t* allowed = token.allowed == nullptr ? nullptr : token.allowed + first;
    const Index chosen =
        kernels::top_k(token.logits + first, allowed, group_size(), config_.top_k, expert);
    for (Index k = 0; k < chosen; ++k) {
      weight[k] = token.logits[first + expert[k]];
      expert[k] += static_cast<ExpertId>(first);
    }
    kernels::softmax(weight, chosen, weight);
    for (Index k = 0; k < chosen; ++k) {
      weight[k] *= group_weight;
    }
    return count + chosen;
  }

  /// With a the weight of the group, which is the sum of its experts', and S the sum of their
  /// weights times gradients: d(group logit) = S - a mean, and within, dlogit_k = w_k dw_k - w_k S
  /// / a.
  void add_group_gradient(const TokenGradient<W>& token, Index group, const W& mean) const {
    using std::exp;
    const Index first = group * group_size(), last = first + group_size();
    const auto for_each_choice = [&](auto&& body) {
      for (Index k = 0; k < token.top_k && token.expert[k] != none; ++k) {
        if (token.expert[k] >= first && token.expert[k] < last) {
          body(k);
        }
      }
    };
    W weight(0), sum(0);
    for_each_choice([&](Index k) {
      weight += token.weight[k];
      sum += token.weight[k] * token.dweight[k];
    });
    if (weight <= W(0)) {
      return;  // not chosen, or as good as
    }
    for_each_choice([&](Index k) {
      token.dlogits[token.expert[k]] += token.weight[k] * (token.dweight[k] - sum / weight);
    });
    const W logit = group_logit(token.logits, group);
    for (Index e = first; e < last; ++e) {
      token.dlogits[e] += (sum - weight * mean) * exp(token.logits[e] - logit);
    }
  }

  Index num_experts_;
  TwoLevelConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
