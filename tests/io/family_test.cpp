// SPDX-License-Identifier: Apache-2.0
// What layer_config() makes of a config.json, and what it refuses.
#include "moe/io/family.hpp"

#include "model_folder.hpp"
#include "moe/io/families.hpp"

namespace moe::io::testing {
namespace {

MoEConfig config_of(std::string_view family, std::string_view text, Index layer = 0) {
  const Family* const found = find_family(family);
  EXPECT_NE(found, nullptr) << family;
  return layer_config(*found, ModelConfig::parse(text, "config.json"), layer);
}

TEST(Family, Qwen3MoeIsASoftmaxRouterOfItsOwnExpertWidth) {
  const MoEConfig config = config_of("qwen3_moe", R"({"hidden_size": 2048, "num_experts": 128,
      "num_experts_per_tok": 8, "intermediate_size": 6144, "moe_intermediate_size": 768,
      "norm_topk_prob": true, "hidden_act": "silu"})");
  EXPECT_EQ(config.d_model, 2048);
  EXPECT_EQ(config.d_ff, 768);
  EXPECT_EQ(config.num_experts, 128);
  EXPECT_EQ(config.top_k, 8);
  EXPECT_EQ(config.router.score, Score::softmax);
  EXPECT_EQ(config.router.weight.renormalise, true);
  EXPECT_EQ(config.expert.activation, Activation::silu);
  EXPECT_TRUE(config.expert.gated);
  EXPECT_FALSE(config.shared);
}

TEST(Family, DeepSeekV3IsASigmoidRouterWithABiasScaleAndSharedExperts) {
  const MoEConfig config = config_of("deepseek_v3", R"({"hidden_size": 64, "n_routed_experts": 8,
      "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 2, "n_group": 1})");
  EXPECT_EQ(config.router.score, Score::sigmoid);
  EXPECT_TRUE(config.router.selection.bias);
  EXPECT_EQ(config.router.weight.scale, 2.5);
  EXPECT_EQ(config.router.weight.renormalise, true);
  ASSERT_TRUE(config.shared);
  EXPECT_EQ(config.shared->d_ff, 48);
  EXPECT_FALSE(config.shared->output_gate);
}

TEST(Family, SwitchTransformersIsTopOneWithCapacityAndPlainExperts) {
  const MoEConfig config = config_of("switch_transformers", R"({"d_model": 8, "d_ff": 16,
      "num_experts": 4, "expert_capacity": 3, "dense_act_fn": "relu"})");
  EXPECT_EQ(config.top_k, 1);
  EXPECT_EQ(config.capacity.rows, 3);
  EXPECT_FALSE(config.expert.gated);
  EXPECT_FALSE(config.router.logits.bias);
  EXPECT_EQ(config.expert.activation, Activation::relu);
}

TEST(Family, GraniteTakesASoftmaxOfTheChosen) {
  const MoEConfig config =
      config_of("granitemoehybrid", R"({"hidden_size": 8, "num_local_experts": 4,
      "intermediate_size": 16, "num_experts_per_tok": 2, "shared_intermediate_size": 0})");
  EXPECT_EQ(config.router.weight.source, WeightSource::softmax_of_chosen);
  EXPECT_FALSE(config.shared);
}

constexpr std::string_view sizes = R"("hidden_size": 8, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16)";

TEST(Family, TakesDefaultsOfLeftOutKeysByFamily) {
  const std::string text = joined("{", sizes, "}");
  EXPECT_EQ(
      config_of("qwen3_next", joined("{", sizes, R"(, "shared_expert_intermediate_size": 4})"))
          .router.weight.renormalise,
      true);
  EXPECT_EQ(config_of("qwen3_moe", text).router.weight.renormalise, false);
  EXPECT_EQ(config_of("deepseek_v2", text).shared->d_ff, 32);
  EXPECT_EQ(config_of("mimo_v2_flash", joined("{", sizes, R"(, "routed_scaling_factor": null})"))
                .router.weight.scale,
            1.0);
}

TEST(Family, TakesTheEntryOfItsLayerFromAList) {
  const std::string_view text = R"({"hidden_size": 8, "num_experts": [4, 6], "moe_topk": [1, 2],
      "moe_intermediate_size": [16, 20], "num_shared_expert": 1})";
  EXPECT_EQ(config_of("hunyuan_v1_moe", text, 0).num_experts, 4);
  const MoEConfig second = config_of("hunyuan_v1_moe", text, 1);
  EXPECT_EQ(second.num_experts, 6);
  EXPECT_EQ(second.top_k, 2);
  EXPECT_EQ(second.shared->d_ff, 20);
}

void expect_config_fault(std::string_view family, const std::string& text,
                         std::initializer_list<std::string_view> facts) {
  expect_fault([&] { config_of(family, text); }, "config.json", "", facts);
}

TEST(Family, RefusesAConfigThatItCannotObey) {
  expect_config_fault("deepseek_v3", joined("{", sizes, "}"),
                      {"n_group", "8 (where it is left out)"});
  expect_config_fault("deepseek_v3", joined("{", sizes, R"(, "n_group": 4})"),
                      {"n_group", "4", "expected 1", "deepseek_v3"});
  expect_config_fault("deepseek_v2",
                      joined("{", sizes, R"(, "topk_method": "group_limited_greedy"})"),
                      {"topk_method", "group_limited_greedy", "expected greedy"});
}

TEST(Family, RefusesMissingAndWrongKeys) {
  expect_config_fault("mixtral", R"({"hidden_size": 8, "num_experts_per_tok": 2,
      "intermediate_size": 16})",
                      {"num_local_experts", "no such key"});
  expect_config_fault("mixtral", R"({"hidden_size": 8, "num_local_experts": "8",
      "num_experts_per_tok": 2, "intermediate_size": 16})",
                      {"num_local_experts", "\"8\""});
  expect_config_fault("mixtral", R"({"hidden_size": 8, "num_local_experts": 4,
      "num_experts_per_tok": 5, "intermediate_size": 16})",
                      {"top_k = 5", "num_experts = 4"});
  expect_config_fault("mixtral", R"({"hidden_size": 8, "num_local_experts": 4,
      "num_experts_per_tok": 2, "intermediate_size": 16, "hidden_act": "mish"})",
                      {"hidden_act", "\"mish\"", "one of silu"});
  expect_config_fault("mixtral", R"({"hidden_size": 4611686018427387904, "num_local_experts": 4,
      "num_experts_per_tok": 2, "intermediate_size": 16})",
                      {"overflows"});
}

}  // namespace
}  // namespace moe::io::testing
