// SPDX-License-Identifier: Apache-2.0
// The families of published checkpoints whose layers load_layer() makes: one row each, and a new
// one is a new row. Defaults of left-out keys are those of their classes in transformers.
#pragma once

#include <string>

#include "family.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

// What rows have in common.
inline constexpr RouterConfig softmax_of_chosen{
    .weight = {.source = WeightSource::softmax_of_chosen}};
inline constexpr RouterConfig sigmoid{.score = Score::sigmoid};
inline constexpr std::string_view correction_bias = "gate.e_score_correction_bias";
inline constexpr Setting renormalised{keys::renormalise, 1}, as_they_are{keys::renormalise, 0};
inline constexpr Setting one{keys::scale, 1}, dense_width{"intermediate_size"};
inline constexpr SharedNames gated_shared{.prefixes = "shared_expert. shared_experts.",
                                          .output_gate = "shared_expert_gate.weight",
                                          .width = {"shared_expert_intermediate_size"}};
/// As many experts as the key says, in one that is so much wider.
constexpr SharedNames shared(double omitted, std::string_view prefixes = "shared_experts.",
                             std::string_view width = "moe_intermediate_size") {
  return {.prefixes = prefixes, .width = {width}, .count = {keys::num_shared, omitted}};
}
inline constexpr Only one_group{keys::groups, "1", "1"}, not_eight_groups{keys::groups, "1", "8"};

