// SPDX-License-Identifier: Apache-2.0
// Router<T>: the first step of the flow, a linear gate and the top-k rule. Every published
// per-token router is data of its config.
#pragma once

#include "gate.hpp"
#include "gated_router.hpp"
#include "top_k.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// weight (E, D), bias (1, E), noise (E, D), and those of TopKTensors; empty what the router has
/// not.
template <Real W>
using RouterParams = GatedParams<LinearGateParams<W>, TopKParams<W>>;

template <Real T>
class Router : public GatedRouter<T, LinearGate<T>, TopK<Wide<T>>> {
  using Base = GatedRouter<T, LinearGate<T>, TopK<Wide<T>>>;

 public:
  using typename Base::Params;

  /// Weights from N(0, 1 / d_model), biases and noise projection zero, scales one; if there is a
  /// table, random experts for each id.
  Router(Index d_model, Index num_experts, Index top_k, const RouterConfig& config,
         std::uint64_t seed)
      : Router(LinearGate<T>(d_model, num_experts, config.logits),
               TopK<Wide<T>>(
                   num_experts, top_k, config,
                   random_expert_table(config.selection.vocabulary, num_experts, top_k, seed)),
               seed) {}

  /// Takes ready parameters, and a table of experts (vocabulary, k) for selection by it. Throws
  /// std::invalid_argument if their shapes do not fit each other or the config.
  Router(Params params, Index top_k, const RouterConfig& config, ExpertTable table = {})
      : Router(LinearGate<T>(params.weight.cols(), params.weight.rows(), config.logits),
               TopK<Wide<T>>(params.weight.rows(), top_k, config, std::move(table)),
               std::move(params)) {}

  const RouterConfig& config() const { return this->rule().config(); }

  /// This router for tokens in another scalar. Throws std::invalid_argument unless the parameters
  /// have their shapes.
  template <Real U>
  Router<U> cast() const {
    this->check_params({"Router"});
    return {cast_params<RouterParams<Wide<U>>>(this->params()), this->top_k(), config(),
            this->rule().table()};
  }

 private:
  Router(const LinearGate<T>& gate, const TopK<Wide<T>>& rule, std::uint64_t seed)
      : Base(gate, rule, {gate.initial_params(seed), rule.initial_params()}) {}
  Router(const LinearGate<T>& gate, const TopK<Wide<T>>& rule, Params&& params)
      : Base(gate, rule, std::move(params)) {}
};

/// The router of a config, with random weights from the seed.
template <Real T>
Router<T> make_router(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  return Router<T>(config.d_model, config.num_experts, config.top_k, config.router,
                   detail::seed_of(seed, 0));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
