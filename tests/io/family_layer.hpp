// SPDX-License-Identifier: Apache-2.0
// A layer of a family's config, of random numbers, as its checkpoints would hold one.
#pragma once

#include <type_traits>

#include "moe/io/load_layer.hpp"
#include "support/family_experts.hpp"

namespace moe::io::testing {

/// visit(std::type_identity<router>, std::type_identity<expert>) of the types of its layers.
template <class Visit>
void visit_layer_types(const Family& family, Visit&& visit) {
  visit_router_type<float>(family.router_type, [&]<class RouterT>(std::type_identity<RouterT> r) {
    if constexpr (std::same_as<RouterT, Router<float>> ||
                  std::same_as<RouterT, StateRouter<float>>) {
      if (!family.copies.keys.empty() || family.zeros.omitted > 0.0) {
        return visit(r, std::type_identity<ZeroExperts<float>>{});
      }
    }
    if constexpr (std::same_as<RouterT, Router<float>>) {
      if (family.adjugates.layout.names != nullptr) {
        return visit(r, std::type_identity<AdjugateExperts<float>>{});
      }
    }
    visit(r, std::type_identity<Expert<float>>{});
  });
}

template <Real T, class RouterT = Router<T>, class E = Expert<T>>
MoELayer<T, RouterT, E> random_layer(const LayerConfig& config) {
  return {
      FamilyRouter<RouterT>::make(config, random_expert_table(config.router.selection.vocabulary,
                                                              config.num_experts, config.top_k, 3)),
      detail::set_of<typename MoELayer<T, RouterT, E>::Set, FfnExperts<T>>(experts_of<T>(config, 1),
                                                                           config),
      config.options(), make_shared_expert<T>(config, 1), make_extras<T>(config, 1)};
}

/// The same of a family whose layers are ProductKeyLayers, and whether it is one.
inline bool has_product_keys(const Family& family) {
  return family.router_type == RouterType::product_keys;
}
template <Real T>
ProductKeyLayer<T> random_product_key_layer(const LayerConfig& config) {
  return ProductKeyLayer<T>(product_key_layer_config(config), 1);
}

}  // namespace moe::io::testing
