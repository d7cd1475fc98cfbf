// SPDX-License-Identifier: Apache-2.0
// What a family of checkpoints is, as data: the names of its tensors, the keys of its config.json
// with what they are where they are left out, and what no key says. families.hpp has the families.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
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

/// Whether a key has one of these values, with spaces between them. One that is left out or null
/// has the value `omitted`.
struct Is {
  std::string_view key = {}, values = {}, omitted = {};

  std::string found(const ModelConfig& config, Index layer) const {
    const JsonFact* const fact = config.find(key, layer);
    return fact == nullptr                         ? std::string(omitted)
           : fact->kind == JsonFact::Kind::text    ? fact->text
           : fact->kind == JsonFact::Kind::boolean ? fact->integer != 0 ? "true" : "false"
                                                   : fact->shown();
  }
  bool of(const ModelConfig& config, Index layer) const {
    const std::string value = found(config, layer);
    const auto all = detail::words(values);
    return !key.empty() && std::find(all.begin(), all.end(), value) != all.end();
  }
};

/// Another rule, in the layers where `when` holds. Where its key is left out: in the first so many
/// layers, if there is a key for their number.
struct OtherRule {
  Is when = {};
  Setting first_layers = always(0);
  RouterConfig rule = {};

  bool of(const ModelConfig& config, Index layer) const {
    return config.find(when.key) == nullptr && !first_layers.keys.empty()
               ? layer < first_layers.size_of(config, layer)
               : when.of(config, layer);
  }
};

/// Which type a family's router has: Router, NormRouter, SparseMixerRouter, SecondExpertRouter,
/// StateRouter (family_router.hpp) or ProductKeyRouter, whose experts are of rank one.
enum class RouterType {
  router,
  norm_router,
  sparse_mixer,
  second_expert,
  state_router,
  product_keys
};

/// Names of what a router has, any of several, of the block; empty where it has no such thing.
struct RouterNames {
  std::string_view weight = "gate.weight", bias = {}, selection_bias = {};
  std::string_view norm_scale = {}, expert_scale = {};
  std::string_view table = {};  ///< of experts by the token's id: integers (vocabulary, k)
};

/// What a state_router has before its last matrix; three of them stand before a weight and a bias.
struct StateNames {
  std::string_view down = {}, scale = {}, norm = {}, first = {}, second = {};
  Setting width = always(0);
};

/// The shared expert: width * count wide, none where that is 0.
struct SharedNames {
  std::string_view prefixes = {};  ///< any of these
  const FfnNames* names = &layouts::projections;
  std::string_view output_gate = {};   ///< of the block
  std::string_view coefficients = {};  ///< likewise: what stands before their weight and bias
  Setting width = {}, count = always(1);
  Setting limit = always(0);  ///< 0: none
  Is averaged = {};           ///< y = (routed + shared) / 2
  bool bias_alone = false;    ///< it has no width: a bias that is added to the output once
};

/// Shared experts inside of the router, where they are the last ones (SelectionConfig::always).
struct AlwaysChosen {
  FfnLayout layout = {};
  Setting count = always(0);
};

/// A second set of experts with a router and a width of its own, behind the first set's: every
/// token has experts of one of them, by what it is (ERNIE 4.5 VL: text, images). Sizes of either
/// set are items of lists. The family's own experts are numbered through both sets, its weights of
/// the routers are (D, E), and both biases are the rows of one tensor; the fused form has two of
/// each.
struct SecondSet {
  std::string_view router = {};
  std::string_view fused_bias = {};
  FfnLayout first_fused = {}, fused = {};
};

/// Small experts that groups of the others share, one for `each` so many (AdjugateExperts).
struct AdjugateNames {
  FfnLayout layout = {};
  Setting width = always(0), each = always(1), scale = always(1);
};

/// The tensors (E, D) of all experts of rank one.
struct RankOneNames {
  std::string_view down = {}, up = {};
};

/// Experts with tensors of their own: those that are chosen, the last ones of a second set, and
/// behind them those that always are; and the small ones that others share.
struct ExpertCounts {
  Index ranked = 0, second = 0, always = 0, adjugates = 0;
};

