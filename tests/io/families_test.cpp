// SPDX-License-Identifier: Apache-2.0
#include "moe/io/families.hpp"

#include <set>

#include "model_folder.hpp"

namespace moe::io::testing::families_test {
namespace {

const Family& family_of_text(std::string_view text) {
  return family_of(ModelConfig::parse(text, "config.json"));
}

TEST(Families, AreFoundByTheModelType) {
  EXPECT_EQ(family_of_text(R"({"model_type": "mixtral"})").name(), "mixtral");
  EXPECT_EQ(family_of_text(R"({"model_type": "kimi_k2"})").name(), "deepseek_v3");
}

TEST(Families, AreFoundByTheModelOfTextInAWrapper) {
  EXPECT_EQ(
      family_of_text(R"({"model_type": "x", "text_config": {"model_type": "glm4v_moe_text"}})")
          .name(),
      "glm4_moe");
}

TEST(Families, ListTheKnownOnesForAnUnknownOne) {
  expect_fault([] { family_of_text(R"({"model_type": "maxtril"})"); }, "config.json", "",
               {"\"maxtril\"", "mixtral, qwen2_moe, qwen3_moe", "switch_transformers"});
  expect_fault([] { family_of_text(R"({"model_type": "v", "text_config": {"model_type": "w"}})"); },
               "config.json", "", {"\"v\" in \"w\"", "expected"});
  expect_fault([] { family_of_text("{}"); }, "config.json", "", {"no such key"});
  EXPECT_EQ(find_family(""), nullptr);
  EXPECT_EQ(find_family("mixtral minimax"), nullptr);
}

TEST(Families, HaveNoModelTypeTwice) {
  std::set<std::string_view> seen;
  const auto add = [&](const auto& rows) {
    for (const auto& row : rows) {
      for (const std::string_view type : detail::words(row.model_types)) {
        EXPECT_TRUE(seen.insert(type).second) << type;
      }
    }
  };
  add(detail::families);
}

TEST(Families, HaveValidRulesAndANameForEveryTensorOfTheirExperts) {
  for (const Family& family : detail::families) {
    family.rule.validate();
    family.other_rule.rule.validate();
    family.expert.validate();
    EXPECT_EQ(family.expert.gated, !family.experts.names->gate.name.empty()) << family.name();
    EXPECT_FALSE(family.experts.names->up.name.empty()) << family.name();
    EXPECT_FALSE(family.experts.names->down.name.empty()) << family.name();
    EXPECT_EQ(family.expert.bias, false) << family.name();  // has_expert_bias says it
    EXPECT_EQ(family.rule.weight.expert_scale != ExpertScale::off,
              !family.router.expert_scale.empty())
        << family.name();
    EXPECT_EQ(family.router_type == RouterType::norm_router, !family.router.norm_scale.empty())
        << family.name();
    EXPECT_EQ(family.router_type == RouterType::state_router, !family.state.down.empty())
        << family.name();
    EXPECT_EQ(family.router_type == RouterType::second_expert, !family.second_policy.empty())
        << family.name();
    EXPECT_EQ(family.router_type == RouterType::product_keys, !family.rank_one.down.empty())
        << family.name();
    EXPECT_EQ(family.rank_one.down.empty(), family.rank_one.up.empty()) << family.name();
    EXPECT_EQ(family.second.router.empty(), family.second.fused.names == nullptr) << family.name();
    EXPECT_EQ(family.latent.width.keys.empty(), family.latent.down.empty()) << family.name();
    EXPECT_EQ(family.latent.down.empty(), family.latent.up.empty()) << family.name();
    EXPECT_EQ(family.latent.has_norm.keys.empty(), family.latent.norm.empty()) << family.name();
    EXPECT_EQ(family.other_rule.rule.selection.vocabulary > 0, !family.router.table.empty())
        << family.name();
  }
}

}  // namespace
}  // namespace moe::io::testing::families_test
