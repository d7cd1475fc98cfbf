// SPDX-License-Identifier: Apache-2.0
// TopK: the rule of the published per-token routers. A score for each expert, the k best, their
// weights; what these routers differ in is data of RouterConfig.
//
// Looks at one token, and is causal.
#pragma once

#include <string_view>
#include <utility>

#include "../flops.hpp"
#include "../parameters.hpp"
#include "expert_table.hpp"
#include "score.hpp"
#include "selection.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A Tensor for each tensor of the rule: a matrix, or its Shape.
template <class Tensor>
struct TopKTensors {
  Tensor selection_bias = {};  ///< (1, E - selection.always), or empty without selection.bias
  Tensor expert_scale = {};    ///< (1, E), (1, 1) for all, or empty without weight.expert_scale

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("selection_bias"), p.selection_bias...);
    visit(std::string_view("expert_scale"), p.expert_scale...);
  }
};
template <Real W>
using TopKParams = TopKTensors<Matrix<W>>;

/// How many of each a config has.
constexpr Index selection_biases(const RouterConfig& config, Index num_experts) {
  return config.selection.bias ? num_experts - config.selection.always : 0;
}
constexpr Index expert_scales(const RouterConfig& config, Index num_experts) {
  switch (config.weight.expert_scale) {
    case ExpertScale::off:
      return 0;
    case ExpertScale::learned_for_all:
      return 1;
    default:
      return num_experts;
  }
}

template <Real W>
class TopK {
 public:
  using Params = TopKParams<W>;
  static constexpr const char* name = "TopK";
  static constexpr bool obeys_call = true;

  /// Throws std::invalid_argument if top_k or the config is out of its range, or the table, which a
  /// config with selection.vocabulary needs, does not fit.
  TopK(Index num_experts, Index top_k, const RouterConfig& config, ExpertTable table = {})
      : num_experts_(num_experts), top_k_(top_k), config_(config), table_(std::move(table)) {
    detail::throw_unless(top_k >= 1 && top_k <= num_experts, "Router: top_k = ", top_k,
                         ", expected in [1, num_experts = ", num_experts, "]");
    config.validate(num_experts, top_k);
    check_expert_table(table_, config.selection.vocabulary, num_experts, top_k);
  }

  Index num_experts() const { return num_experts_; }
  Index top_k() const { return top_k_; }
  const RouterConfig& config() const { return config_; }
  /// (vocabulary, k), empty without selection by table.
  const ExpertTable& table() const { return table_; }
  /// This rule in another scalar.
  template <Real V>
  TopK<V> cast() const {
    return {num_experts_, top_k_, config_, table_};
  }
  bool probs_sum_to_one() const { return sums_to_one(config_.score); }
  /// Of so many tokens, without masks.
  Flops forward_flops(Index tokens) const;
  Flops backward_flops(Index tokens) const;
  double multiply_adds(Index rows) const { return score_work(rows, num_experts_); }

  /// Throws std::invalid_argument if the call asks for what the config cannot give.
  void check_call(const CallOptions& call, Index num_tokens) const {
    if (table_.size() > 0) {
      check_token_ids(table_, call, num_tokens);
    }
    const auto& groups = config_.selection.groups;
    if (call.top_k && groups && groups->rule == GroupRule::equal_quota) {
      groups->check_quota(*call.top_k, "top_k of the call");
    }
    const Index always = config_.selection.always;
    detail::throw_unless(!call.top_k || *call.top_k > always,
                         "CallOptions: top_k = ", call.top_k.value_or(0),
                         ", expected more than selection.always = ", always);
  }

  /// A selection bias of zero and scales of one, where there are any.
  Params initial_params() const {
    return {.selection_bias = Matrix<W>::Zero(1, biases()),
            .expert_scale = Matrix<W>::Ones(1, scales())};
  }
  /// What each tensor has to be.
  TopKTensors<Shape> shapes() const {
    return {.selection_bias = {1, biases()}, .expert_scale = {1, scales()}};
  }

  void route(const Params& params, const TokenRoute<W>& token) const {
    write_scores(config_.score, token);
    const WeightTensors<W> tensors = weight_tensors(params);
    const Index chosen = table_.size() > 0
                             ? select_from_table(table_, token)
                             : select_experts(config_.selection, tensors.selection_bias, token);
    write_weights(config_.weight, chosen, token, tensors);
  }

  void backward(const Params& params, const TokenGradient<W>& token) const {
    add_weight_gradient(config_.weight, token, weight_tensors(params));
    add_score_gradient(config_.score, token);
  }

  /// grads +=, of what is learned: the scales of the experts.
  void backward_params(const Params& params, const GatedTable<W>& table,
                       RoutingGradient<W>& gradient, Params& grads) const {
    for (Index token = 0; is_learned(config_.weight.expert_scale) && token < table.num_tokens();
         ++token) {
      if (!table.is_padding(token)) {
        add_expert_scale_gradient(config_.weight, token_gradient(token, table, gradient),
                                  weight_tensors(params), grads.expert_scale.data());
      }
    }
  }

 private:
  Index biases() const { return selection_biases(config_, num_experts_); }
  Index scales() const { return expert_scales(config_, num_experts_); }
  WeightTensors<W> weight_tensors(const Params& params) const {
    return {.selection_bias = biases() > 0 ? params.selection_bias.data() : nullptr,
            .expert_scale = scales() > 0 ? params.expert_scale.data() : nullptr,
            .one_scale = config_.weight.expert_scale == ExpertScale::learned_for_all};
  }

  Index num_experts_, top_k_;
  RouterConfig config_;
  ExpertTable table_;
};

constexpr Index top_k_parameters(const RouterConfig& config, Index num_experts) {
  return selection_biases(config, num_experts) + expert_scales(config, num_experts);
}

/// FLOPs of a token, by the rule of cost.hpp.
constexpr Index top_k_flops(const RouterConfig& config, Index num_experts, Index top_k) {
  return score_flops(config.score, num_experts) + selection_flops(config.selection, num_experts) +
         weight_flops(config.weight, top_k);
}
constexpr Index top_k_gradient_flops(const RouterConfig& config, Index num_experts, Index top_k) {
  return weight_gradient_flops(config.weight, top_k) +
         score_gradient_flops(config.score, num_experts);
}

template <Real W>
Flops TopK<W>::forward_flops(Index tokens) const {
  return tokens * detail::flops_of_one(0, top_k_flops(config_, num_experts_, top_k_));
}
template <Real W>
Flops TopK<W>::backward_flops(Index tokens) const {
  return tokens * detail::flops_of_one(0, top_k_gradient_flops(config_, num_experts_, top_k_));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
