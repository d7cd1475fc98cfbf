// SPDX-License-Identifier: Apache-2.0
// Before a layer is saved: whether its family's readers will take it for what it is. What a
// config.json that is there already says, and else what the family's row does, is held against the
// layer, and the tensors that such a layer must have against its parameters.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "../layers/moe_layer.hpp"
#include "../layers/product_key_layer.hpp"
#include "known_layer.hpp"
#include "layer_shapes.hpp"
#include "read_back_experts.hpp"
#include "read_back_router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

inline void expect_capacity(const Known& known, const Capacity& found) {
  const Family& family = known.family;
  if (!known.config && !family.capacity_share.keys.empty()) {
    return;  // which of both it is, keys say
  }
  const auto rows = known.value(family.capacity);
  Capacity read = known.config ? known.config->capacity : Capacity{};
  if (!known.config) {
    read.rows = rows && *rows >= 0 ? std::optional(static_cast<Index>(*rows)) : std::nullopt;
  }
  known.expect_or_none("capacity.factor", found.factor, read.factor);
  if (known.config || rows) {
    known.expect_or_none("capacity.rows", found.rows, read.rows);
  }
  if (found.limited()) {
    known.expect_kind("capacity.policy", found.policy, read.policy);
  }
}

inline void expect_options(const Known& known, const LayerOptions& found, bool has_shared) {
  const Family& family = known.family;
  const auto& config = known.config;
  known.expect_kind("weight_on", found.weight_on, family.weight_on);
  if (has_shared && (config || family.shared.averaged.key.empty())) {
    known.expect("shared_scale", found.shared_scale, config ? config->shared->scale : 1.0);
  }
  if (config) {
    known.expect("routed_scale", found.routed_scale, config->routed_scale);
  } else if (family.shared.averaged.key.empty() && family.dropout.keys.empty()) {
    known.expect("routed_scale", found.routed_scale, known.value(family.routed_scale));
  }
  expect_capacity(known, found.capacity);
}

/// What some layers have around their experts.
template <class Layer>
void expect_extras(const Known& known, const Layer& layer) {
  const Family& family = known.family;
  if (layer.shared()) {
    known.expect("coefficients of the outputs", layer.coefficients().has_value(),
                 !family.shared.coefficients.empty());
  }
  known.expect("a norm of the output", layer.output_norm().has_value(),
               !family.output_norm.empty());
  if (layer.latent()) {
    known.expect("latent.norm", layer.latent()->config().norm, known.on(family.latent.has_norm));
  }
  if (layer.latent() && known.config && known.config->latent) {
    known.expect("latent.eps", layer.latent()->config().eps, known.config->latent->eps);
  }
  if (layer.output_norm() && known.config) {
    known.expect("output_norm.eps", layer.output_norm()->config().eps,
                 known.config->output_norm->eps);
  }
}

/// Every parameter that readers ask for by the config, of their shape, and no other.
template <class Layer>
void expect_parameters(const Known& known, const Layer& layer) {
  std::map<std::string, Shape> left;
  layer.for_each_parameter([&](const std::string& name, const auto& parameter) {
    left[name] = {parameter.rows(), parameter.cols()};
  });
  const auto text = [](const Shape& shape) {
    return moe::detail::joined("(", shape.rows, ", ", shape.cols, ")");
  };
  const auto ask = [&](const std::string& name, const Shape& shape) {
    const auto found = left.find(name);
    if (found == left.end()) {
      known.fail(name, "none", text(shape));
    }
    if (found->second.rows != shape.rows || found->second.cols != shape.cols) {
      known.fail(name, text(found->second), text(shape));
    }
  };
  ask("router.weight", router_weight_shape(*known.config));
  for_each_shape(*known.config, [&](const std::string& name, const Shape& shape) {
    ask(name, shape);
    left.erase(name);
  });
  if (!left.empty()) {
    known.fail(left.begin()->first, text(left.begin()->second), "none");
  }
}

/// Throws std::invalid_argument, naming the first difference, unless readers of the family take the
/// layer for what it is: by the config.json of the directory, if there is one, else by what the row
/// says whatever the config. The prefix is that of SaveOptions::layer.
template <Real T, class RouterT, class E>
void check_read_back(const MoELayer<T, RouterT, E>& layer, const Family& family,
                     const std::filesystem::path& directory, std::string_view prefix) {
  const Known known = Known::of(family, directory, prefix);
  moe::detail::throw_unless(is_made<RouterT>(family.router_type),
                            "save_layers: the router is of another type, but readers of family ",
                            family.name(), " take it to be a ", name(family.router_type));
  if constexpr (requires {
                  { layer.router().rule().config() } -> std::same_as<const RouterConfig&>;
                }) {
    expect_router(known, layer.router().rule().config(), layer.router().top_k());
  }
  expect_own_parts(known, layer.router());
  const auto& set = routed_set(layer.experts());
  const ExpertConfig& kind = set[0].config();
  expect_expert(known, kind);
  known.expect("expert.gated", kind.gated, family.expert.gated);
  known.expect("expert.bias", kind.bias, known.on(family.has_expert_bias));
  expect_one_kind(family, kind, set);
  expect_other_experts(known, kind, layer.experts());
  expect_shared(known, kind, layer.shared());
  expect_options(known, layer.options(), layer.shared().has_value());
  expect_extras(known, layer);
  known.expect("d_out", layer.d_out(), layer.d_in());
  if (known.config) {
    expect_parameters(known, layer);
  }
}

/// The same of product keys.
template <Real T>
void check_read_back(const ProductKeyLayer<T>& layer, const Family& family,
                     const std::filesystem::path& directory, std::string_view prefix) {
  const Known known = Known::of(family, directory, prefix);
  const ProductKeyConfig& keys = layer.router().config();
  known.expect_kind("router.reading", keys.reading, KeyReading::across_batch);
  known.expect("top_k", static_cast<double>(keys.top_k),
               known.config ? static_cast<double>(known.config->top_k) : known.value(family.top_k));
  const ExpertConfig& kind = layer.experts().config();
  expect_expert(known, kind);
  expect_shared(known, kind, layer.shared());
  known.expect("d_out", layer.d_out(), layer.d_in());
  if (known.config) {
    expect_parameters(known, layer);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