/// The projections around experts of another width, and the norm before the second.
struct LatentNames {
  std::string_view down = {}, up = {}, norm = {};
  Setting width = always(0);  ///< 0: none
  Setting has_norm = always(0);
};

/// Names are relative to the block; any of several with spaces between them.
struct Family {
  std::string_view model_types;  ///< in config.json; the first is the family's name
  /// The recorded layers of Hugging Face's that it agrees with, in tests/golden/data: their files
  /// begin so. Empty: there are none, the row is what descriptions and code of others say.
  std::string_view proven_by = {};
  std::string_view doubt = {};      ///< what of the row is not certain
  std::string_view blocks = "mlp";  ///< in a decoder layer; empty: the layer itself
  RouterType router_type = RouterType::router;
  RouterNames router = {};
  StateNames state = {};
  FfnLayout experts = {"experts.*.", &layouts::projections};
  FfnLayout other_experts = {};  ///< another form of them that some files have
  RankOneNames rank_one = {};    ///< in their place, behind product_keys
  SharedNames shared = {};
  AlwaysChosen always_chosen = {};
  SecondSet second = {};
  AdjugateNames adjugates = {};
  LatentNames latent = {};
  std::string_view output_norm = {};  ///< the scale of an RMSNorm of the block's output
  std::string_view unused = {};       ///< tensors that the family's own code does not read

  Setting d_model = {"hidden_size d_model"};
  Setting d_ff = {"moe_intermediate_size"};
  Setting num_experts = {keys::num_experts};
  Setting copies = always(0);  ///< experts behind those, which pass their input on
  Setting zeros = always(0);   ///< and those that give nothing
  Setting top_k = {keys::top_k};
  Setting renormalise = always(0);
  Setting epsilon = {};              ///< without a key: that of the rule
  Setting scale = always(1);         ///< of the weights
  Setting routed_scale = always(1);  ///< of the routed output
  Setting softcap = always(0);
  Setting jitter = always(0);          ///< of the input
  Setting near_jitter = always(0.01);  ///< of a SparseMixer: half of its threshold
  Setting groups = {keys::groups, 1}, kept_groups = {"topk_group", 1};  ///< if the rule has any
  Setting vocabulary = {"vocab_size"};                                  ///< if it has a table
  Setting norm_epsilon = {"rms_norm_eps", 1e-6};                        ///< of every norm there is
  Setting limit = always(0), alpha = always(1.702);                     ///< of experts; 0: none
  Setting gate_bound = {"activation_situ_beta"}, up_bound = {"activation_situ_linear_beta"};
  Setting capacity = always(-1);           ///< rows; negative: dropless
  Setting capacity_share = always(0);      ///< not 0: of all tokens, in its place; from 1: dropless
  Setting dropout = always(0);             ///< of outputs in training, which are less by it else
  Is drops_by_priority = {};               ///< DropPolicy of a second_expert
  Is normalises_before = {};               ///< its SecondNormalise
  std::string_view second_policy = {};     ///< the key of its SecondPolicy
  Setting has_router_bias = always(1);     ///< where it has a name
  Setting has_selection_bias = always(1);  ///< likewise
  Setting has_expert_bias = always(0);
  std::string_view activation_keys = "hidden_act hidden_activation";
  RouterConfig rule = {};     ///< what the settings above leave as it is
  OtherRule other_rule = {};  ///< likewise
  ExpertConfig expert = {};   ///< likewise
  WeightOn weight_on = WeightOn::output;
  /// Refused unless they hold: what the family's code can do, and ours cannot.
  std::array<Is, 3> only = {};

  std::string_view name() const { return model_types.substr(0, model_types.find(' ')); }
};

namespace detail {

/// A shared expert with coefficients of both outputs.
constexpr SharedNames weighed(SharedNames shared, std::string_view coefficients) {
  shared.coefficients = coefficients;
  return shared;
}
/// One with a limit of its own.
constexpr SharedNames limited(SharedNames shared, Setting limit) {
  shared.limit = limit;
  return shared;
}
/// No expert but the bias of a block's output.
constexpr SharedNames output_bias(std::string_view prefix) {
  return {.prefixes = prefix, .names = &layouts::bias_alone, .bias_alone = true};
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
