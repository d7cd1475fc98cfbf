// SPDX-License-Identifier: Apache-2.0
// What layer_config() makes of a config.json.
#include "moe/io/family_config.hpp"

#include "family_configs.hpp"
#include "model_folder.hpp"
#include "moe/io/families.hpp"

namespace moe::io::testing::family_test {
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
      "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 2, "n_group": 4,
      "topk_group": 2})");
  EXPECT_EQ(config.router.score, Score::sigmoid);
  EXPECT_TRUE(config.router.selection.bias);
  EXPECT_EQ(config.router.weight.scale, 2.5);
  EXPECT_EQ(config.router.weight.renormalise, true);
  ASSERT_TRUE(config.router.selection.groups);
  EXPECT_EQ(config.router.selection.groups->num_groups, 4);
  EXPECT_EQ(config.router.selection.groups->kept, 2);
  EXPECT_EQ(config.router.selection.groups->rule, GroupRule::sum_of_two_best);
  EXPECT_EQ(config.router.selection.groups->others, OtherGroups::minus_infinity);
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

TEST(Family, DeepSeekV2HasGroupsByTheKeyOfItsMethod) {
  constexpr std::string_view text = R"("hidden_size": 8, "n_routed_experts": 8,
      "num_experts_per_tok": 2, "moe_intermediate_size": 6, "n_group": 4, "topk_group": 2)";
  EXPECT_FALSE(config_of("deepseek_v2", joined("{", text, "}")).router.selection.groups);
  const auto groups =
      config_of("deepseek_v2", joined("{", text, R"(, "topk_method": "group_limited_greedy"})"))
          .router.selection.groups;
  ASSERT_TRUE(groups);
  EXPECT_EQ(groups->rule, GroupRule::best);
  EXPECT_EQ(groups->others, OtherGroups::zero);
  EXPECT_EQ(groups->num_groups, 4);
}

TEST(Family, GptOssHasTheConstantsThatItsConfigLeavesOut) {
  const MoEConfig config = config_of("gpt_oss", R"({"hidden_size": 8, "num_local_experts": 4,
      "num_experts_per_tok": 2, "intermediate_size": 6, "hidden_act": "silu"})");
  EXPECT_EQ(config.expert.activation, Activation::gelu_quick);
  EXPECT_EQ(config.expert.limit, 7.0);
  EXPECT_EQ(config.expert.alpha, 1.702);
  EXPECT_EQ(config.expert.up_offset, 1.0);
  EXPECT_TRUE(config.expert.bias);
  EXPECT_TRUE(config.router.logits.bias);
  EXPECT_EQ(config.router.weight.source, WeightSource::softmax_of_chosen);
}

TEST(Family, LimitsAreThoseOfTheLayerAndOfTheSharedExpertApart) {
  constexpr std::string_view text = R"({"hidden_size": 8, "moe_num_experts": 4, "moe_top_k": 2,
      "moe_intermediate_size": 6, "share_expert_dim": 5, "moe_router_scaling_factor": 3.0,
      "swiglu_limits": [0.0, 7.0, null], "swiglu_limits_shared": [16.0, null, 0.0]})";
  const MoEConfig first = config_of("step3p7", text, 0), second = config_of("step3p7", text, 1),
                  third = config_of("step3p7", text, 2);
  EXPECT_FALSE(first.expert.limit);
  EXPECT_EQ(first.shared->limit, 16.0);
  EXPECT_EQ(second.expert.limit, 7.0);
  EXPECT_EQ(second.expert.clamp, Clamp::after);
  EXPECT_FALSE(second.shared->limit);
  EXPECT_FALSE(third.expert.limit);
  EXPECT_EQ(first.routed_scale, 3.0);
  EXPECT_EQ(first.router.weight.scale, 1.0);
}

TEST(Family, HyV4LimitsItsRoutedExpertsAlone) {
  const MoEConfig config = config_of("hy_v4", R"({"hidden_size": 8, "n_routed_experts": 4,
      "num_experts_per_tok": 2, "moe_intermediate_size": 6})");
  EXPECT_EQ(config.expert.limit, 10.0);
  EXPECT_EQ(config.expert.clamp, Clamp::before);
  EXPECT_FALSE(config.shared->limit);
}

