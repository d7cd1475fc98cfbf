// SPDX-License-Identifier: Apache-2.0
// A family and a config.json -> LayerConfig, what a decoder layer of the model is.
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

#include "../call_options.hpp"
#include "../experts/zero.hpp"
#include "../layers/product_key_tape.hpp"
#include "../routing/norm_gate.hpp"
#include "../routing/second_expert.hpp"
#include "../routing/sparse_mixer.hpp"
#include "../routing/state_gate.hpp"
#include "family.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Small experts of a layer that groups of the others share: AdjugateExperts.
struct AdjugateConfig {
  Index count = 0, d_ff = 0;
  double scale = 1.0;
};

/// A layer's config, and the type of its router with what is not in every router's config.
struct LayerConfig : MoEConfig {
  ZeroComputation zero = {};                  ///< of num_experts, the last ones
  Index second_experts = 0, second_d_ff = 0;  ///< likewise, of another width; see mask_of_sets()
  AdjugateConfig adjugate = {};               ///< beside num_experts
  RouterType router_type = RouterType::router;
  InputNormConfig router_norm = {};       ///< of a norm_router
  SparseMixerConfig sparse_mixer = {};    ///< of a sparse_mixer
  SecondExpertConfig second_expert = {};  ///< of a second_expert
  StateGateConfig state = {};             ///< of a state_router
  ProductKeyConfig product_keys = {};     ///< of product_keys

  /// Whether the layer is a ProductKeyLayer.
  bool is_rank_one() const { return router_type == RouterType::product_keys; }
  /// Experts that have parameters: those of the set that a ZeroExperts is around.
  Index num_feed_forwards() const { return num_experts - zero.num_experts(); }
  ExpertCounts counts() const {
    return {num_feed_forwards() - router.selection.always, second_experts, router.selection.always,
            adjugate.count};
  }
  Index d_ff_of(Index number) const {
    return number < num_experts - second_experts ? d_ff : second_d_ff;
  }
};

/// Of a layer that is_rank_one().
inline ProductKeyLayerConfig product_key_layer_config(const LayerConfig& config) {
  ProductKeyLayerConfig made{
      .d_model = config.d_model, .keys = config.product_keys, .expert = config.expert};
  if (config.shared) {
    made.shared_d_ff = config.shared->d_ff;
  }
  return made;
}

/// CallOptions::expert_mask (N, E) of a layer with two sets of experts: a token has those of the
/// second one where `second` (N) is not 0, else those of the first.
inline ExpertMask mask_of_sets(const LayerConfig& config, std::span<const std::uint8_t> second) {
  ExpertMask mask = ExpertMask::Zero(static_cast<Index>(second.size()), config.num_experts);
  const Index first = config.num_experts - config.second_experts;
  for (Index token = 0; token < mask.rows(); ++token) {
    const bool of_second = second[static_cast<std::size_t>(token)] != 0;
    mask.row(token)
        .segment(of_second ? first : 0, of_second ? config.second_experts : first)
        .setOnes();
  }
  return mask;
}

