// SPDX-License-Identifier: Apache-2.0
// The families of published checkpoints whose layers load_layer() makes: one row each, and a new
// one is a new row. Defaults of left-out keys are those of their classes in transformers. What
// stands around the block in a decoder layer (norms, residual factors, dense branches of their own)
// is the model's.
#pragma once

#include "family.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

// What rows have in common.

/// Softmax and renormalisation without an epsilon.
inline constexpr RouterConfig softmax{.weight = {.epsilon = 0.0}};
inline constexpr RouterConfig softmax_of_chosen{
    .weight = {.source = WeightSource::softmax_of_chosen}};
inline constexpr RouterConfig sigmoid{.score = Score::sigmoid};
inline constexpr RouterConfig sigmoid_without_epsilon{.score = Score::sigmoid,
                                                      .weight = {.epsilon = 0.0}};
/// Sigmoid with groups by the sum of their two best: DeepSeek-V3.
inline constexpr RouterConfig v3{.score = Score::sigmoid, .selection = {.groups = GroupLimit{}}};
inline constexpr GroupLimit two_best_else_zero{.others = OtherGroups::zero};

inline constexpr RouterNames v3_router{.selection_bias = "gate.e_score_correction_bias"};
inline constexpr RouterNames block_bias{.selection_bias =
                                            "e_score_correction_bias gate.e_score_correction_bias"};
inline constexpr std::string_view mixtral_blocks = "block_sparse_moe mlp";
inline constexpr FfnLayout mixtral_experts{"experts.*.", &layouts::mixtral_names};
inline constexpr FfnLayout fused_experts{"experts.", &layouts::fused};
inline constexpr FfnLayout transposed_experts{"experts.", &layouts::fused_transposed};

inline constexpr Setting renormalised{keys::renormalise, 1}, as_they_are{keys::renormalise, 0};
inline constexpr Setting one{keys::scale, 1}, dense_width{"intermediate_size"};
inline constexpr Setting eight_groups{keys::groups, 8}, four_kept{"topk_group", 4};
inline constexpr Setting ten{"swiglu_limit", 10};
inline constexpr SharedNames gated_shared{.prefixes = "shared_expert. shared_experts.",
                                          .output_gate = "shared_expert_gate.weight",
                                          .width = {"shared_expert_intermediate_size"}};
/// As many experts as the key says, in one that is so much wider.
constexpr SharedNames shared(double omitted, std::string_view prefixes = "shared_experts.",
                             std::string_view width = "moe_intermediate_size") {
  return {.prefixes = prefixes, .width = {width}, .count = {keys::num_shared, omitted}};
}
inline constexpr ExpertConfig gpt_oss_swiglu{.activation = Activation::gelu_quick,
                                             .up_offset = 1.0};