TEST(Family, DeepSeekV4SelectsByTableInItsFirstLayersOrWhereItsTypesSaySo) {
  constexpr std::string_view text = R"("hidden_size": 8, "n_routed_experts": 4, "vocab_size": 50,
      "num_experts_per_tok": 2, "moe_intermediate_size": 6)";
  const auto router = [&](std::string_view more, Index layer) {
    return config_of("deepseek_v4", joined("{", text, more, "}"), layer).router;
  };
  EXPECT_EQ(router("", 2).selection.vocabulary, 50);
  EXPECT_FALSE(router("", 2).selection.bias);
  EXPECT_EQ(router("", 3).selection.vocabulary, 0);
  EXPECT_TRUE(router("", 3).selection.bias);
  EXPECT_EQ(router(R"(, "num_hash_layers": 0)", 0).selection.vocabulary, 0);
  constexpr std::string_view types = R"(, "mlp_layer_types": ["moe", "hash_moe"])";
  EXPECT_EQ(router(types, 0).selection.vocabulary, 0);
  EXPECT_EQ(router(types, 1).selection.vocabulary, 50);
  EXPECT_EQ(router(types, 1).score, Score::sqrt_softplus);
}

TEST(Family, CohereAveragesUnlessItSaysOtherwise) {
  constexpr std::string_view text = R"("hidden_size": 8, "num_experts": 4,
      "num_experts_per_tok": 2, "intermediate_size": 6, "expert_selection_fn": "sigmoid")";
  const MoEConfig average =
      config_of("cohere2_moe", joined("{", text, R"(, "num_shared_experts": 2})"));
  EXPECT_EQ(average.routed_scale, 0.5);
  EXPECT_EQ(average.shared->scale, 0.5);
  EXPECT_EQ(average.shared->d_ff, 12);
  EXPECT_EQ(average.router.score, Score::sigmoid);
  EXPECT_EQ(config_of("cohere2_moe", joined("{", text, "}")).routed_scale, 1.0);
  EXPECT_EQ(config_of("cohere2_moe", joined("{", text, R"(, "num_shared_experts": 1,
      "shared_expert_combination_strategy": "sum"})"))
                .shared->scale,
            1.0);
}

TEST(Family, RoutersOfOtherTypesHaveWhatTheyNeed) {
  const LayerConfig gemma =
      layer_config(*find_family("gemma4"),
                   ModelConfig::parse(R"({"text_config": {"hidden_size": 16, "num_experts": 4,
      "top_k_experts": 2, "moe_intermediate_size": 6, "rms_norm_eps": 1e-5,
      "hidden_activation": "gelu_pytorch_tanh"}})",
                                      "config.json"),
                   0);
  EXPECT_EQ(gemma.router_type, RouterType::norm_router);
  EXPECT_EQ(gemma.router_norm.epsilon, 1e-5);
  EXPECT_EQ(gemma.router_norm.factor, 0.25);
  EXPECT_EQ(gemma.router.weight.expert_scale, ExpertScale::learned);
  EXPECT_EQ(gemma.expert.activation, Activation::gelu_tanh);
  const LayerConfig phi =
      layer_config(*find_family("phimoe"),
                   ModelConfig::parse(R"({"hidden_size": 8, "num_local_experts": 4,
      "intermediate_size": 6, "router_jitter_noise": 0.3})",
                                      "config.json"),
                   0);
  EXPECT_EQ(phi.router_type, RouterType::sparse_mixer);
  EXPECT_EQ(phi.sparse_mixer.jitter, 0.3);
  EXPECT_EQ(phi.router.logits.input_jitter, 0.0);
}

TEST(Family, TakesDefaultsOfLeftOutKeysByFamily) {
  const std::string text = joined("{", four_experts, "}");
  EXPECT_EQ(config_of("qwen3_next",
                      joined("{", four_experts, R"(, "shared_expert_intermediate_size": 4})"))
                .router.weight.renormalise,
            true);
  EXPECT_EQ(config_of("qwen3_moe", text).router.weight.renormalise, false);
  EXPECT_EQ(config_of("deepseek_v2", text).shared->d_ff, 32);
  EXPECT_EQ(
      config_of("mimo_v2_flash", joined("{", four_experts, R"(, "routed_scaling_factor": null})"))
          .router.weight.scale,
      1.0);
}

TEST(Family, HasExpertsOfALatentWidthWhereTheConfigHasOne) {
  constexpr std::string_view shared = R"(, "moe_shared_expert_intermediate_size": 5)";
  EXPECT_FALSE(
      config_of("nemotron_h", joined("{", four_experts, shared, R"(, "moe_latent_size": null})"))
          .latent);
  const MoEConfig latent =
      config_of("nemotron_h", joined("{", four_experts, shared, R"(, "moe_latent_size": 7})"));
  ASSERT_TRUE(latent.latent);
  EXPECT_EQ(latent.latent->width, 7);
  EXPECT_FALSE(latent.latent->norm);
  EXPECT_EQ(latent.expert_d_in(), 7);
  EXPECT_EQ(latent.shared->d_ff, 5);
}

