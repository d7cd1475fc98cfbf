// SPDX-License-Identifier: Apache-2.0
// Names and shapes of tensors as families publish them, written out: 4 experts of width 6, 8 wide,
// or inside of a latent width of 3.
// The recorded layers of the golden tests hold the other families to theirs.
#include "moe/io/layer_names.hpp"

#include <gtest/gtest.h>

#include "moe/io/families.hpp"

namespace moe::io::testing::layer_names_test {
namespace {

constexpr Index E = 4, F = 6, D = 8, L = 3;  // L is also the width of a router's state

struct Published {
  const char* model_type;
  const char* parameter;
  const char* tensor;
  std::vector<Index> shape;
};

Shape shape_of(std::string_view parameter) {
  const std::string_view tensor = parameter.substr(parameter.rfind('.') + 1);
  const bool routes = parameter.starts_with("router.");
  if (routes && (tensor == "down" || tensor == "first" || tensor == "second")) {
    return {L, tensor == "down" ? D : L};
  }
  if (routes && (tensor == "state_scale" || tensor == "norm" || tensor.ends_with("t_bias"))) {
    return {1, L};
  }
  if (parameter == "output_norm.scale") {
    return {1, D};
  }
  if (parameter.starts_with("coefficients.")) {
    return tensor == "weight" ? Shape{2, D} : Shape{1, 2};
  }
  if (parameter.starts_with("latent.")) {
    return tensor == "down" ? Shape{L, D} : tensor == "up" ? Shape{D, L} : Shape{1, L};
  }
  return tensor == "output_gate"                        ? Shape{1, D}
         : routes && tensor == "weight"                 ? Shape{E, D}
         : routes                                       ? Shape{1, E}
         : tensor == "down"                             ? Shape{D, F}
         : tensor == "down_bias"                        ? Shape{1, D}
         : tensor == "gate_bias" || tensor == "up_bias" ? Shape{1, F}
                                                        : Shape{F, D};
}

LayerNames names_of(const Family& family) {
  std::string block;
  if (const auto blocks = detail::words(family.blocks); !blocks.empty()) {
    block = detail::joined(blocks.front(), ".");
  }
  const ExpertCounts counts{.ranked = E,
                            .always = family.always_chosen.layout.names != nullptr ? 2 : 0};
  return {family, std::move(block), counts, [](const std::string&) { return false; }};
}

TEST(LayerNames, AreThoseThatAreOnDisk) {
  const Published all[] = {
      {"arctic", "experts.3.up", "block_sparse_moe.experts.3.w3.weight", {F, D}},
      {"qwen3_next", "router.weight", "mlp.gate.weight", {E, D}},
      {"qwen3_next", "experts.2.up", "mlp.experts.2.up_proj.weight", {F, D}},
      {"qwen3_next", "shared.gate", "mlp.shared_expert.gate_proj.weight", {F, D}},
      {"qwen3_next", "shared.output_gate", "mlp.shared_expert_gate.weight", {1, D}},
      {"qwen3_vl_moe", "experts.1.up", "mlp.experts.gate_up_proj", {E, D, 2 * F}},
      {"qwen3_vl_moe", "experts.1.down", "mlp.experts.down_proj", {E, F, D}},
      {"qwen4_exp", "experts.1.gate", "mlp.experts.gate_up_proj", {E, 2 * F, D}},
      {"flex_olmo", "experts.0.down", "mlp.experts.0.down_proj.weight", {D, F}},
      {"jamba", "router.weight", "feed_forward.router.weight", {E, D}},
      {"jamba", "experts.2.down", "feed_forward.experts.2.down_proj.weight", {D, F}},
      {"hunyuan_v1_moe", "router.weight", "mlp.gate.wg.weight", {E, D}},
      {"hunyuan_v1_moe", "shared.up", "mlp.shared_mlp.up_proj.weight", {F, D}},
      {"dbrx", "router.weight", "ffn.router.layer.weight", {E, D}},
      {"dbrx", "experts.1.gate", "ffn.experts.mlp.w1", {E * F, D}},
      {"dbrx", "experts.1.up", "ffn.experts.mlp.v1", {E * F, D}},
      {"dbrx", "experts.1.down", "ffn.experts.mlp.w2", {E * F, D}},
      {"deepseek", "shared.down", "mlp.shared_experts.down_proj.weight", {D, F}},
      {"ernie4_5_moe", "router.selection_bias", "mlp.moe_statics.e_score_correction_bias", {E}},
      {"ernie4_5_moe", "experts.1.up_bias", "mlp.experts.1.up_proj.bias", {F}},
      {"longcat_flash", "router.weight", "mlp.router.classifier.weight", {E, D}},
      {"longcat_flash", "router.selection_bias", "mlp.router.e_score_correction_bias", {E}},
      {"longcat_flash", "experts.3.up", "mlp.experts.3.up_proj.weight", {F, D}},
      {"nllb-moe", "router.weight", "ffn.router.classifier.weight", {E, D}},
      {"nllb-moe", "experts.3.up", "ffn.experts.expert_3.fc1.weight", {F, D}},
      {"nllb-moe", "experts.3.up_bias", "ffn.experts.expert_3.fc1.bias", {F}},
      {"nllb-moe", "experts.3.down", "ffn.experts.expert_3.fc2.weight", {D, F}},
      {"nllb-moe", "experts.3.down_bias", "ffn.experts.expert_3.fc2.bias", {D}},
      {"zaya", "router.weight", "mlp.gate.router_mlp.out_proj.weight", {E, D}},
      {"zaya", "router.selection_bias", "mlp.gate.balancing_biases", {E}},
      {"zaya", "router.down", "mlp.gate.down_proj.weight", {L, D}},
      {"zaya", "router.state_scale", "mlp.gate.router_states_scale", {L}},
      {"zaya", "router.norm", "mlp.gate.router_mlp.norm.weight", {L}},
      {"zaya", "router.first", "mlp.gate.router_mlp.fc1.weight", {L, L}},
      {"zaya", "router.first_bias", "mlp.gate.router_mlp.fc1.bias", {L}},
      {"zaya", "router.second", "mlp.gate.router_mlp.fc2.weight", {L, L}},
      {"zaya", "experts.3.up", "mlp.experts.gate_up_proj", {E, 2 * F, D}},
      {"Klear", "router.selection_bias", "mlp.expert_bias", {E}},
      {"Klear", "shared.up", "mlp.shared_experts.up_proj.weight", {F, D}},
      {"Klear", "coefficients.weight", "mlp.coefficient.weight", {2, D}},
      {"Klear", "coefficients.bias", "mlp.coefficient.bias", {2}},
      {"inkling", "router.selection_bias", "mlp.gate.bias", {E}},
      {"inkling", "experts.3.up", "mlp.experts.w13_weight", {E, 2 * F, D}},
      {"inkling", "experts.4.gate", "mlp.shared_experts.shared_w13_weight", {2, 2 * F, D}},
      {"inkling", "experts.5.down", "mlp.shared_experts.shared_w2_weight", {2, D, F}},
      {"bailing_moe", "router.selection_bias", "mlp.gate.expert_bias", {E}},
      {"openai_privacy_filter", "router.bias", "mlp.router.bias", {E}},
      {"openai_privacy_filter", "experts.2.up", "mlp.experts.gate_up_proj", {E, D, 2 * F}},
      {"openai_privacy_filter", "experts.2.up_bias", "mlp.experts.gate_up_proj_bias", {E, 2 * F}},
      {"openai_privacy_filter", "experts.2.down_bias", "mlp.experts.down_proj_bias", {E, D}},
      {"granitemoehybrid", "router.weight", "block_sparse_moe.router.layer.weight", {E, D}},
      {"granitemoehybrid", "experts.0.up", "block_sparse_moe.input_linear.weight", {E, 2 * F, D}},
      {"granitemoehybrid", "experts.0.down", "block_sparse_moe.output_linear.weight", {E, D, F}},
      {"granitemoehybrid", "shared.gate", "shared_mlp.input_linear.weight", {2 * F, D}},
      {"granitemoe_swa", "experts.0.up", "block_sparse_moe.experts.gate_up_proj", {E, 2 * F, D}},
      {"jetmoe", "shared.down_bias", "mlp.bias", {D}},
      {"nomic_bert", "experts.2.up", "mlp.experts.mlp.w1", {E * F, D}},
      {"nomic_bert", "shared.down_bias", "mlp.experts.bias", {D}},
      {"aria", "router.weight", "mlp.router.weight", {E, D}},
      {"aria", "experts.3.gate", "mlp.experts.fc1.weight", {E, D, 2 * F}},
      {"aria", "experts.3.down", "mlp.experts.fc2.weight", {E, F, D}},
      {"smallthinker", "router.weight", "block_sparse_moe.primary_router.weight", {E, D}},
      {"smallthinker", "experts.3.gate", "block_sparse_moe.experts.3.gate.weight", {F, D}},
      {"llama4", "router.weight", "feed_forward.router.weight", {E, D}},
      {"llama4", "experts.0.up", "feed_forward.experts.gate_up_proj", {E, D, 2 * F}},
      {"llama4", "shared.up", "feed_forward.shared_expert.up_proj.weight", {F, D}},
      {"minimax_m2", "router.weight", "block_sparse_moe.gate.weight", {E, D}},
      {"minimax_m2", "router.selection_bias", "block_sparse_moe.e_score_correction_bias", {E}},
      {"lfm2_moe", "router.weight", "feed_forward.gate.weight", {E, D}},
      {"lfm2_moe", "router.selection_bias", "feed_forward.expert_bias", {E}},
      {"lfm2_moe", "experts.1.down", "feed_forward.experts.1.w2.weight", {D, F}},
      {"afmoe", "router.weight", "mlp.router.gate.weight", {E, D}},
      {"afmoe", "router.selection_bias", "mlp.expert_bias", {E}},
      {"afmoe", "shared.down", "mlp.shared_experts.down_proj.weight", {D, F}},
      {"hy_v3", "router.selection_bias", "mlp.expert_bias", {E}},
      {"hy_v3", "shared.gate", "mlp.shared_mlp.gate_proj.weight", {F, D}},
      {"hy_v4", "router.selection_bias", "mlp.gate.e_score_correction_bias", {E}},
      {"grove_moe", "router.weight", "mlp.gate.weight", {E, D}},
      {"grove_moe", "experts.3.up", "mlp.experts.3.up_proj.weight", {F, D}},
      {"grove_moe", "adjugates.1.down", "mlp.chunk_experts.1.down_proj.weight", {D, F}},
      {"PanguProMoE", "router.expert_scale", "mlp.router_scale", {E}},
      {"PanguProMoE", "shared.up", "mlp.shared_expert.up_proj.weight", {F, D}},
      {"sarvam_mla", "router.selection_bias", "mlp.gate.expert_bias", {E}},
      {"sarvam_moe", "shared.down", "mlp.shared_experts.down_proj.weight", {D, F}},
      {"param2moe", "experts.0.gate", "mlp.experts.0.gate_proj.weight", {F, D}},
      {"param2moe", "router.selection_bias", "mlp.gate.expert_bias", {E}},
      {"axk1", "router.weight", "mlp.gate.weight", {E, D}},
      {"axk1", "router.selection_bias", "mlp.gate.e_score_correction_bias", {E}},
      {"axk1", "experts.3.down", "mlp.experts.3.down_proj.weight", {D, F}},
      {"axk1", "shared.up", "mlp.shared_experts.up_proj.weight", {F, D}},
      {"axk1", "output_norm.scale", "post_mlp_layernorm.weight", {D}},
      {"axk2", "shared.up", "mlp.shared_experts.up_proj.weight", {F, D}},
      {"dots1", "router.selection_bias", "mlp.gate.e_score_correction_bias", {E}},
      {"dots3_note", "router.selection_bias", "mlp.gate.e_score_correction_bias", {E}},
      {"dots3_note", "experts.3.up", "mlp.experts.3.up_proj.weight", {F, D}},
      {"dots3_note_omni", "shared.down", "mlp.shared_experts.down_proj.weight", {D, F}},
      {"pangu_ultra_moe", "router.weight", "mlp.gate.weight", {E, D}},
      {"pangu_ultra_moe", "experts.0.down", "mlp.experts.0.down_proj.weight", {D, F}},
      {"pangu_ultra_moe", "shared.gate", "mlp.shared_experts.gate_proj.weight", {F, D}},
      {"mimo_v2_flash", "experts.2.gate", "mlp.experts.2.gate_proj.weight", {F, D}},
      {"exaone_moe", "router.selection_bias", "mlp.e_score_correction_bias", {E}},
      {"kimi_linear", "experts.1.gate", "block_sparse_moe.experts.1.w1.weight", {F, D}},
      {"kimi_k3", "latent.down", "block_sparse_moe.routed_expert_down_proj.weight", {L, D}},
      {"kimi_k3", "latent.up", "block_sparse_moe.routed_expert_up_proj.weight", {D, L}},
      {"kimi_k3", "latent.norm", "block_sparse_moe.routed_expert_norm.weight", {L}},
      {"kimi_k3", "shared.up", "block_sparse_moe.shared_experts.up_proj.weight", {F, D}},
      {"kimi_linear",
       "router.selection_bias",
       "block_sparse_moe.gate.e_score_correction_bias",
       {E}}};
  for (const Published& each : all) {
    const Family* const family = find_family(each.model_type);
    ASSERT_NE(family, nullptr) << each.model_type;
    const Place place = names_of(*family).place(each.parameter, shape_of(each.parameter));
    EXPECT_EQ(place.tensor, each.tensor) << each.model_type;
    EXPECT_EQ(place.shape, each.shape) << each.model_type << ' ' << each.parameter;
  }
}

TEST(LayerNames, OfWhatAFamilyHasNotAreRefused) {
  const LayerNames names = names_of(*find_family("mixtral"));
  for (const char* parameter :
       {"router.bias", "router.selection_bias", "router.norm_scale", "shared.up",
        "shared.output_gate", "experts.0.up_bias", "latent.norm", "coefficients.bias",
        "adjugates.0.up", "output_norm.scale", "experts.4.up"}) {
    EXPECT_THROW(names.place(parameter, shape_of(parameter)), std::invalid_argument) << parameter;
  }
  EXPECT_THROW(names.table(), std::invalid_argument);
  EXPECT_EQ(names_of(*find_family("deepseek_v4")).table(), "ffn.gate.tid2eid");
}

}  // namespace
}  // namespace moe::io::testing::layer_names_test
