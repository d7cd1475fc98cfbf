// SPDX-License-Identifier: Apache-2.0
// What a family's config makes of a layer before any tensor is read: the names and the shapes of
// its parameters.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "../experts/expert.hpp"
#include "../experts/latent.hpp"
#include "../experts/rank_one.hpp"
#include "../layers/layer_parts.hpp"
#include "family_router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// visit(name, shape) for the tensors of an expert or another part that are not empty.
template <class Shapes, class Visit>
void for_each_tensor(const std::string& name, const Shapes& shapes, Visit&& visit) {
  Shapes::for_each(
      [&](std::string_view tensor, const Shape& shape) {
        if (shape.rows * shape.cols > 0) {
          visit(joined(name, ".", tensor), shape);
        }
      },
      shapes);
}

}  // namespace detail

inline ExpertTensors<Shape> routed_expert_shapes(const LayerConfig& config, Index expert) {
  return expert_shapes(config.expert, config.expert_d_in(), config.d_ff_of(expert),
                       config.expert_d_out());
}
inline ExpertTensors<Shape> adjugate_shapes(const LayerConfig& config) {
  return expert_shapes(config.expert, config.expert_d_in(), config.adjugate.d_ff,
                       config.expert_d_out());
}
inline RankOneTensors<Shape> rank_one_shapes(const LayerConfig& config) {
  return {.down = {config.num_experts, config.d_model},
          .up = {config.num_experts, config.output_width()}};
}
/// Only where the config has one.
inline ExpertTensors<Shape> shared_expert_shapes(const MoEConfig& config) {
  return expert_shapes(config.shared_expert(), config.d_model, config.shared->d_ff,
                       config.output_width());
}

/// Of "router.weight". Compared first it keeps what is made of a config to the size of a tensor.
inline Shape router_weight_shape(const LayerConfig& config) {
  const bool by_state = config.router_type == RouterType::state_router;
  return {config.is_rank_one() ? 2 * config.product_keys.num_keys : config.num_experts,
          by_state ? config.state.d_state : config.d_model};
}

/// visit(name, shape) for every parameter of a layer of this config: "router.weight", ...
template <class Visit>
void for_each_shape(LayerConfig config, Visit&& visit) {
  config.router.selection.vocabulary = 0;  // the table is no parameter
  const auto visit_router = [&]<class RouterT>(std::type_identity<RouterT>) {
    const RouterT router = FamilyRouter<RouterT>::make(config, {});
    walk_params(router, {"router"}, [&](const ParameterName& name, const auto& tensor) {
      if (tensor.size() > 0) {
        visit(name.text(), Shape{tensor.rows(), tensor.cols()});
      }
    });
  };
  const bool rank_one = config.is_rank_one();
  if (rank_one) {
    visit_router(std::type_identity<ProductKeyRouter<float>>{});
    detail::for_each_tensor("experts", rank_one_shapes(config), visit);
  } else {
    visit_router_type<float>(config.router_type, visit_router);
  }
  for (Index e = 0; !rank_one && e < config.num_feed_forwards(); ++e) {
    detail::for_each_tensor(detail::joined("experts.", e), routed_expert_shapes(config, e), visit);
  }
  for (Index e = 0; e < config.adjugate.count; ++e) {
    detail::for_each_tensor(detail::joined("adjugates.", e), adjugate_shapes(config), visit);
  }
  if (config.shared) {
    detail::for_each_tensor("shared", shared_expert_shapes(config), visit);
    if (config.shared->coefficients) {
      detail::for_each_tensor("coefficients", coefficient_shapes(config.d_model), visit);
    }
  }
  if (config.latent) {
    detail::for_each_tensor(
        "latent", latent_shapes(*config.latent, config.d_model, config.output_width()), visit);
  }
  if (config.output_norm) {
    detail::for_each_tensor("output_norm", output_norm_shapes(config.output_width()), visit);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
