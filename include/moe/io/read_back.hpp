// SPDX-License-Identifier: Apache-2.0
// Before a layer is saved: whether its family's readers will take it for what it is. Tensors show
// the shapes; what they do not show, as the score or a scale, the family's row fixes, or a
// config.json that is there already.
#pragma once

#include <filesystem>
#include <limits>
#include <optional>
#include <string>

#include "../layers/moe_layer.hpp"
#include "../layers/product_key_layer.hpp"
#include "checkpoint.hpp"
#include "family_router.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// What readers know of a decoder layer: a config, or what the row says without one.
struct Known {
  const Family& family;
  std::optional<ModelConfig> model;
  Index layer;

  /// By the config.json of a directory, if there is one. The prefix is that of
  /// SaveOptions::layer.
  static Known of(const Family& family, const std::filesystem::path& directory,
                  std::string_view prefix) {
    const std::filesystem::path file = directory / "config.json";
    std::string_view path = prefix.substr(0, prefix.size() - (prefix.ends_with('.') ? 1 : 0));
    return {
        family,
        std::filesystem::exists(file) ? std::optional(ModelConfig::load(file, {})) : std::nullopt,
        split_layer(path).value_or(0)};
  }
  std::optional<LayerConfig> config() const {
    return model ? std::optional(layer_config(family, *model, layer)) : std::nullopt;
  }
  /// Nothing where a key is to say it.
  std::optional<double> value(const Setting& setting) const {
    if (model) {
      return setting.of(*model, layer);
    }
    return setting.keys.empty() ? std::optional(setting.omitted) : std::nullopt;
  }
  /// Throws std::invalid_argument unless they will read what was found.
  void expect(const char* name, double found, std::optional<double> read) const {
    moe::detail::throw_unless(!read || moe::detail::equals(found, *read), "save_layers: ", name,
                              " = ", found, ", but readers of family ", family.name(),
                              " take it to be ", read.value_or(0.0));
  }
  /// The same of kinds.
  template <class Enum>
  void expect_kind(const char* name, Enum found, Enum read) const {
    moe::detail::throw_unless(found == read, "save_layers: ", name, " = ", static_cast<int>(found),
                              " of its enum, but readers of family ", family.name(),
                              " take it to be ", static_cast<int>(read));
  }
};

inline void expect_router(const Known& known, const std::optional<LayerConfig>& config,
                          const RouterConfig& found, Index top_k) {
  const bool by_config = known.family.other_rule.when.key.empty() || config.has_value();
  const RouterConfig& read = config ? config->router : known.family.rule;
  if (by_config) {
    known.expect_kind("router.score", found.score, read.score);
    known.expect_kind("router.weight.source", found.weight.source, read.weight.source);
    known.expect_kind("router.weight.expert_scale", found.weight.expert_scale,
                      read.weight.expert_scale);
  }
  if (found.weight.source != WeightSource::softmax_of_chosen) {
    const auto renormalise = known.value(known.family.renormalise);
    known.expect("router.weight.renormalise", found.weight.renormalises(top_k) ? 1.0 : 0.0,
                 renormalise ? std::optional(moe::detail::equals(*renormalise, 0.0) ? 0.0 : 1.0)
                             : std::nullopt);
  }
  known.expect("router.weight.scale", found.weight.scale, known.value(known.family.scale));
  known.expect("router.logits.softcap", found.logits.softcap, known.value(known.family.softcap));
  if (config) {
    known.expect("top_k", static_cast<double>(top_k), static_cast<double>(config->top_k));
    known.expect(
        "router.selection.groups",
        static_cast<double>(found.selection.groups ? found.selection.groups->num_groups : 1),
        static_cast<double>(read.selection.groups ? read.selection.groups->num_groups : 1));
  }
}

inline void expect_expert(const Known& known, const std::optional<LayerConfig>& config,
                          const ExpertConfig& found) {
  const ExpertConfig& read = config ? config->expert : known.family.expert;
  if (config || known.family.activation_keys.empty()) {
    known.expect_kind("expert.activation", found.activation, read.activation);
  }
  constexpr double none = std::numeric_limits<double>::infinity();
  known.expect("expert.up_offset", found.up_offset, read.up_offset);
  if (config) {
    known.expect("expert.limit", found.limit.value_or(none), read.limit.value_or(none));
  }
  ExpertConfig all = read;
  all.gated = found.gated;  // these three tensors show
  all.bias = found.bias;
  all.output_gate = found.output_gate;
  if (!config) {  // these keys may say
    all.activation = found.activation;
    all.limit = found.limit;
    all.alpha = found.alpha;
    all.gate_bound = found.gate_bound;
    all.up_bound = found.up_bound;
  }
  moe::detail::throw_unless(all == found,
                            "save_layers: the expert's clamp, alpha or bounds are not those that "
                            "readers of family ",
                            known.family.name(), " take");
}

/// Whether readers make a router of this type, or one that does the same.
template <class RouterT>
constexpr bool is_made(RouterType type) {
  if constexpr (requires { FamilyRouter<RouterT>::type; }) {
    return FamilyRouter<RouterT>::type == type;
  } else if constexpr (requires(const RouterT& router) {
                         { router.rule().config() } -> std::same_as<const RouterConfig&>;
                       }) {
    return type == RouterType::router;
  } else {
    return false;
  }
}