// clang-format off
inline constexpr Family families[] = {
    // A softmax over all experts, then the k best.
    {.model_types = "mixtral minimax", .blocks = "block_sparse_moe mlp",
     .experts = {"experts.*.", &layouts::mixtral_names}, .d_ff = dense_width,
     .renormalise = always(1), .jitter = {"router_jitter_noise", 0}},
    {.model_types = "qwen2_moe", .shared = gated_shared, .renormalise = as_they_are},
    {.model_types = "qwen3_moe mellum qwen3_omni_moe qwen3_omni_moe_text",
     .renormalise = as_they_are},
    {.model_types = "qwen3_next", .shared = gated_shared, .renormalise = renormalised},
    {.model_types = "qwen3_vl_moe qwen3_vl_moe_text",
     .experts = {"experts.", &layouts::fused_transposed}, .renormalise = always(1)},
    {.model_types = "qwen3_5_moe qwen3_5_moe_text", .experts = {"experts.", &layouts::fused},
     .shared = gated_shared, .renormalise = always(1)},
    {.model_types = "qwen4_exp qwen4_exp_text", .experts = {"experts.", &layouts::fused},
     .shared = gated_shared, .renormalise = renormalised},
    {.model_types = "olmoe flex_olmo", .d_ff = dense_width, .renormalise = as_they_are},
    {.model_types = "jamba", .blocks = "feed_forward", .router = "router.weight",
     .d_ff = dense_width},
    {.model_types = "hunyuan_v1_moe", .router = "gate.wg.weight",
     .shared = shared(1, "shared_mlp."), .renormalise = always(1)},
    {.model_types = "dbrx", .blocks = "ffn", .router = "router.layer.weight",
     .experts = {"experts.mlp.", &layouts::dbrx_names}, .d_ff = {"ffn_hidden_size"},
     .renormalise = always(1), .activation_keys = "ffn_act_fn.name",
     .only = {{{"moe_normalize_expert_weights", "1", "1"}}}},
    {.model_types = "deepseek", .shared = shared(0), .renormalise = as_they_are,
     .only = {{{"scoring_func", "softmax", "softmax"}}}},
    {.model_types = "bailing_moe", .shared = shared(0), .renormalise = as_they_are},
    {.model_types = "deepseek_v2 deepseek_ocr2_text", .shared = shared(2), .scale = one,
     .only = {{{"topk_method", "greedy", "greedy"}}}},
    {.model_types = "ernie4_5_moe", .selection_bias = "moe_statics.e_score_correction_bias",
     .shared = shared(2), .renormalise = always(1)},
    {.model_types = "switch_transformers", .blocks = "layer.1.mlp layer.2.mlp",
     .router = "router.classifier.weight", .router_bias = "router.classifier.bias",
     .experts = {"experts.expert_*.", &layouts::switch_names}, .d_ff = {"d_ff"},
     .top_k = always(1), .jitter = {"router_jitter_noise", 0.01},
     .capacity = {"expert_capacity", 64}, .has_router_bias = {"router_bias", 0},
     .activation_keys = "dense_act_fn",
     .expert = {.activation = Activation::relu, .gated = false},
     .only = {{{"is_gated_act", "false", "false"}}}},

    // The k best logits, then a softmax over those.
    {.model_types = "granitemoe", .blocks = "block_sparse_moe mlp", .router = "router.layer.weight",
     .experts = {"", &layouts::granite_names}, .d_ff = dense_width,
     .rule = softmax_of_chosen},
    {.model_types = "granitemoeshared granitemoehybrid", .blocks = "",
     .router = "block_sparse_moe.router.layer.weight",
     .experts = {"block_sparse_moe.", &layouts::granite_names},
     .shared = {.prefixes = "shared_mlp.", .names = &layouts::granite_names,
                .width = {"shared_intermediate_size"}},
     .d_ff = dense_width, .rule = softmax_of_chosen},
    {.model_types = "aria aria_text", .router = "router.weight",
     .experts = {"experts.", &layouts::aria_names},
     .shared = shared(2, "shared_experts.", "intermediate_size"), .d_ff = dense_width,
     .rule = softmax_of_chosen},
    {.model_types = "cohere2_moe", .shared = shared(0, "shared_experts.", "intermediate_size"),
     .d_ff = dense_width, .rule = softmax_of_chosen,
     .only = {{{"expert_selection_fn", "softmax", "nothing"},
               {"shared_expert_combination_strategy", "sum", "average"}}}},

    // A sigmoid for each expert, the k best by it, most of them with a bias.
    {.model_types = "llama4 llama4_text", .blocks = "feed_forward", .router = "router.weight",
     .experts = {"experts.", &layouts::fused_transposed},
     .shared = {.prefixes = "shared_expert.", .width = dense_width}, .d_ff = dense_width,
     .rule = sigmoid, .weight_on = WeightOn::input},
    {.model_types = "minimax_m2", .blocks = "block_sparse_moe mlp",
     .selection_bias = "e_score_correction_bias gate.e_score_correction_bias",
     .experts = {"experts.*.", &layouts::mixtral_names}, .d_ff = dense_width,
     .renormalise = always(1), .has_selection_bias = {"use_routing_bias", 1}, .rule = sigmoid},
    {.model_types = "lfm2_moe", .blocks = "feed_forward", .selection_bias = "expert_bias",
     .experts = {"experts.*.", &layouts::mixtral_names}, .renormalise = renormalised, .scale = one,
     .has_selection_bias = {"use_expert_bias", 1}, .rule = sigmoid},
    {.model_types = "afmoe", .router = "router.gate.weight", .selection_bias = "expert_bias",
     .shared = shared(0), .renormalise = always(1), .scale = {keys::scale}, .rule = sigmoid},
    {.model_types = "hy_v3", .router = "router.gate.weight", .selection_bias = "expert_bias",
     .shared = shared(1, "shared_mlp. shared_experts."), .renormalise = always(1),
     .scale = {keys::scale}, .rule = sigmoid},
    {.model_types = "deepseek_v3 deepseek_v32 kimi_k2 kimi_k25",
     .selection_bias = correction_bias, .shared = shared(1), .renormalise = renormalised,
     .scale = {keys::scale, 2.5}, .rule = sigmoid, .only = {{not_eight_groups}}},
    {.model_types = "glm4_moe glm4v_moe glm4v_moe_text glm4_moe_lite glm_moe_dsa solar_open",
     .selection_bias = correction_bias, .shared = shared(1), .renormalise = renormalised,
     .scale = {keys::scale}, .rule = sigmoid, .only = {{one_group}}},
    {.model_types = "dots1", .selection_bias = correction_bias, .shared = shared(0),
     .renormalise = as_they_are, .scale = one, .rule = sigmoid, .only = {{one_group}}},
    {.model_types = "exaone_moe",
     .selection_bias = "e_score_correction_bias gate.e_score_correction_bias",
     .shared = shared(1), .renormalise = renormalised, .scale = {keys::scale, 2.5},
     .rule = sigmoid, .only = {{one_group}}},
    {.model_types = "mimo_v2_flash", .selection_bias = correction_bias,
     .renormalise = renormalised, .scale = one, .rule = sigmoid, .only = {{one_group}}},
    {.model_types = "kimi_linear", .blocks = "block_sparse_moe mlp",
     .selection_bias = correction_bias, .experts = {"experts.*.", &layouts::mixtral_names},
     .shared = shared(1), .renormalise = renormalised, .scale = {keys::scale, 2.446},
     .rule = sigmoid, .only = {{one_group}}},
};
// clang-format on

}  // namespace detail

/// By a model_type; null if it is none of a family's.
inline const Family* find_family(std::string_view model_type) {
  for (const Family& family : detail::families) {
    for (const std::string_view type : detail::words(family.model_types)) {
      if (type == model_type) {
        return &family;
      }
    }
  }
  return nullptr;
}

/// Of a model. Throws FormatError, with a list of the known ones, unless it is one of them.
inline const Family& family_of(const ModelConfig& config) {
  std::string found;
  for (const std::string& type : config.model_types()) {
    if (const Family* const family = find_family(type)) {
      return *family;
    }
    found += detail::joined(found.empty() ? "\"" : " in \"", printable(type, 40), "\"");
  }
  std::string known;
  for (const Family& family : detail::families) {
    known += detail::joined(known.empty() ? "" : ", ", family.name());
  }
  config.fail("model_type", found.empty() ? "no such key" : found, "one of " + known);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