TEST(Family, KimiK3HasSituExpertsInsideOfALatentNorm) {
  constexpr std::string_view text = R"("hidden_size": 8, "num_experts": 4,
      "num_experts_per_token": 2, "moe_intermediate_size": 6, "num_shared_experts": 2,
      "routed_expert_hidden_size": 5, "rms_norm_eps": 1e-5, "hidden_act": "situ",
      "routed_scaling_factor": 1.0, "activation_situ_beta": 3.0)";
  const MoEConfig config =
      config_of("kimi_k3", joined(R"({"text_config": {"model_type": "kimi_linear", )", text,
                                  R"(, "activation_situ_linear_beta": 20.0}})"));
  EXPECT_EQ(config.expert.activation, Activation::situ);
  EXPECT_EQ(config.expert.gate_bound, 3.0);
  EXPECT_EQ(config.expert.up_bound, 20.0);
  ASSERT_TRUE(config.latent);
  EXPECT_EQ(config.latent->width, 5);
  EXPECT_TRUE(config.latent->norm);
  EXPECT_EQ(config.latent->eps, 1e-5);
  EXPECT_EQ(config.shared->d_ff, 12);
  EXPECT_EQ(config.shared_expert().activation, Activation::situ);
  // Without its bound the value of a gated pair would be another one.
  expect_fault([&] { config_of("kimi_k3", joined("{", text, "}")); }, "config.json", "",
               {"activation_situ_linear_beta", "no such key"});
}

TEST(Family, AXK1IsDeepSeekV3WithANormOfItsOutput) {
  const MoEConfig config = config_of("axk1", R"({"hidden_size": 64, "n_routed_experts": 8,
      "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 4,
      "topk_group": 2, "rms_norm_eps": 1e-5})");
  ASSERT_TRUE(config.output_norm);
  EXPECT_EQ(config.output_norm->eps, 1e-5);
  EXPECT_EQ(config.router.score, Score::sigmoid);
  EXPECT_EQ(config.router.weight.scale, 2.5);
  EXPECT_EQ(config.router.selection.groups->num_groups, 4);
  EXPECT_EQ(config.router.selection.groups->others, OtherGroups::minus_infinity);
  EXPECT_EQ(config.shared->d_ff, 24);
  EXPECT_FALSE(config_of("deepseek_v3", R"({"hidden_size": 64, "n_routed_experts": 8,
      "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1})")
                   .output_norm);
}

TEST(Family, GroveHasASmallExpertForEachTwoOthersAndASoftmaxOfTheChosen) {
  const Family& family = *find_family("grove_moe");
  const auto config = [&](int experts) {
    return layer_config(
        family,
        ModelConfig::parse(joined(R"({"hidden_size": 8, "num_experts": )", experts,
                                  R"(, "num_experts_per_tok": 2, "moe_intermediate_size": 6})"),
                           "config.json"),
        0);
  };
  const LayerConfig grove = config(6);
  EXPECT_EQ(grove.adjugate.count, 3);
  EXPECT_EQ(grove.adjugate.d_ff, 128);
  EXPECT_EQ(grove.adjugate.scale, 0.05);
  EXPECT_EQ(grove.counts().adjugates, 3);
  EXPECT_EQ(grove.num_experts, 6);
  EXPECT_EQ(grove.router.weight.source, WeightSource::softmax_of_chosen);
  expect_fault([&] { config(5); }, "config.json", "", {"of 5 experts each 2 share one"});
}

TEST(Family, PanguProTakesTheBestOfAsManyGroupsAsATokenHasExperts) {
  const MoEConfig config = config_of("PanguProMoE", R"({"hidden_size": 8, "num_experts": 16,
      "num_experts_per_tok": 4, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 5})");
  EXPECT_EQ(config.router.score, Score::softmax);
  EXPECT_EQ(config.router.weight.renormalise, false);
  EXPECT_EQ(config.router.weight.expert_scale, ExpertScale::learned);
  ASSERT_TRUE(config.router.selection.groups);
  EXPECT_EQ(config.router.selection.groups->num_groups, 4);
  EXPECT_EQ(config.router.selection.groups->rule, GroupRule::equal_quota);
  EXPECT_EQ(config.shared->d_ff, 5);
}