namespace detail {

struct ActivationName {
  std::string_view name;
  Activation activation;
};
inline constexpr std::array<ActivationName, 10> activation_names{
    {{"silu", Activation::silu},
     {"swish", Activation::silu},
     {"gelu", Activation::gelu_erf},
     {"gelu_new", Activation::gelu_tanh},
     {"gelu_fast", Activation::gelu_tanh},
     {"gelu_pytorch_tanh", Activation::gelu_tanh},
     {"relu", Activation::relu},
     {"relu2", Activation::relu_squared},
     {"squared_relu", Activation::relu_squared},
     {"situ", Activation::situ}}};

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

/// What configs of one family say, and the library does not do.
inline void check_only(const Family& family, const ModelConfig& config, Index layer) {
  for (const Is& only : family.only) {
    if (only.key.empty() || only.of(config, layer)) {
      continue;
    }
    const bool omitted = config.find(only.key, layer) == nullptr;
    config.fail(only.key,
                joined(printable(only.found(config, layer), 40),
                       omitted ? " (where it is left out)" : "", " in a config of ", family.name()),
                joined(only.values, ", all that is supported of ", family.name()));
  }
}

/// Where the sum or product of two sizes overflows, the greatest size: validate() refuses it.
inline Index sum_of(Index a, Index b) {
  constexpr Index most = (std::numeric_limits<Index>::max)();
  return a > most - b ? most : a + b;
}
inline Index product_of(Index a, Index b) {
  constexpr Index most = (std::numeric_limits<Index>::max)();
  return b != 0 && a > most / b ? most : a * b;
}

inline RouterConfig router_config(const Family& family, const ModelConfig& config, Index layer) {
  RouterConfig made = family.other_rule.of(config, layer) ? family.other_rule.rule : family.rule;
  made.logits.bias = !family.router.bias.empty() && family.has_router_bias.is_set(config, layer);
  made.logits.softcap = family.softcap.of(config, layer);
  made.logits.input_jitter = family.jitter.of(config, layer);
  SelectionConfig& selection = made.selection;
  if (selection.vocabulary > 0) {
    selection.vocabulary = family.vocabulary.size_of(config, layer);
    if (selection.vocabulary == 0) {
      config.fail(family.vocabulary.keys, "0", "at least 1 where a table selects");
    }
  }
  selection.bias = selection.vocabulary == 0 && !family.router.selection_bias.empty() &&
                   family.has_selection_bias.is_set(config, layer);
  if (selection.groups) {
    selection.groups->num_groups = family.groups.size_of(config, layer);
    selection.groups->kept = family.kept_groups.size_of(config, layer);
    if (selection.groups->num_groups <= 1) {
      selection.groups.reset();
    }
  }
  // Those of a softmax of the chosen sum to 1 as they are.
  made.weight.renormalise = made.weight.source != WeightSource::softmax_of_chosen &&
                            family.renormalise.is_set(config, layer);
  if (!family.epsilon.keys.empty()) {
    made.weight.epsilon = family.epsilon.of(config, layer);
  }
  made.weight.scale = family.scale.of(config, layer);
  selection.always = family.always_chosen.count.size_of(config, layer);
  return made;
}

/// Limits of 0 are none.
inline std::optional<double> limit_of(const Setting& limit, const ModelConfig& config,
                                      Index layer) {
  const double found = limit.of(config, layer);
  return found > 0.0 ? std::optional<double>(found) : std::nullopt;
}

inline ExpertConfig expert_config(const Family& family, const ModelConfig& config, Index layer) {
  ExpertConfig made = family.expert;
  made.activation = activation_of(config, family.activation_keys, family.expert.activation);
  made.bias = family.has_expert_bias.is_set(config, layer);
  made.limit = limit_of(family.limit, config, layer);
  made.alpha = family.alpha.of(config, layer);
  if (made.activation == Activation::situ) {
    made.gate_bound = family.gate_bound.of(config, layer);
    made.up_bound = family.up_bound.of(config, layer);
  }
  return made;
}

inline std::optional<SharedExpertConfig> shared_config(const Family& family,
                                                       const ModelConfig& config, Index layer) {
  const SharedNames& shared = family.shared;
  if (shared.bias_alone) {
    return SharedExpertConfig{.d_ff = 0, .bias = true};
  }
  const Index count = shared.prefixes.empty() ? 0 : shared.count.size_of(config, layer);
  const Index width = count == 0 ? 0 : shared.width.size_of(config, layer);
  if (width == 0) {
    return std::nullopt;
  }
  return SharedExpertConfig{.d_ff = product_of(width, count),
                            .output_gate = !shared.output_gate.empty(),
                            .limit = limit_of(shared.limit, config, layer),
                            .coefficients = !shared.coefficients.empty()};
}

inline std::optional<LatentConfig> latent_config(const Family& family, const ModelConfig& config,
                                                 Index layer) {
  const Index width = family.latent.width.size_of(config, layer);
  if (width == 0) {
    return std::nullopt;
  }
  return LatentConfig{.width = width,
                      .norm = family.latent.has_norm.is_set(config, layer),
                      .eps = family.norm_epsilon.of(config, layer)};
}

inline std::optional<OutputNormConfig> output_norm_config(const Family& family,
                                                          const ModelConfig& config, Index layer) {
  if (family.output_norm.empty()) {
    return std::nullopt;
  }
  return OutputNormConfig{.eps = family.norm_epsilon.of(config, layer)};
}

/// Throws std::invalid_argument if the experts are no whole number of groups.
inline AdjugateConfig adjugate_config(const Family& family, const ModelConfig& config, Index layer,
                                      Index num_experts) {
  if (family.adjugates.layout.names == nullptr) {
    return {};
  }
  const Index each = family.adjugates.each.size_of(config, layer),
              width = family.adjugates.width.size_of(config, layer);
  const double scale = family.adjugates.scale.of(config, layer);
  moe::detail::throw_unless(each > 0 && num_experts % each == 0 && width > 0, "of ", num_experts,
                            " experts each ", each, " share one of width ", width,
                            ", expected groups of one size, and at least 1 wide");
  moe::detail::throw_unless(std::isfinite(scale), "the scale of small experts is ", scale,
                            ", expected finite");
  return {num_experts / each, width, scale};
}

/// Throws std::invalid_argument if no expert has parameters, or the elements of all of them have no
/// number: some families keep them in one tensor, gate and up together.
inline void check_experts(const LayerConfig& config) {
  moe::detail::throw_unless(config.num_feed_forwards() >= 1, "of ", config.num_experts,
                            " experts none has parameters, expected at least 1");
  constexpr Index limit = (std::numeric_limits<Index>::max)() / 2 / 8;  // of bytes of a double
  const Index width = (std::max)(config.expert_d_in(), config.expert_d_out());
  for (const Index d_ff : {config.d_ff, (std::max)(config.adjugate.d_ff, Index{1})}) {
    moe::detail::throw_unless(d_ff <= limit / width && config.num_experts <= limit / (d_ff * width),
                              "num_experts = ", config.num_experts, " times d_ff = ", d_ff,
                              " times their width = ", width, " overflows");
  }
}

/// The rule of the second expert, and who is dropped over capacity.
inline void set_second_expert(const Family& family, const ModelConfig& config, Index layer,
                              LayerConfig& made) {
  const std::string policy = config.text(family.second_policy, "all", layer);
  const bool random = policy == "random", sampled = policy == "sampling";
  if (!random && !sampled && policy != "all") {
    config.fail(family.second_policy, joined("\"", printable(policy, 40), "\""),
                "all, random or sampling");
  }
  const bool before = family.normalises_before.of(config, layer);
  made.second_expert = {.policy = random    ? SecondPolicy::random
                                  : sampled ? SecondPolicy::sampled
                                            : SecondPolicy::always,
                        .of_share = false,
                        .normalise = before ? SecondNormalise::before : SecondNormalise::after};
  made.capacity.policy = family.drops_by_priority.of(config, layer)
                             ? DropPolicy::second_choices_by_priority
                             : DropPolicy::second_choices;
  if (made.capacity.limited() && !before) {
    config.fail(family.normalises_before.key, "false with a capacity in evaluation",
                "true, as weights are not normalised once more after choices were dropped");
  }
}

/// As Doge has them: the published weights were trained by what its code reads across the batch.
/// Throws std::invalid_argument if the number of experts is no square, of which its code leaves
/// some out.
inline ProductKeyConfig product_key_config(const LayerConfig& made) {
  const double root = std::round(std::sqrt(static_cast<double>(made.num_experts)));
  const ProductKeyConfig keys{static_cast<Index>(root), made.top_k, KeyReading::across_batch};
  keys.validate();
  moe::detail::throw_unless(keys.num_experts() == made.num_experts,
                            "num_experts = ", made.num_experts,
                            ", expected a square, as each expert has two keys");
  return keys;
}

}  // namespace detail

