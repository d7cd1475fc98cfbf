// SPDX-License-Identifier: Apache-2.0
// TopK: the rule of the published per-token routers. A score for each expert, the k best, their
// weights; what these routers differ in is data of RouterConfig.
#pragma once

#include <string_view>

#include "../parameters.hpp"
#include "score.hpp"
#include "selection.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A Tensor for each tensor of the rule: a matrix, or its Shape.
template <class Tensor>
struct TopKTensors {
  Tensor selection_bias = {};  ///< (1, E), or empty without selection.bias

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("selection_bias"), p.selection_bias...);
  }
};
template <Real W>
using TopKParams = TopKTensors<Matrix<W>>;

template <Real W>
class TopK {
 public:
  using Params = TopKParams<W>;
  static constexpr bool obeys_call = true;

  /// Throws std::invalid_argument if top_k or the config is out of its range.
  TopK(Index num_experts, Index top_k, const RouterConfig& config)
      : num_experts_(num_experts), top_k_(top_k), config_(config) {
    config.validate();
    detail::throw_unless(top_k >= 1 && top_k <= num_experts, "Router: top_k = ", top_k,
                         ", expected in [1, num_experts = ", num_experts, "]");
  }

  Index top_k() const { return top_k_; }
  const RouterConfig& config() const { return config_; }
  /// This rule in another scalar.
  template <Real V>
  TopK<V> cast() const {
    return {num_experts_, top_k_, config_};
  }
  bool probs_sum_to_one() const { return sums_to_one(config_.score); }
  /// A score takes as long as some eight of them.
  double multiply_adds(Index rows) const {
    return 8.0 * static_cast<double>(rows) * static_cast<double>(num_experts_);
  }

  /// A selection bias of zero, where there is one.
  Params initial_params() const { return {.selection_bias = Matrix<W>::Zero(1, biases())}; }
  /// What each tensor has to be.
  TopKTensors<Shape> shapes() const { return {.selection_bias = {1, biases()}}; }

  void route(const Params& params, const TokenRoute<W>& token) const {
    write_scores(config_.score, token);
    const W* bias = config_.selection.bias ? params.selection_bias.data() : nullptr;
    write_weights(config_.weight, select_experts(bias, token), token);
  }

  void backward(const Params&, const TokenGradient<W>& token) const {
    add_weight_gradient(config_.weight, token);
    add_score_gradient(config_.score, token);
  }

 private:
  Index biases() const { return config_.selection.bias ? num_experts_ : 0; }

  Index num_experts_, top_k_;
  RouterConfig config_;
};

constexpr Index top_k_parameters(const RouterConfig& config, Index num_experts) {
  return config.selection.bias ? num_experts : 0;
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

}  // namespace moe::inline MOE_INSTRUCTION_SET
