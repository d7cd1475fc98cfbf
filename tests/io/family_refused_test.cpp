// SPDX-License-Identifier: Apache-2.0
// What layer_config() refuses of a config.json, and what it names.
#include "family_configs.hpp"
#include "model_folder.hpp"
#include "moe/io/families.hpp"
#include "moe/io/family_config.hpp"

namespace moe::io::testing::family_refused_test {
namespace {

void expect_config_fault(std::string_view family, const std::string& text,
                         std::initializer_list<std::string_view> facts) {
  expect_fault(
      [&] { layer_config(*find_family(family), ModelConfig::parse(text, "config.json"), 0); },
      "config.json", "", facts);
}

TEST(FamilyRefuses, AConfigThatItCannotObey) {
  expect_config_fault("deepseek_v2", joined("{", four_experts, R"(, "topk_method": "noaux_tc"})"),
                      {"topk_method", "noaux_tc", "expected greedy group_limited_greedy"});
  expect_config_fault(
      "laguna", joined("{", four_experts, R"(, "moe_apply_router_weight_on_input": true})"),
      {"moe_apply_router_weight_on_input", "true in a config of laguna", "expected false"});
  expect_config_fault("cohere2_moe", joined("{", four_experts, R"(, "intermediate_size": 6})"),
                      {"expert_selection_fn", "nothing (where it is left out)"});
  // The left-out eight groups of DeepSeek-V3, of four experts.
  expect_config_fault("deepseek_v3", joined("{", four_experts, "}"),
                      {"num_groups = 8", "num_experts = 4"});
}

TEST(FamilyRefuses, MissingAndWrongKeys) {
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

TEST(FamilyRefuses, SizesThatOverflowTogether) {
  constexpr std::string_view huge = "9223372036854775807";
  expect_config_fault("longcat_flash",
                      joined(R"({"hidden_size": 8, "moe_topk": 2,
      "expert_ffn_hidden_size": 6, "n_routed_experts": )",
                             huge, R"(, "zero_expert_num": )", huge, "}"),
                      {"num_experts = 9223372036854775807", "at most"});
  expect_config_fault("inkling",
                      joined(R"({"hidden_size": 8, "num_experts": 4,
      "moe_intermediate_size": 6, "route_scale": 1.0, "num_experts_per_tok": )",
                             huge, R"(, "n_shared_experts": )", huge, "}"),
                      {"num_experts = 9223372036854775807"});
  expect_config_fault("deepseek_v2",
                      joined("{", four_experts, R"(, "n_shared_experts": )", huge, "}"),
                      {"shared.d_ff = 9223372036854775807", "overflows"});
  // Of one tensor of all the experts 2^64 elements would be none.
  expect_config_fault("dbrx", R"({"hidden_size": 1, "moe_num_experts": 32, "moe_top_k": 1,
      "ffn_hidden_size": 576460752303423488})",
                      {"num_experts = 32 times d_ff = 576460752303423488", "overflows"});
}

TEST(FamilyRefuses, ALayerOfExpertsThatComputeNothing) {
  expect_config_fault("longcat_flash", R"({"hidden_size": 8, "moe_topk": 2,
      "expert_ffn_hidden_size": 6, "n_routed_experts": 0, "zero_expert_num": 2})",
                      {"of 2 experts none has parameters", "expected at least 1"});
}

TEST(FamilyRefuses, ATableOfNoTokens) {
  expect_config_fault("deepseek_v4", joined("{", four_experts, R"(, "vocab_size": 0})"),
                      {"vocab_size", "0, expected at least 1"});
  expect_config_fault("deepseek_v4", joined("{", four_experts, "}"), {"vocab_size", "no such key"});
}

}  // namespace
}  // namespace moe::io::testing::family_refused_test