/// The config of a decoder layer. Throws FormatError, naming the key, where config.json does not
/// have what the family must say, or says what is not supported.
inline LayerConfig layer_config(const Family& family, const ModelConfig& config, Index layer) {
  detail::check_only(family, config, layer);
  const RouterConfig router = detail::router_config(family, config, layer);
  const ZeroComputation zero{.copies = family.copies.size_of(config, layer),
                             .zeros = family.zeros.size_of(config, layer)};
  const bool two_sets = !family.second.router.empty();
  const Index item = two_sets ? 0 : layer;  // of lists of sizes
  const Index second = two_sets ? family.num_experts.size_of(config, 1) : 0;
  LayerConfig made{
      {.d_model = family.d_model.size_of(config, layer),
       .d_ff = family.d_ff.size_of(config, item),
       .num_experts =
           detail::sum_of(detail::sum_of(family.num_experts.size_of(config, item), second),
                          detail::sum_of(zero.num_experts(), router.selection.always)),
       .top_k = detail::sum_of(family.top_k.size_of(config, layer), router.selection.always),
       .expert = detail::expert_config(family, config, layer),
       .router = router,
       .shared = detail::shared_config(family, config, item),
       .latent = detail::latent_config(family, config, layer),
       .output_norm = detail::output_norm_config(family, config, layer),
       .weight_on = family.weight_on,
       .routed_scale = family.routed_scale.of(config, layer)}};
  made.zero = zero;
  made.second_experts = second;
  made.second_d_ff = two_sets ? family.d_ff.size_of(config, 1) : 0;
  if (made.shared && family.shared.averaged.of(config, layer)) {
    made.routed_scale *= 0.5;
    made.shared->scale *= 0.5;
  }
  if (const double share = family.capacity_share.of(config, layer); share > 0.0) {
    if (share < 1.0) {
      made.capacity.factor =
          share * static_cast<double>(made.num_experts) / static_cast<double>(made.top_k);
    }
  } else if (family.capacity.of(config, layer) >= 0) {
    made.capacity.rows = family.capacity.size_of(config, layer);
  }
  made.routed_scale *= 1.0 - family.dropout.of(config, layer);
  made.router_type = family.router_type;
  made.sparse_mixer.jitter = family.near_jitter.of(config, layer);
  if (made.router_type == RouterType::second_expert) {
    detail::set_second_expert(family, config, layer, made);
  }
  try {
    made.validate();
    made.adjugate = detail::adjugate_config(family, config, layer, made.num_experts);
    detail::check_experts(made);
    moe::detail::throw_unless(
        !two_sets ||
            (made.second_d_ff > 0 && 2 * second == made.num_experts && made.top_k <= second),
        "MoEConfig: the second set has ", second, " experts of width ", made.second_d_ff,
        ", expected as many as the first, at least top_k = ", made.top_k, ", of at least 1");
    if (made.router_type == RouterType::norm_router) {
      made.router_norm = {.epsilon = family.norm_epsilon.of(config, layer),
                          .factor = 1.0 / std::sqrt(static_cast<double>(made.d_model))};
      made.router_norm.validate();
    }
    if (made.router_type == RouterType::state_router) {
      made.state = {.d_state = family.state.width.size_of(config, layer),
                    .takes_state = layer != 0,
                    .epsilon = family.norm_epsilon.of(config, layer)};
      made.state.validate();
    }
    if (made.is_rank_one()) {
      made.product_keys = detail::product_key_config(made);
    }
    made.sparse_mixer.validate();
    made.second_expert.validate();
  } catch (const std::invalid_argument& error) {
    throw FormatError(config.file(), "", std::nullopt, error.what());
  }
  return made;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