/// Numbers of the parts that some layers have, and a config tells.
template <class Layer>
void expect_parts(const Known& known, const LayerConfig& config, const Layer& layer) {
  if constexpr (requires { layer.router().gate().norm(); }) {
    known.expect("router.norm.epsilon", layer.router().gate().norm().epsilon,
                 config.router_norm.epsilon);
    known.expect("router.norm.factor", layer.router().gate().norm().factor,
                 config.router_norm.factor);
  }
  if constexpr (requires { layer.router().gate().config().epsilon; }) {
    known.expect("router.epsilon", layer.router().gate().config().epsilon, config.state.epsilon);
  }
  if constexpr (requires { layer.router().rule().config().jitter; }) {
    known.expect("router.jitter", layer.router().rule().config().jitter,
                 config.sparse_mixer.jitter);
  }
  if constexpr (requires { layer.router().rule().config().policy; }) {
    const SecondExpertConfig& found = layer.router().rule().config();
    known.expect_kind("router.policy", found.policy, config.second_expert.policy);
    known.expect_kind("router.normalise", found.normalise, config.second_expert.normalise);
  }
  if (layer.latent() && config.latent) {
    known.expect("latent.eps", layer.latent()->config().eps, config.latent->eps);
  }
  if (layer.output_norm() && config.output_norm) {
    known.expect("output_norm.eps", layer.output_norm()->config().eps, config.output_norm->eps);
  }
}

/// The experts that have parameters.
template <class Set>
const auto& routed_set(const Set& experts) {
  if constexpr (requires { experts.set(); }) {
    return experts.set();
  } else {
    return experts;
  }
}

/// Readers take all routed experts to be of one kind: that of the first, which expect_expert() has
/// seen.
template <class Set>
void expect_one_kind(const Family& family, const ExpertConfig& first, const Set& set) {
  for (Index e = 0; e < set.num_experts(); ++e) {
    moe::detail::throw_unless(
        set[static_cast<std::size_t>(e)].config() == first, "save_layers: the config of expert ", e,
        " is not that of the first, as readers of family ", family.name(), " take it to be");
  }
}

/// And the shared one is of the same kind, but for what its tensors and keys of its own say.
template <Real T>
void expect_shared(const Known& known, const std::optional<LayerConfig>& config,
                   const ExpertConfig& routed, const DenseFfn<T>& shared) {
  const ExpertConfig& found = shared.expert().config();
  known.expect("the number of shared experts", 1.0,
               config ? std::optional(config->shared ? 1.0 : 0.0) : std::nullopt);
  ExpertConfig read = routed;
  read.gated = found.gated;
  read.bias = found.bias;
  read.output_gate = found.output_gate;
  read.limit = config ? config->shared->limit : found.limit;
  moe::detail::throw_unless(read == found,
                            "save_layers: activation, limit, clamp, alpha or bounds of the shared "
                            "expert are not those that readers of family ",
                            known.family.name(), " take");
}

/// Throws std::invalid_argument, naming the first difference, unless readers of the family take the
/// layer for what it is: by the config.json of the directory, if there is one, else by what the row
/// says whatever the config. The prefix is that of SaveOptions::layer.
template <Real T, class RouterT, class E>
void check_read_back(const MoELayer<T, RouterT, E>& layer, const Family& family,
                     const std::filesystem::path& directory, std::string_view prefix) {
  const Known known = Known::of(family, directory, prefix);
  const std::optional<LayerConfig> config = known.config();
  moe::detail::throw_unless(is_made<RouterT>(family.router_type),
                            "save_layers: the router is of another type, but readers of family ",
                            family.name(), " take it to be a ", name(family.router_type));
  if constexpr (requires {
                  { layer.router().rule().config() } -> std::same_as<const RouterConfig&>;
                }) {
    expect_router(known, config, layer.router().rule().config(), layer.router().top_k());
  }
  const auto& set = routed_set(layer.experts());
  const ExpertConfig& kind = set[0].config();
  expect_expert(known, config, kind);
  expect_one_kind(family, kind, set);
  if constexpr (requires { layer.experts().adjugates(); }) {
    expect_one_kind(family, kind, layer.experts().adjugates());
    known.expect("the scale of small experts", layer.experts().scale(),
                 known.value(family.adjugates.scale));
    if (config) {
      known.expect("the number of small experts",
                   static_cast<double>(layer.experts().adjugates().num_experts()),
                   static_cast<double>(config->adjugate.count));
    }
  }
  const LayerOptions& options = layer.options();
  known.expect_kind("weight_on", options.weight_on, family.weight_on);
  if (layer.shared()) {
    expect_shared(known, config, kind, *layer.shared());
    if (config || family.shared.averaged.key.empty()) {
      known.expect("shared_scale", options.shared_scale, config ? config->shared->scale : 1.0);
    }
  }
  if (config) {
    expect_parts(known, *config, layer);
    known.expect("routed_scale", options.routed_scale, config->routed_scale);
    known.expect("capacity.rows", static_cast<double>(options.capacity.rows.value_or(-1)),
                 static_cast<double>(config->capacity.rows.value_or(-1)));
  } else if (family.shared.averaged.key.empty() && family.dropout.keys.empty()) {
    known.expect("routed_scale", options.routed_scale, known.value(family.routed_scale));
  }
}

/// The same of product keys.
template <Real T>
void check_read_back(const ProductKeyLayer<T>& layer, const Family& family,
                     const std::filesystem::path& directory, std::string_view prefix) {
  const Known known = Known::of(family, directory, prefix);
  const std::optional<LayerConfig> config = known.config();
  const ProductKeyConfig& keys = layer.router().config();
  known.expect_kind("router.reading", keys.reading, KeyReading::across_batch);
  const ExpertConfig& kind = layer.experts().config();
  expect_expert(known, config, kind);
  if (layer.shared()) {
    expect_shared(known, config, kind, *layer.shared());
  }
  if (config) {
    known.expect("top_k", static_cast<double>(keys.top_k), static_cast<double>(config->top_k));
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
