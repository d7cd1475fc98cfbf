// SPDX-License-Identifier: Apache-2.0
// The architectures of GGUF files as families: one row each, and a new one is a new row. Names of
// tensors are the same in all; a row says what no key says. What llama.cpp computes of them stands
// in its graph: the sum that weights are divided by is at least 2^-14, and groups, where a file has
// them, are found by the sum of their two best experts.
#pragma once

#include "family.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

inline constexpr WeightConfig gguf_weight{.epsilon = 0x1p-14, .epsilon_rule = EpsilonRule::least};
inline constexpr RouterConfig gguf_softmax{.selection = {.groups = GroupLimit{}},
                                           .weight = gguf_weight};
inline constexpr RouterConfig gguf_sigmoid{
    .score = Score::sigmoid, .selection = {.groups = GroupLimit{}}, .weight = gguf_weight};
inline constexpr RouterConfig gguf_softmax_of_chosen{
    .selection = {.groups = GroupLimit{}}, .weight = {.source = WeightSource::softmax_of_chosen}};

inline constexpr Setting gguf_norm{"expert_weights_norm", 0};
inline constexpr std::string_view gguf_gating = "expert_gating_func";

/// What all rows have in common, where a row has nothing of its own.
constexpr Family of_gguf(Family row) {
  row.blocks = {};
  row.router.weight = "ffn_gate_inp.weight";
  row.router.bias = "ffn_gate_inp.bias";
  row.router.selection_bias = "exp_probs_b.bias exp_probs_b exp_probs_b.weight";
  row.has_router_bias = {"ffn_gate_inp.bias", 0};
  row.has_selection_bias = {"exp_probs_b", 0};
  row.has_expert_bias = {"ffn_down_exps.bias", 0};
  row.experts = {"", &layouts::gguf_names};
  row.other_experts = {"", &layouts::gguf_fused_names};
  row.shared.prefixes = "ffn_";
  row.shared.names = &layouts::gguf_shared_names;
  if (row.shared.width.keys.empty()) {
    row.shared.width = {"expert_shared_width", 0};
  }
  if (row.shared.limit.keys.empty()) {
    row.shared.limit = {"swiglu_clamp_shexp", 0};
  }
  row.latent.down = "ffn_latent_down.weight ffn_routed_down.weight";
  row.latent.up = "ffn_latent_up.weight ffn_routed_up.weight";
  row.latent.norm = "ffn_latent_norm.weight ffn_routed_norm.weight";
  row.latent.width = {"moe_latent_size expert_latent_length", 0};
  row.d_model = {"embedding_length"};
  row.d_ff = {"expert_feed_forward_length feed_forward_length"};
  row.num_experts = {"expert_count"};
  row.top_k = {"expert_used_count"};
  row.scale = {"expert_weights_scale", 1};
  row.groups = {"expert_group_count", 1};
  row.kept_groups = {"expert_group_used_count", 1};
  if (row.softcap.keys.empty()) {
    row.softcap = {"router_logit_softcapping", 0};
  }
  row.norm_epsilon = {"attention.layer_norm_rms_epsilon", 1e-6};
  row.gate_bound = {"activation.situ_beta situ_beta", 4};
  row.up_bound = {"activation.situ_linear_beta situ_linear_beta", 25};
  if (row.limit.keys.empty()) {
    row.limit = {"swiglu_clamp_exp", 0};
  }
  row.activation_keys = {};
  return row;
}

/// A softmax over all experts, whatever other rows have keys for.
constexpr Family by_softmax(Family row) {
  row.rule = gguf_softmax;
  row.only[0] = {gguf_gating, "1", "1"};
  return of_gguf(row);
}
/// By expert_gating_func, which is 1 (softmax) where it is left out.
constexpr Family softmax_by_key(Family row) {
  row.rule = gguf_softmax;
  row.other_rule = {.when = {gguf_gating, "2", "1"}, .rule = gguf_sigmoid};
  row.only[0] = {gguf_gating, "1 2", "1"};
  return of_gguf(row);
}
/// The same, but 2 (sigmoid) where it is left out.
constexpr Family sigmoid_by_key(Family row) {
  row.rule = gguf_sigmoid;
  row.other_rule = {.when = {gguf_gating, "1", "2"}, .rule = gguf_softmax};
  row.only[0] = {gguf_gating, "1 2", "2"};
  return of_gguf(row);
}

/// A limit is of the routed experts alone.
constexpr Family with_free_shared(Family row) {
  row.shared.limit = always(0);
  return row;
}

inline constexpr SharedNames gguf_gated{.output_gate = "ffn_gate_inp_shexp.weight"};
inline constexpr ExpertConfig gguf_oai{.activation = Activation::gelu_quick, .up_offset = 1.0};
inline constexpr ExpertConfig clamped_after{.clamp = Clamp::after};