TEST(Family, TheWidthOfSharedExpertsIsThatOfEachOrOfAllByTheirKeyAndFamily) {
  constexpr std::string_view text = R"({"hidden_size": 8, "num_experts": 4,
      "num_experts_per_tok": 2, "moe_intermediate_size": 6, "num_shared_experts": 2,
      "moe_shared_expert_intermediate_size": 10})";
  const MoEConfig sarvam = config_of("sarvam_mla", text), param = config_of("param2moe", text);
  EXPECT_EQ(sarvam.shared->d_ff, 20);
  EXPECT_EQ(sarvam.router.weight.scale, 2.5);
  EXPECT_EQ(param.shared->d_ff, 10);
  EXPECT_EQ(param.router.weight.scale, 1.0);
  for (const MoEConfig& config : {sarvam, param}) {
    EXPECT_EQ(config.router.score, Score::sigmoid);
    EXPECT_TRUE(config.router.selection.bias);
    EXPECT_EQ(config.router.weight.renormalise, true);
  }
}

TEST(Family, Dots3NoteIsDeepSeekV3WithAWidthOfItsSharedExperts) {
  const auto config = [](std::string_view more) {
    return config_of("dots3_note", joined(R"({"hidden_size": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_topk": 3, "moe_intermediate_size": 6,
        "shared_experts_intermediate_size": 5)",
                                          more, "}"));
  };
  const MoEConfig plain = config("");
  EXPECT_EQ(plain.top_k, 2);
  EXPECT_EQ(plain.shared->d_ff, 5);
  EXPECT_EQ(plain.router.score, Score::sigmoid);
  EXPECT_TRUE(plain.router.selection.bias);
  EXPECT_EQ(plain.router.weight.renormalise, true);
  EXPECT_EQ(plain.router.weight.scale, 1.0);
  EXPECT_EQ(config(R"(, "n_shared_experts": 2)").shared->d_ff, 10);
  expect_fault([&] { config(R"(, "use_dynamic_rsf": true)"); }, "config.json", "",
               {"use_dynamic_rsf", "expected false"});
}

TEST(Family, PanguUltraHasABiasWhereTheConfigOfEnginesSaysSo) {
  const MoEConfig own = config_of("pangu_ultra_moe", R"({"hidden_size": 8,
      "num_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
      "num_shared_experts": 2})");
  EXPECT_EQ(own.num_experts, 4);
  EXPECT_EQ(own.shared->d_ff, 12);
  EXPECT_EQ(own.router.score, Score::sigmoid);
  EXPECT_FALSE(own.router.selection.bias);
  EXPECT_FALSE(own.router.selection.groups);
  EXPECT_EQ(own.router.weight.renormalise, true);
  EXPECT_EQ(own.router.weight.scale, 2.5);
  const MoEConfig of_engines = config_of("pangu_ultra_moe", R"({"hidden_size": 8,
      "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
      "n_shared_experts": 1, "router_enable_expert_bias": true})");
  EXPECT_EQ(of_engines.num_experts, 4);
  EXPECT_TRUE(of_engines.router.selection.bias);
}

TEST(Family, LongCatRoutesToExpertsThatComputeNothing) {
  constexpr std::string_view text = R"("hidden_size": 8, "n_routed_experts": 4, "moe_topk": 3,
      "expert_ffn_hidden_size": 6, "zero_expert_num": 2)";
  const LayerConfig config = layer_config(
      *find_family("longcat_flash"), ModelConfig::parse(joined("{", text, "}"), "config.json"), 0);
  EXPECT_EQ(config.num_experts, 6);
  EXPECT_EQ(config.num_feed_forwards(), 4);
  EXPECT_EQ(config.zero.copies, 2);
  EXPECT_EQ(config.zero.num_experts(), 2);
  EXPECT_EQ(config.router.score, Score::softmax);
  EXPECT_TRUE(config.router.selection.bias);
  EXPECT_EQ(config.router.weight.renormalise, false);
  EXPECT_EQ(config.router.weight.scale, 6.0);
  expect_fault(
      [&] { config_of("longcat_flash", joined("{", text, R"(, "zero_expert_type": "drop"})")); },
      "config.json", "", {"zero_expert_type", "drop", "expected identity"});
}

TEST(Family, KlearWeighsTheRoutedAndTheSharedOutputAndMustSayWhetherWeightsAreNormalised) {
  const std::string text = joined("{", four_experts, R"(, "n_shared_experts": 2)");
  const MoEConfig config = config_of("Klear", text + R"(, "norm_topk_prob": true})");
  EXPECT_EQ(config.router.score, Score::sigmoid);
  EXPECT_TRUE(config.router.selection.bias);
  EXPECT_EQ(config.router.weight.renormalise, true);
  EXPECT_EQ(config.router.weight.epsilon, 0.0);
  ASSERT_TRUE(config.shared);
  EXPECT_EQ(config.shared->d_ff, 32);
  EXPECT_TRUE(config.shared->coefficients);
  expect_fault([&] { config_of("Klear", text + "}"); }, "config.json", "",
               {"norm_topk_prob", "no such key"});
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

}  // namespace
}  // namespace moe::io::testing::family_test
