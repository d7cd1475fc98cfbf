// SPDX-License-Identifier: Apache-2.0
// A LayerConfig as moe_inspect tells it: sizes, router, experts and the shared one, and of each
// what it has.
#pragma once

#include <moe/io/family_router.hpp>
#include <nlohmann/json.hpp>
#include <optional>

namespace moe_inspect {

using Json = nlohmann::ordered_json;
namespace io = moe::io;

template <class Enum, std::size_t n>
const char* word(Enum value, const char* const (&words)[n]) {
  const auto number = static_cast<std::size_t>(value);
  return number < n ? words[number] : "another";
}

inline Json sizes_of(const io::LayerConfig& config) {
  Json all{{"d_model", config.d_model}};
  if (!config.is_rank_one()) {
    all["d_ff"] = config.d_ff;
  }
  all.update({{"num_experts", config.num_experts},
              {"top_k", config.top_k},
              {"copy_experts", config.zero.copies},
              {"zero_experts", config.zero.zeros},
              {"adjugate_experts", config.adjugate.count},
              {"adjugate_d_ff", config.adjugate.d_ff},
              {"second_set_experts", config.second_experts},
              {"second_set_d_ff", config.second_d_ff},
              {"latent_width", config.latent ? config.latent->width : 0},
              {"latent_norm", config.latent && config.latent->norm},
              {"output_norm", config.output_norm.has_value()}});
  return all;
}

inline Json groups_of(const std::optional<moe::GroupLimit>& groups) {
  if (!groups) {
    return "none";
  }
  return {{"num_groups", groups->num_groups},
          {"kept", groups->kept},
          {"rule", word(groups->rule, {"best", "sum_of_two_best", "equal_quota"})},
          {"others", word(groups->others, {"minus_infinity", "zero"})}};
}

inline Json router_of(const io::LayerConfig& config) {
  const auto& [logits, score, selection, weight] = config.router;
  Json all{{"type", name(config.router_type)}};
  if (config.router_type == io::RouterType::sparse_mixer) {
    all["jitter"] = config.sparse_mixer.jitter;
    return all;
  }
  if (config.is_rank_one()) {
    all["num_keys"] = config.product_keys.num_keys;
    all["reading"] = word(config.product_keys.reading, {"per_token", "across_batch"});
    return all;
  }
  if (config.router_type == io::RouterType::second_expert) {
    all["second_expert"] =
        word(config.second_expert.policy, {"always", "threshold", "random", "sampled"});
    all["normalise"] = word(config.second_expert.normalise, {"never", "before", "after"});
    all["routed_scale"] = config.routed_scale;
    return all;
  }
  all["score"] = word(score, {"softmax", "sigmoid", "sqrt_softplus", "identity"});
  all["bias"] = logits.bias;
  all["softcap"] = logits.softcap;
  all["selection_bias"] = selection.bias;
  all["always_chosen"] = selection.always;
  all["groups"] = groups_of(selection.groups);
  all["table_of_ids"] = selection.vocabulary;
  all["weights"] = word(weight.source, {"score", "biased_score", "softmax_of_chosen", "one"});
  all["renormalise"] = weight.renormalises(config.top_k);
  all["epsilon"] = weight.epsilon;
  all["scale"] = weight.scale;
  all["routed_scale"] = config.routed_scale;
  all["weight_on"] = word(config.weight_on, {"output", "input", "hidden"});
  return all;
}

inline Json activation_of(const moe::ExpertConfig& expert) {
  Json all{{"activation", word(expert.activation, {"relu", "relu_squared", "gelu_erf", "gelu_tanh",
                                                   "gelu_quick", "silu", "situ"})}};
  if (expert.activation == moe::Activation::gelu_quick) {
    all["alpha"] = expert.alpha;
  }
  if (expert.activation == moe::Activation::situ) {
    all["gate_bound"] = expert.gate_bound;
    all["up_bound"] = expert.up_bound;
  }
  return all;
}

/// What a feed-forward computes.
inline Json feed_forward_of(const moe::ExpertConfig& expert) {
  Json all{{"kind", "feed_forward"}, {"gated", expert.gated}};
  all.update(activation_of(expert));
  all["bias"] = expert.bias;
  if (expert.gated && expert.activation != moe::Activation::situ) {
    all["up_offset"] = expert.up_offset;
    all["limit"] = expert.limit ? Json(*expert.limit) : Json("none");
  }
  if (expert.limit) {
    all["clamp"] = word(expert.clamp, {"before", "after"});
  }
  return all;
}

/// Of the routed experts; those of rank one have an activation of one number, and nothing else.
inline Json expert_of(const io::LayerConfig& config) {
  if (!config.is_rank_one()) {
    return feed_forward_of(config.expert);
  }
  Json all{{"kind", "rank_one"}};
  all.update(activation_of(config.expert));
  return all;
}

/// Of the shared expert: none, a feed-forward, or a bias of the layer's output.
inline Json shared_of(const io::LayerConfig& config) {
  if (!config.shared) {
    return {{"kind", "none"}};
  }
  if (config.shared->d_ff == 0) {
    return {{"kind", "bias"}};
  }
  Json all = feed_forward_of(config.shared_expert());
  all["d_ff"] = config.shared->d_ff;
  all["output_gate"] = config.shared->output_gate;
  all["scale"] = config.shared->scale;
  all["output_coefficients"] = config.shared->coefficients;
  return all;
}

}  // namespace moe_inspect