// clang-format off
inline constexpr Family gguf_families[] = {
    // Mixtral calls itself llama.
    by_softmax({.model_types = "llama dbrx arctic", .renormalise = always(1)}),
    by_softmax({.model_types = "phimoe",
                .doubt = "as llama.cpp has it; the model itself was trained with SparseMixer",
                .renormalise = always(1)}),
    by_softmax({.model_types = "qwen3moe qwen3vlmoe", .renormalise = always(1)}),
    by_softmax({.model_types = "qwen2moe", .shared = gguf_gated}),
    by_softmax({.model_types = "qwen3next qwen35moe", .shared = gguf_gated,
                .renormalise = always(1)}),
    by_softmax({.model_types = "granitemoe granitehybrid hunyuan-moe",
                .renormalise = always(1)}),
    by_softmax({.model_types = "ernie4_5-moe", .renormalise = always(1)}),
    by_softmax({.model_types = "olmoe jamba"}),
    by_softmax({.model_types = "deepseek"}),
    by_softmax({.model_types = "bailingmoe", .renormalise = gguf_norm}),
    softmax_by_key({.model_types = "deepseek2 deepseek2-ocr mistral4", .renormalise = gguf_norm}),
    // Without the dense branch that Grok-2 has beside it.
    by_softmax({.model_types = "grok",
                .doubt = "as llama.cpp has it; the first model's own code neither caps nor normalises",
                .renormalise = always(1), .softcap = {"router_logit_softcapping", 30},
                .expert = {.activation = Activation::gelu_tanh}}),
    by_softmax({.model_types = "nomic-bert-moe",
                .doubt = "as llama.cpp has it; the model itself has GELU by erf, and a bias of its "
                         "output that such files leave out",
                .expert = {.activation = Activation::gelu_tanh, .gated = false}}),
    // Its experts read another state than its router, and it has a dense branch of its own.
    of_gguf({.model_types = "gemma4 diffusion-gemma", .router_type = RouterType::norm_router,
             .router = {.norm_scale = "ffn_gate_inp.scale", .expert_scale = "ffn_down_exps.scale"},
             .renormalise = always(1),
             .rule = {.weight = {.epsilon = 0x1p-14, .epsilon_rule = EpsilonRule::least,
                                 .expert_scale = ExpertScale::learned}},
             .expert = {.activation = Activation::gelu_tanh}}),

    sigmoid_by_key({.model_types = "mimo2", .renormalise = {"expert_weights_norm", 1}}),
    sigmoid_by_key({.model_types = "glm4moe glm-dsa deepseek32 exaone-moe",
                    .renormalise = gguf_norm, .expert = clamped_after}),
    sigmoid_by_key({.model_types = "dots1 bailingmoe2", .renormalise = gguf_norm,
                    .expert = clamped_after}),
    sigmoid_by_key({.model_types = "minimax-m2 lfm2moe", .renormalise = always(1)}),
    sigmoid_by_key({.model_types = "hy-v3 hy_v3", .renormalise = gguf_norm}),
    with_free_shared(sigmoid_by_key({.model_types = "hy-v4 hy_v4",
                                     .doubt = "the limit is before the SiLU, as in the model itself",
                                     .renormalise = gguf_norm})),
    sigmoid_by_key({.model_types = "kimi-k3", .latent = {.has_norm = always(1)},
                    .renormalise = gguf_norm, .expert = {.activation = Activation::situ}}),
    sigmoid_by_key({.model_types = "afmoe step35 laguna kimi-linear",
                    .renormalise = gguf_norm, .expert = clamped_after}),
    // y is the mean of routed and shared experts.
    sigmoid_by_key({.model_types = "cohere2moe",
                    .shared = {.averaged = {"averaged", "always", "always"}},
                    .renormalise = gguf_norm}),
    sigmoid_by_key({.model_types = "nemotron_h_moe", .renormalise = gguf_norm,
                    .expert = {.activation = Activation::relu_squared, .gated = false}}),
    sigmoid_by_key({.model_types = "minimax-m3",
                    .doubt = "keys of its limits",
                    .shared = {.limit = {"swiglu_clamp_shexp", 7}}, .renormalise = gguf_norm,
                    .limit = {"swiglu_clamp_exp", 7}, .expert = gguf_oai}),
    // Its router reads the tokens as they are before the attention.
    sigmoid_by_key({.model_types = "smallthinker", .renormalise = always(1),
                    .expert = {.activation = Activation::relu}}),
    of_gguf({.model_types = "llama4", .shared = {.width = {"expert_feed_forward_length"}},
             .rule = {.score = Score::sigmoid}, .weight_on = WeightOn::input}),

    // The k best logits, then a softmax over those.
    of_gguf({.model_types = "gpt-oss", .limit = {"swiglu_clamp_exp", 7},
             .rule = gguf_softmax_of_chosen,
             .expert = gguf_oai,
             .only = {{{gguf_gating, "3", "3"}}}}),
    // Its small experts read x, as in the model itself, and not what the others give.
    of_gguf({.model_types = "grovemoe",
             .doubt = "llama.cpp has the small experts read the output of the others",
             .adjugates = {.layout = {"", &layouts::gguf_chunk_names},
                           .width = {"expert_chunk_feed_forward_length"},
                           .each = {"experts_per_group"}, .scale = {"expert_group_scale"}},
             .rule = gguf_softmax_of_chosen, .only = {{{gguf_gating, "1", "1"}}}}),

    // Its limit is before the SiLU, unlike that of all others.
    of_gguf({.model_types = "deepseek4",
             .router = {.table = "ffn_gate_tid2eid.weight"}, .renormalise = gguf_norm,
             .rule = {.score = Score::sqrt_softplus, .weight = gguf_weight},
             .other_rule = {.when = {"hash_moe", "1", "0"}, .first_layers = {"hash_layer_count", 0},
                            .rule = {.score = Score::sqrt_softplus,
                                     .selection = {.vocabulary = 1}, .weight = gguf_weight}},
             .only = {{{gguf_gating, "4", "4"}}}}),
};
// clang-format on

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