// clang-format off
inline constexpr Family families[] = {
    // A softmax over all experts, then the k best.
    {.model_types = "mixtral minimax arctic", .proven_by = "mixtral", .blocks = mixtral_blocks,
     .experts = mixtral_experts, .d_ff = dense_width, .renormalise = always(1),
     .jitter = {"router_jitter_noise", 0}, .rule = softmax},
    {.model_types = "qwen2_moe", .proven_by = "qwen2_moe", .shared = gated_shared,
     .renormalise = as_they_are, .rule = softmax},
    {.model_types = "qwen3_moe mellum qwen3_omni_moe qwen3_omni_moe_text",
     .proven_by = "qwen3_moe", .renormalise = as_they_are, .rule = softmax},
    {.model_types = "qwen3_next", .shared = gated_shared, .renormalise = renormalised,
     .rule = softmax},
    {.model_types = "qwen3_vl_moe qwen3_vl_moe_text",
     .doubt = "copies that transformers 5 wrote have the experts' tensors the other way round",
     .experts = transposed_experts, .renormalise = always(1), .rule = softmax},
    {.model_types = "interns1_pro interns1_pro_text",
     .doubt = "model_type, and the key of the groups when it is left out",
     .experts = transposed_experts, .renormalise = renormalised, .groups = {"router_n_groups", 1},
     .rule = {.selection = {.groups = GroupLimit{.rule = GroupRule::equal_quota}},
              .weight = {.epsilon = 0.0}}},
    {.model_types = "qwen3_5_moe qwen3_5_moe_text", .proven_by = "qwen3_5_moe",
     .experts = fused_experts, .shared = gated_shared, .renormalise = always(1), .rule = softmax},
    {.model_types = "qwen4_exp qwen4_exp_text", .doubt = "names of the experts' tensors",
     .experts = fused_experts, .shared = gated_shared, .renormalise = renormalised,
     .rule = softmax},
    {.model_types = "olmoe flex_olmo", .proven_by = "olmoe", .d_ff = dense_width,
     .renormalise = as_they_are, .rule = softmax},
    {.model_types = "jamba", .blocks = "feed_forward", .router = {.weight = "router.weight"},
     .d_ff = dense_width},
    {.model_types = "hunyuan_v1_moe", .router = {.weight = "gate.wg.weight"},
     .shared = shared(1, "shared_mlp."), .renormalise = always(1), .rule = softmax},
    {.model_types = "dbrx", .blocks = "ffn", .router = {.weight = "router.layer.weight"},
     .experts = {"experts.mlp.", &layouts::dbrx_names}, .d_ff = {"ffn_hidden_size"},
     .renormalise = always(1), .activation_keys = "ffn_act_fn.name", .rule = softmax,
     .only = {{{"moe_normalize_expert_weights", "1", "1"}}}},
    {.model_types = "nomic_bert", .doubt = "all of it is of remote code",
     .router = {.weight = "router.layer.weight"},
     .experts = {"experts.mlp.", &layouts::nomic_names}, .shared = output_bias("experts."),
     .d_model = {"n_embd hidden_size"}, .d_ff = {"n_inner intermediate_size"},
     .renormalise = {"moe_normalize_expert_weights", 0}, .activation_keys = "activation_function",
     .rule = softmax, .expert = {.activation = Activation::gelu_erf, .gated = false}},
    {.model_types = "deepseek", .shared = shared(0), .renormalise = as_they_are,
     .only = {{{"scoring_func", "softmax", "softmax"}}}},
    {.model_types = "deepseek_v2 deepseek_ocr2_text", .proven_by = "deepseek_v2",
     .shared = shared(2), .scale = one,
     .other_rule = {.when = {"topk_method", "group_limited_greedy", "greedy"},
                    .rule = {.selection = {.groups = GroupLimit{.rule = GroupRule::best,
                                                                .others = OtherGroups::zero}}}},
     .only = {{{"topk_method", "greedy group_limited_greedy", "greedy"}}}},
    {.model_types = "mistral4", .proven_by = "mistral4", .experts = fused_experts,
     .shared = shared(1), .renormalise = renormalised, .scale = one,
     .rule = {.selection = {.groups = two_best_else_zero}}},
    {.model_types = "ernie4_5_moe",
     .router = {.selection_bias = "moe_statics.e_score_correction_bias"}, .shared = shared(2),
     .renormalise = always(1), .epsilon = {"moe_norm_min", 1e-12},
     .has_expert_bias = {"use_bias", 0}, .rule = {.weight = {.epsilon_rule = EpsilonRule::least}}},
    // Which set a token's experts are of is the call's to say: mask_of_sets().
    {.model_types = "ernie4_5_vl_moe ernie4_5_moe_vl ernie4_5_vl_moe_text",
     .proven_by = "ernie4_5_vl_moe",
     .router = {.weight = "gate.weight text_moe.gate.weight",
                .selection_bias = "moe_statics.e_score_correction_bias "
                                  "text_moe.gate.moe_statics.e_score_correction_bias"},
     .shared = shared(2),
     .second = {.router = "gate.weight_1 vision_moe.gate.weight",
                .fused_bias = "vision_moe.gate.moe_statics.e_score_correction_bias",
                .first_fused = {"text_moe.experts.", &layouts::fused},
                .fused = {"vision_moe.experts.", &layouts::fused}},
     .renormalise = always(1), .epsilon = {"moe_norm_min", 1e-12},
     .has_expert_bias = {"use_bias", 0}, .rule = {.weight = {.epsilon_rule = EpsilonRule::least}}},
    {.model_types = "longcat_flash",
     .router = {.weight = "router.classifier.weight", .bias = "router.classifier.bias",
                .selection_bias = "router.e_score_correction_bias"},
     .d_ff = {"expert_ffn_hidden_size"}, .copies = {"zero_expert_num", 0},
     .scale = {keys::scale, 6}, .has_router_bias = {"router_bias", 0},
     .only = {{{"zero_expert_type", "identity", "identity"},
               {"norm_topk_prob", "false", "false"}}}},
    {.model_types = "bailing_moe bailing_moe_v2 bailing_moe_linear bailing_hybrid",
     .doubt = "all of it is of remote code; that of Ling 3 itself does not read its limits",
     .router = {.selection_bias = "gate.expert_bias gate.e_score_correction_bias"},
     .shared = limited(shared(0, "shared_experts.",
                              "moe_shared_expert_intermediate_size moe_intermediate_size"),
                       {"share_expert_swiglu_limit_list", 0}),
     .renormalise = as_they_are, .scale = one, .limit = {"expert_swiglu_limit_list", 0},
     .has_selection_bias = {"moe_router_enable_expert_bias", 0}, .rule = softmax,
     .other_rule = {.when = {"score_function", "sigmoid", "softmax"}, .rule = v3},
     .expert = {.clamp = Clamp::after}, .only = {{{"score_function", "softmax sigmoid", "softmax"}}}},
    {.model_types = "gemma4 gemma4_text diffusion_gemma diffusion_gemma_text",
     .proven_by = "gemma4", .blocks = "", .router_type = RouterType::norm_router,
     .router = {.weight = "router.proj.weight", .norm_scale = "router.scale",
                .expert_scale = "router.per_expert_scale"},
     .experts = fused_experts, .renormalise = always(1),
     .rule = {.weight = {.epsilon = 0.0, .expert_scale = ExpertScale::learned}},
     .expert = {.activation = Activation::gelu_tanh}},
    {.model_types = "switch_transformers", .proven_by = "switch_transformers",
     .blocks = "layer.1.mlp layer.2.mlp",
     .router = {.weight = "router.classifier.weight", .bias = "router.classifier.bias"},
     .experts = {"experts.expert_*.", &layouts::switch_names}, .d_ff = {"d_ff"},
     .top_k = always(1), .jitter = {"router_jitter_noise", 0.01},
     .capacity = {"expert_capacity", 64}, .has_router_bias = {"router_bias", 0},
     .activation_keys = "dense_act_fn",
     .expert = {.activation = Activation::relu, .gated = false},
     .only = {{{"is_gated_act", "false", "false"}}}},

    // A state from layer to layer: a router reads {x, [x, state of the layer before]}. The last
    // expert gives nothing.
    {.model_types = "zaya",
     .doubt = "earlier code of its makers has other names, and its last expert passes the token on",
     .router_type = RouterType::state_router,
     .router = {.weight = "gate.router_mlp.out_proj.weight",
                .selection_bias = "gate.balancing_biases"},
     .state = {.down = "gate.down_proj.", .scale = "gate.router_states_scale",
               .norm = "gate.router_mlp.norm.weight", .first = "gate.router_mlp.fc1.",
               .second = "gate.router_mlp.fc2.", .width = {"router_hidden_size", 256}},
     .experts = fused_experts, .d_model = {"hidden_size", 2048},
     .d_ff = {"moe_intermediate_size", 2048}, .num_experts = {keys::num_experts, 16},
     .zeros = always(1), .top_k = {keys::top_k, 1}, .norm_epsilon = {"rms_norm_eps", 1e-5}},

    // Two experts, one after the other.
    {.model_types = "phimoe", .proven_by = "phimoe", .blocks = mixtral_blocks,
     .router_type = RouterType::sparse_mixer, .router = {.weight = "gate.weight router.weight"},
     .experts = mixtral_experts, .d_ff = dense_width, .top_k = always(2),
     .jitter = {"input_jitter_noise", 0}, .near_jitter = {"router_jitter_noise", 0.01}},
    // As it is evaluated: in training a call's capacity is expert_capacity rows, and there is
    // dropout in the place of its scale.
    {.model_types = "nllb-moe",
     .doubt = "with the policy random and weights that are normalised before it, its code leaves "
              "the second as it was; both stacks are taken to be encoder_ffn_dim wide",
     .blocks = "ffn", .router_type = RouterType::second_expert,
     .router = {.weight = "router.classifier.weight", .bias = "router.classifier.bias"},
     .experts = {"experts.expert_*.", &layouts::nllb_names}, .d_model = {"hidden_size d_model", 1024},
     .d_ff = {"encoder_ffn_dim", 4096}, .num_experts = {keys::num_experts, 128},
     .top_k = always(2), .capacity = {"expert_capacity", 64},
     .capacity_share = {"moe_eval_capacity_token_fraction", 1}, .dropout = {"moe_token_dropout", 0.2},
     .drops_by_priority = {"batch_prioritized_routing", "true", "false"},
     .normalises_before = {"normalize_router_prob_before_dropping", "true", "false"},
     .second_policy = "second_expert_policy", .has_router_bias = {"router_bias", 0},
     .has_expert_bias = always(1), .activation_keys = "activation_function",
     .expert = {.activation = Activation::relu, .gated = false}},

    // The k best logits, then a softmax over those.
    {.model_types = "gpt_oss", .proven_by = "gpt_oss",
     .router = {.weight = "router.weight", .bias = "router.bias"},
     .experts = {"experts.", &layouts::gpt_oss_names}, .d_ff = dense_width,
     .limit = {"swiglu_limit", 7}, .has_expert_bias = always(1), .activation_keys = {},
     .rule = softmax_of_chosen, .expert = gpt_oss_swiglu},
    // Weights are divided by k, and the output multiplied by it: neither is done here.
    {.model_types = "openai_privacy_filter",
     .doubt = "keys of config.json; the constants 1.702 and 7 are taken for gpt-oss's",
     .router = {.weight = "router.weight", .bias = "router.bias"},
     .experts = {"experts.", &layouts::privacy_filter_names}, .d_ff = dense_width,
     .limit = {"swiglu_limit", 7}, .has_expert_bias = always(1), .activation_keys = {},
     .rule = softmax_of_chosen, .expert = gpt_oss_swiglu},
    {.model_types = "granitemoe", .proven_by = "granitemoe", .blocks = mixtral_blocks,
     .router = {.weight = "router.layer.weight"}, .experts = {"", &layouts::granite_names},
     .d_ff = dense_width, .rule = softmax_of_chosen},
    // Its experts of attention are not of the block.
    {.model_types = "jetmoe", .blocks = "", .router = {.weight = "mlp.router.layer.weight"},
     .experts = {"mlp.", &layouts::granite_names}, .shared = output_bias("mlp."),
     .d_ff = dense_width, .activation_keys = "activation_function", .rule = softmax_of_chosen},
    {.model_types = "granitemoeshared granitemoehybrid", .blocks = "",
     .router = {.weight = "block_sparse_moe.router.layer.weight"},
     .experts = {"block_sparse_moe.", &layouts::granite_names},
     .shared = {.prefixes = "shared_mlp.", .names = &layouts::granite_names,
                .width = {"shared_intermediate_size"}},
     .d_ff = dense_width, .rule = softmax_of_chosen},
    {.model_types = "granitemoe_swa", .doubt = "name of the router's tensor", .blocks = "",
     .router = {.weight = "block_sparse_moe.router.weight block_sparse_moe.router.layer.weight"},
     .experts = {"block_sparse_moe.experts.", &layouts::fused},
     .shared = {.prefixes = "shared_mlp.", .names = &layouts::granite_names,
                .width = {"shared_intermediate_size"}},
     .d_ff = dense_width, .rule = softmax_of_chosen},
    // Chosen by sigmoids, whose order is that of the logits.
    {.model_types = "grove_moe",
     .doubt = "all of it is of remote code, which has the constants 128, 2 and 0.05",
     .adjugates = {.layout = {"chunk_experts.*.", &layouts::projections}, .width = always(128),
                   .each = always(2), .scale = always(0.05)},
     .unused = "expert_bias", .rule = softmax_of_chosen},
    // The best expert of each group, and as many groups; weights times a scale of the expert.
    {.model_types = "PanguProMoE", .doubt = "all of it is of remote code and of engines",
     .router = {.expert_scale = "router_scale"},
     .shared = {.prefixes = "shared_expert.", .width = {"shared_expert_intermediate_size", 0}},
     .groups = {keys::top_k},
     .rule = {.selection = {.groups = GroupLimit{.rule = GroupRule::equal_quota}},
              .weight = {.epsilon = 0.0, .expert_scale = ExpertScale::learned}}},
    {.model_types = "aria aria_text", .router = {.weight = "router.weight"},
     .experts = {"experts.", &layouts::aria_names},
     .shared = shared(2, "shared_experts.", "intermediate_size"), .d_ff = dense_width,
     .rule = softmax_of_chosen},
    {.model_types = "cohere2_moe", .proven_by = "cohere2_moe",
     .shared = {.prefixes = "shared_experts.", .width = dense_width, .count = {keys::num_shared, 0},
                .averaged = {"shared_expert_combination_strategy", "average", "average"}},
     .d_ff = dense_width, .renormalise = renormalised, .rule = softmax_of_chosen,
     .other_rule = {.when = {"expert_selection_fn", "sigmoid", "nothing"},
                    .rule = sigmoid_without_epsilon},
     .only = {{{"expert_selection_fn", "softmax sigmoid", "nothing"},
               {"shared_expert_combination_strategy", "average sum", "average"}}}},
    // Its router reads the tokens as they are before the attention.
    {.model_types = "smallthinker", .doubt = "all of it is of remote code",
     .blocks = "block_sparse_moe", .router = {.weight = "primary_router.weight"},
     .experts = {"experts.*.", &layouts::smallthinker_names}, .d_ff = {"moe_ffn_hidden_size"},
     .num_experts = {"moe_num_primary_experts"}, .top_k = {"moe_num_active_primary_experts"},
     .renormalise = always(1), .activation_keys = {}, .rule = sigmoid_without_epsilon,
     .other_rule = {.when = {"moe_primary_router_apply_softmax", "true", "false"},
                    .rule = softmax_of_chosen},
     .expert = {.activation = Activation::relu}},

    // A sigmoid for each expert, the k best by it, most of them with a bias.
    {.model_types = "llama4 llama4_text", .blocks = "feed_forward",
     .router = {.weight = "router.weight"}, .experts = transposed_experts,
     .shared = {.prefixes = "shared_expert.", .width = dense_width}, .d_ff = dense_width,
     .rule = sigmoid, .weight_on = WeightOn::input},
    {.model_types = "minimax_m2", .blocks = mixtral_blocks, .router = block_bias,
     .experts = mixtral_experts, .d_ff = dense_width, .renormalise = always(1),
     .has_selection_bias = {"use_routing_bias", 1}, .rule = sigmoid_without_epsilon},
    {.model_types = "minimax_m3_vl minimax_m3_vl_text", .proven_by = "minimax_m3",
     .blocks = mixtral_blocks, .router = block_bias, .experts = mixtral_experts,
     .shared = {.prefixes = "shared_experts.", .width = {"shared_intermediate_size"},
                .limit = {"swiglu_limit", 7}},
     .d_ff = dense_width, .renormalise = always(1), .routed_scale = {keys::scale, 2},
     .limit = {"swiglu_limit", 7}, .alpha = {"swiglu_alpha", 1.702}, .activation_keys = {},
     .rule = sigmoid_without_epsilon, .expert = gpt_oss_swiglu},
    {.model_types = "step3p7 step3p5 step3p7_text", .proven_by = "step3p7", .blocks = "",
     .router = {.weight = "moe.gate.weight", .selection_bias = "moe.router_bias"},
     .experts = {"moe.", &layouts::projections},
     .shared = {.prefixes = "share_expert.", .width = {"share_expert_dim"},
                .limit = {"swiglu_limits_shared", 0}},
     .renormalise = always(1), .routed_scale = {keys::scale}, .limit = {"swiglu_limits", 0},
     .rule = sigmoid_without_epsilon, .expert = {.clamp = Clamp::after}},
    {.model_types = "laguna", .proven_by = "laguna",
     .router = {.selection_bias =
                    "experts.e_score_correction_bias gate.e_score_correction_bias"},
     .shared = {.prefixes = "shared_expert. shared_experts.",
                .width = {"shared_expert_intermediate_size"}},
     .renormalise = always(1), .routed_scale = one,
     .softcap = {"moe_router_logit_softcapping", 0}, .rule = sigmoid_without_epsilon,
     .only = {{{"moe_apply_router_weight_on_input", "false", "false"}}}},
    {.model_types = "lfm2_moe", .blocks = "feed_forward",
     .router = {.selection_bias = "expert_bias"}, .experts = mixtral_experts,
     .renormalise = renormalised, .scale = one, .has_selection_bias = {"use_expert_bias", 1},
     .rule = {.score = Score::sigmoid, .weight = {.epsilon = 1e-6}}},
    {.model_types = "afmoe",
     .router = {.weight = "router.gate.weight", .selection_bias = "expert_bias"},
     .shared = shared(0), .renormalise = always(1), .scale = {keys::scale}, .rule = sigmoid},
    {.model_types = "hy_v3",
     .router = {.weight = "router.gate.weight", .selection_bias = "expert_bias"},
     .shared = shared(1, "shared_mlp. shared_experts."), .renormalise = always(1),
     .scale = {keys::scale}, .rule = sigmoid},
    {.model_types = "Klear klear", .doubt = "all of it is of remote code",
     .router = {.selection_bias = "expert_bias"},
     .shared = weighed({.prefixes = "shared_experts.", .width = {"moe_intermediate_size"},
                        .count = {keys::num_shared}},
                       "coefficient."),
     .renormalise = {keys::renormalise}, .rule = sigmoid_without_epsilon},
    {.model_types = "inkling inkling_text", .proven_by = "inkling",
     .router = {.selection_bias = "gate.bias", .expert_scale = "gate.global_scale"},
     .experts = {"experts.", &layouts::inkling_names},
     .always_chosen = {{"shared_experts.", &layouts::inkling_shared_names}, {keys::num_shared}},
     .renormalise = always(1), .scale = {keys::scale},
     .rule = {.score = Score::sigmoid,
              .weight = {.epsilon = 0.0, .expert_scale = ExpertScale::learned_for_all}},
     .weight_on = WeightOn::hidden,
     .only = {{{"shared_expert_sink", "true", "true"}}}},
    {.model_types = "deepseek_v3 deepseek_v32 kimi_k2 kimi_k25", .proven_by = "deepseek_v3",
     .router = v3_router, .shared = shared(1), .renormalise = renormalised,
     .scale = {keys::scale, 2.5}, .groups = eight_groups, .kept_groups = four_kept, .rule = v3},
    // The norm of the block's output stands beside the block.
    {.model_types = "axk1", .blocks = "",
     .router = {.weight = "mlp.gate.weight", .selection_bias = "mlp.gate.e_score_correction_bias"},
     .experts = {"mlp.experts.*.", &layouts::projections},
     .shared = shared(1, "mlp.shared_experts."), .output_norm = "post_mlp_layernorm.weight",
     .renormalise = renormalised, .scale = {keys::scale, 2.5}, .groups = eight_groups,
     .kept_groups = four_kept, .rule = v3},
    {.model_types = "sarvam_moe sarvam_mla",
     .doubt = "all of it is of engines, which take the mean from the bias: the choice is the same",
     .router = {.selection_bias = "gate.expert_bias gate.e_score_correction_bias"},
     .shared = shared(1, "shared_experts.",
                      "moe_shared_expert_intermediate_size moe_intermediate_size"),
     .renormalise = renormalised, .scale = {keys::scale, 2.5},
     .has_selection_bias = {"moe_router_enable_expert_bias", 1}, .rule = v3,
     .only = {{{"score_function", "sigmoid", "sigmoid"}}}},
    // Its key for the shared experts is the width of all of them.
    {.model_types = "param2moe", .doubt = "all of it is of engines",
     .router = {.selection_bias = "gate.expert_bias gate.e_score_correction_bias"},
     .shared = {.prefixes = "shared_experts.", .width = {"moe_shared_expert_intermediate_size"}},
     .renormalise = renormalised, .scale = one,
     .has_selection_bias = {"moe_router_enable_expert_bias", 1}, .rule = v3,
     .only = {{{"score_function", "sigmoid", "sigmoid"}}}},
    {.model_types = "axk2", .router = v3_router, .shared = shared(1), .renormalise = renormalised,
     .scale = {keys::scale},
     .rule = {.score = Score::sigmoid, .selection = {.groups = two_best_else_zero}}},
    {.model_types = "glm4_moe glm4v_moe glm4v_moe_text glm4_moe_lite glm_moe_dsa solar_open",
     .proven_by = "glm_moe_dsa", .router = v3_router, .shared = shared(1),
     .renormalise = renormalised, .scale = {keys::scale}, .rule = v3},
    {.model_types = "glm5_next glm5_next_text", .doubt = "names of the tensors",
     .router = v3_router, .shared = limited(shared(1), ten),
     .renormalise = renormalised, .scale = {keys::scale}, .limit = ten, .rule = v3},
    {.model_types = "hy_v4", .router = v3_router, .shared = shared(1),
     .renormalise = renormalised, .scale = {keys::scale, 2.827}, .limit = ten, .rule = v3},
    {.model_types = "dots1", .router = v3_router, .shared = shared(0), .renormalise = as_they_are,
     .scale = one, .rule = v3},
    {.model_types = "exaone_moe", .router = block_bias, .shared = shared(1),
     .renormalise = renormalised, .scale = {keys::scale, 2.5}, .rule = v3},
    {.model_types = "mimo_v2_flash", .router = v3_router, .renormalise = renormalised,
     .scale = one, .rule = v3},
    // Kimi-K3's model of text calls itself kimi_linear, too.
    {.model_types = "kimi_linear kimi_k3 kimi_k3_text", .doubt = "all of it is of remote code",
     .blocks = mixtral_blocks, .router = v3_router, .experts = mixtral_experts,
     .shared = shared(1),
     .latent = {.down = "routed_expert_down_proj.weight", .up = "routed_expert_up_proj.weight",
                .norm = "routed_expert_norm.weight", .width = {"routed_expert_hidden_size", 0},
                .has_norm = {"latent_moe_use_norm", 1}},
     .renormalise = renormalised, .scale = {keys::scale}, .rule = v3,
     .only = {{{"moe_router_activation_func", "sigmoid", "sigmoid"}}}},
    {.model_types = "nemotron_h", .proven_by = "nemotron_h", .blocks = "mixer",
     .router = v3_router, .experts = {"experts.*.", &layouts::up_down},
     .shared = {.prefixes = "shared_experts.", .names = &layouts::up_down,
                .width = {"moe_shared_expert_intermediate_size"}},
     .latent = {.down = "fc1_latent_proj.weight", .up = "fc2_latent_proj.weight",
                .width = {"moe_latent_size", 0}},
     .renormalise = renormalised, .scale = one, .activation_keys = "mlp_hidden_act", .rule = v3,
     .expert = {.activation = Activation::relu_squared, .gated = false}},

    // The square root of a softplus, and in some layers a table of experts by the token's id.
    {.model_types = "deepseek_v4 deepseek_v4_text", .proven_by = "deepseek_v4", .blocks = "ffn mlp",
     .router = {.selection_bias = "gate.bias gate.e_score_correction_bias",
                .table = "gate.tid2eid"},
     .experts = mixtral_experts,
     .shared = {.prefixes = "shared_experts.", .names = &layouts::mixtral_names,
                .width = {"moe_intermediate_size"}, .count = {keys::num_shared, 1}, .limit = ten},
     .renormalise = always(1), .scale = {keys::scale, 1.5}, .limit = ten,
     .rule = {.score = Score::sqrt_softplus},
     .other_rule = {.when = {"mlp_layer_types", "hash_moe", ""},
                    .first_layers = {"num_hash_layers", 3},
                    .rule = {.score = Score::sqrt_softplus, .selection = {.vocabulary = 1}}}},
};
// clang-format on

inline constexpr UnsupportedFamily unsupported_families[] = {
    {"doge", "experts of rank one that are found by product keys"},
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
