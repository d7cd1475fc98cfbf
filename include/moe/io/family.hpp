// SPDX-License-Identifier: Apache-2.0
// What a family of checkpoints is, as data: the names of its tensors, the keys of its config.json
// with what they are where they are left out, and what no key says. families.hpp has the families.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "../config.hpp"
#include "layouts.hpp"
#include "model_config.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// A number of a layer: that of the first of these keys, else `omitted`.
struct Setting {
  std::string_view keys = {};
  double omitted = std::numeric_limits<double>::quiet_NaN();  ///< NaN: the key must be there

  /// Throws FormatError where the config has none, and none may be left out.
  double of(const ModelConfig& config, Index layer) const {
    return config.number(keys, !std::isnan(omitted) ? std::optional<double>(omitted) : std::nullopt,
                         layer);
  }
  /// The same for sizes.
  Index size_of(const ModelConfig& config, Index layer) const {
    return config.size(
        keys,
        !std::isnan(omitted) ? std::optional<Index>(static_cast<Index>(omitted)) : std::nullopt,
        layer);
  }
  bool is_set(const ModelConfig& config, Index layer) const {
    return !moe::detail::equals(of(config, layer), 0.0);
  }
};

/// What no key of the family's says.
constexpr Setting always(double value) { return {{}, value}; }

namespace keys {

inline constexpr std::string_view num_experts =
    "num_experts n_routed_experts num_local_experts moe_num_experts";
inline constexpr std::string_view top_k =
    "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts";
inline constexpr std::string_view renormalise =
    "norm_topk_prob moe_renormalize route_norm norm_expert_prob";
inline constexpr std::string_view scale =
    "routed_scaling_factor route_scale router_scaling_factor moe_routed_scaling_factor "
    "moe_router_scaling_factor";
inline constexpr std::string_view num_shared =
    "n_shared_experts num_shared_experts num_shared_expert moe_num_shared_experts";
inline constexpr std::string_view groups = "n_group num_expert_group";

}  // namespace keys

/// A key that is refused unless it has this value: what the family's code can do, and ours cannot.
struct Only {
  std::string_view key = {}, value = {}, omitted = {};
};

/// The shared expert: width * count wide, none where that is 0.
struct SharedNames {
  std::string_view prefixes = {};  ///< any of these
  const FfnNames* names = &layouts::projections;
  std::string_view output_gate = {};  ///< of the block
  Setting width = {}, count = always(1);
};

/// Names are relative to the block; any of several with spaces between them.
struct Family {
  std::string_view model_types;     ///< in config.json; the first is the family's name
  std::string_view blocks = "mlp";  ///< in a decoder layer; empty: the layer itself
  std::string_view router = "gate.weight", router_bias = {}, selection_bias = {};
  FfnLayout experts = {"experts.*.", &layouts::projections};
  SharedNames shared = {};

  Setting d_model = {"hidden_size d_model"};
  Setting d_ff = {"moe_intermediate_size"};
  Setting num_experts = {keys::num_experts};
  Setting top_k = {keys::top_k};
  Setting renormalise = always(0);
  Setting scale = always(1);
  Setting jitter = always(0);
  Setting capacity = always(-1);           ///< rows; negative: dropless
  Setting has_router_bias = always(1);     ///< where it has a name
  Setting has_selection_bias = always(1);  ///< likewise
  std::string_view activation_keys = "hidden_act hidden_activation";
  RouterConfig rule = {};    ///< what the settings above leave as it is
  ExpertConfig expert = {};  ///< likewise
  WeightOn weight_on = WeightOn::output;
  std::array<Only, 3> only = {};

  std::string_view name() const { return model_types.substr(0, model_types.find(' ')); }
};

namespace detail {

struct ActivationName {
  std::string_view name;
  Activation activation;
};
inline constexpr std::array<ActivationName, 9> activation_names{
    {{"silu", Activation::silu},
     {"swish", Activation::silu},
     {"gelu", Activation::gelu_erf},
     {"gelu_new", Activation::gelu_tanh},
     {"gelu_fast", Activation::gelu_tanh},
     {"gelu_pytorch_tanh", Activation::gelu_tanh},
     {"relu", Activation::relu},
     {"relu2", Activation::relu_squared},
     {"squared_relu", Activation::relu_squared}}};

/// `omitted` where the config does not say.
inline Activation activation_of(const ModelConfig& config, std::string_view keys,
                                Activation omitted) {
  if (config.find(keys) == nullptr) {
    return omitted;
  }
  const std::string name = config.text(keys, {});
  std::string known;
  for (const ActivationName& each : activation_names) {
    if (each.name == name) {
      return each.activation;
    }
    known += joined(known.empty() ? "" : ", ", each.name);
  }
  config.fail(keys, joined("\"", printable(name, 40), "\""), joined("one of ", known));
}

inline void check_only(const Family& family, const ModelConfig& config, Index layer) {
  for (const Only& only : family.only) {
    if (only.key.empty()) {
      continue;
    }
    const JsonFact* const fact = config.find(only.key, layer);
    const std::string found = fact == nullptr                      ? std::string(only.omitted)
                              : fact->kind == JsonFact::Kind::text ? fact->text
                                                                   : fact->shown();
    if (found != only.value) {
      config.fail(only.key,
                  joined(printable(found, 40), fact == nullptr ? " (where it is left out)" : ""),
                  joined(only.value, ", all that is supported of ", family.name()));
    }
  }
}

}  // namespace detail

/// The config of a decoder layer. Throws FormatError, naming the key, where config.json does not
/// have what the family must say, or says what is not supported.
inline MoEConfig layer_config(const Family& family, const ModelConfig& config, Index layer) {
  detail::check_only(family, config, layer);
  MoEConfig made{.d_model = family.d_model.size_of(config, layer),
                 .d_ff = family.d_ff.size_of(config, layer),
                 .num_experts = family.num_experts.size_of(config, layer),
                 .top_k = family.top_k.size_of(config, layer),
                 .expert = family.expert,
                 .router = family.rule,
                 .weight_on = family.weight_on};
  RouterConfig& router = made.router;
  router.logits.input_jitter = family.jitter.of(config, layer);
  router.logits.bias = !family.router_bias.empty() && family.has_router_bias.is_set(config, layer);
  router.selection.bias =
      !family.selection_bias.empty() && family.has_selection_bias.is_set(config, layer);
  router.weight.renormalise = family.renormalise.is_set(config, layer);
  router.weight.scale = family.scale.of(config, layer);
  made.expert.activation =
      detail::activation_of(config, family.activation_keys, family.expert.activation);
  if (const double rows = family.capacity.of(config, layer); rows >= 0) {
    made.capacity.rows = family.capacity.size_of(config, layer);
  }
  if (!family.shared.prefixes.empty()) {
    const Index count = family.shared.count.size_of(config, layer);
    const Index width = count == 0 ? 0 : family.shared.width.size_of(config, layer);
    if (width > 0) {
      made.shared = SharedExpertConfig{.d_ff = width * count,
                                       .output_gate = !family.shared.output_gate.empty()};
    }
  }
  try {
    made.validate();
  } catch (const std::invalid_argument& error) {
    throw FormatError(config.file(), "", std::nullopt, error.what());
  }
  return made;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
