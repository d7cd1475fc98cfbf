// SPDX-License-Identifier: Apache-2.0
#include "moe/io/families.hpp"

#include <set>

#include "model_folder.hpp"

namespace moe::io::testing {
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
  expect_fault([] { family_of_text("{}"); }, "config.json", "", {"no such key"});
  EXPECT_EQ(find_family(""), nullptr);
  EXPECT_EQ(find_family("mixtral minimax"), nullptr);
}

TEST(Families, HaveNoModelTypeTwice) {
  std::set<std::string_view> seen;
  for (const Family& family : detail::families) {
    for (const std::string_view type : detail::words(family.model_types)) {
      EXPECT_TRUE(seen.insert(type).second) << type;
    }
  }
}

TEST(Families, HaveValidRulesAndANameForEveryTensorOfTheirExperts) {
  for (const Family& family : detail::families) {
    family.rule.validate();
    EXPECT_EQ(family.expert.gated, !family.experts.names->gate.name.empty()) << family.name();
    EXPECT_FALSE(family.experts.names->up.name.empty()) << family.name();
    EXPECT_FALSE(family.experts.names->down.name.empty()) << family.name();
    EXPECT_EQ(family.expert.bias, false) << family.name();
  }
}

}  // namespace
}  // namespace moe::io::testing
