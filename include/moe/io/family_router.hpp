// SPDX-License-Identifier: Apache-2.0
// The routers that families have as types, and one made of a layer's config.
#pragma once

#include <string_view>
#include <type_traits>
#include <utility>

#include "../routing/linear_router.hpp"
#include "../routing/product_keys.hpp"
#include "../routing/router.hpp"
#include "family_config.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// The router of Gemma 4: a norm of its input before the top-k rule.
template <Real T>
using NormRouter = GatedRouter<T, NormGate<T>, TopK<Wide<T>>>;
/// The router of Phi-3.5-MoE.
template <Real T>
using SparseMixerRouter = LinearRouter<T, SparseMixer<Wide<T>>>;

/// The router of NLLB-MoE: a second expert that is not always taken.
template <Real T>
using SecondExpertRouter = LinearRouter<T, SecondExpert<Wide<T>>>;

/// The router of ZAYA1, with a state from layer to layer.
template <Real T>
using StateRouter = GatedRouter<T, StateGate<T>, TopK<Wide<T>>>;

/// A router that load_layer() makes: which RouterType it is, what that is called in messages, and
/// one of the config with random weights and, where it selects by table, this one.
template <class RouterT>
struct FamilyRouter;

template <Real T>
struct FamilyRouter<Router<T>> {
  static constexpr RouterType type = RouterType::router;
  static Router<T> make(const LayerConfig& config, ExpertTable table) {
    const LinearGate<T> gate(config.d_model, config.num_experts, config.router.logits);
    const TopK<Wide<T>> rule(config.num_experts, config.top_k, config.router, table);
    return {{gate.initial_params(0), rule.initial_params()},
            config.top_k,
            config.router,
            std::move(table)};
  }
};

template <Real T>
struct FamilyRouter<NormRouter<T>> {
  static constexpr RouterType type = RouterType::norm_router;
  static NormRouter<T> make(const LayerConfig& config, ExpertTable table) {
    NormGate<T> gate(config.d_model, config.num_experts, config.router.logits, config.router_norm);
    TopK<Wide<T>> rule(config.num_experts, config.top_k, config.router, std::move(table));
    auto params = typename NormRouter<T>::Params{gate.initial_params(0), rule.initial_params()};
    return {std::move(gate), std::move(rule), std::move(params)};
  }
};

template <Real T>
struct FamilyRouter<SparseMixerRouter<T>> {
  static constexpr RouterType type = RouterType::sparse_mixer;
  static SparseMixerRouter<T> make(const LayerConfig& config, const ExpertTable&) {
    return linear_router<T>(config.d_model, config.num_experts,
                            SparseMixer<Wide<T>>(config.num_experts, config.sparse_mixer), 0,
                            config.router.logits);
  }
};

template <Real T>
struct FamilyRouter<SecondExpertRouter<T>> {
  static constexpr RouterType type = RouterType::second_expert;
  static SecondExpertRouter<T> make(const LayerConfig& config, const ExpertTable&) {
    return linear_router<T>(config.d_model, config.num_experts,
                            SecondExpert<Wide<T>>(config.num_experts, config.second_expert), 0,
                            config.router.logits);
  }
};

template <Real T>
struct FamilyRouter<StateRouter<T>> {
  static constexpr RouterType type = RouterType::state_router;
  static StateRouter<T> make(const LayerConfig& config, ExpertTable table) {
    StateGate<T> gate(config.d_model, config.num_experts, config.state);
    TopK<Wide<T>> rule(config.num_experts, config.top_k, config.router, std::move(table));
    auto params = typename StateRouter<T>::Params{gate.initial_params(0), rule.initial_params()};
    return {std::move(gate), std::move(rule), std::move(params)};
  }
};

template <Real T>
struct FamilyRouter<ProductKeyRouter<T>> {
  static constexpr RouterType type = RouterType::product_keys;
  static ProductKeyRouter<T> make(const LayerConfig& config, const ExpertTable&) {
    return {config.d_model, config.product_keys, 0};
  }
};

/// visit(std::type_identity<the router's type>) of a RouterType of a MoELayer, for tokens in T.
template <Real T, class Visit>
decltype(auto) visit_router_type(RouterType type, Visit&& visit) {
  switch (type) {
    case RouterType::norm_router:
      return visit(std::type_identity<NormRouter<T>>{});
    case RouterType::sparse_mixer:
      return visit(std::type_identity<SparseMixerRouter<T>>{});
    case RouterType::second_expert:
      return visit(std::type_identity<SecondExpertRouter<T>>{});
    case RouterType::state_router:
      return visit(std::type_identity<StateRouter<T>>{});
    default:
      return visit(std::type_identity<Router<T>>{});
  }
}

inline std::string_view name(RouterType type) {
  return type == RouterType::norm_router     ? "NormRouter"
         : type == RouterType::sparse_mixer  ? "SparseMixerRouter"
         : type == RouterType::second_expert ? "SecondExpertRouter"
         : type == RouterType::state_router  ? "StateRouter"
         : type == RouterType::product_keys  ? "ProductKeyRouter"
                                             : "Router";
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
