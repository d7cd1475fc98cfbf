// SPDX-License-Identifier: Apache-2.0
// A layer of a family's config, of random numbers, as its checkpoints would hold one.
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "moe/io/load_layer.hpp"

namespace moe::io::testing {

/// visit(std::type_identity<router>, std::type_identity<expert>) of the types of its layers.
template <class Visit>
void visit_layer_types(const Family& family, Visit&& visit) {
  visit_router_type<float>(family.router_type, [&]<class RouterT>(std::type_identity<RouterT> r) {
    if constexpr (std::same_as<RouterT, Router<float>>) {
      if (!family.copies.keys.empty()) {
        return visit(r, std::type_identity<ZeroExperts<float>>{});
      }
    }
    visit(r, std::type_identity<Expert<float>>{});
  });
}

template <Real T, class RouterT = Router<T>, class E = Expert<T>>
MoELayer<T, RouterT, E> random_layer(const LayerConfig& config) {
  std::vector<Expert<T>> experts;
  for (Index e = 0; e < config.num_feed_forwards(); ++e) {
    experts.emplace_back(
        typename Expert<T>::Sizes{config.expert_d_in(), config.d_ff, config.expert_d_out()},
        config.expert, static_cast<std::uint64_t>(e + 2));
  }
  return {
      FamilyRouter<RouterT>::make(config, random_expert_table(config.router.selection.vocabulary,
                                                              config.num_experts, config.top_k, 3)),
      detail::with_zero_experts<typename MoELayer<T, RouterT, E>::Set>(
          FfnExperts<T>(std::move(experts)), config),
      config.options(), make_shared_expert<T>(config, 1), make_latent<T>(config, 1)};
}

}  // namespace moe::io::testing
