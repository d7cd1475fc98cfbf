// SPDX-License-Identifier: Apache-2.0
#include "moe/io/model_config.hpp"

#include "model_folder.hpp"

namespace moe::io::testing::model_config_test {
namespace {

ModelConfig config_of(std::string_view text) { return ModelConfig::parse(text, "config.json"); }

template <class Act>
void expect_config_fault(Act&& act, std::initializer_list<std::string_view> facts) {
  expect_fault(act, "config.json", "", facts);
}

TEST(ModelConfig, FindsAFactByAnyOfItsKeys) {
  const ModelConfig config = config_of(R"({"n_routed_experts": 8, "scale": 2.5, "flag": true})");
  EXPECT_EQ(config.size("num_experts n_routed_experts"), 8);
  EXPECT_EQ(config.number("scale"), 2.5);
  EXPECT_EQ(config.number("flag"), 1.0);
}

TEST(ModelConfig, TakesTheFirstKeyThatIsThere) {
  const ModelConfig config = config_of(R"({"b": 2, "a": 1})");
  EXPECT_EQ(config.size("a b"), 1);
  EXPECT_EQ(config.size("b a"), 2);
}

TEST(ModelConfig, TakesNullAsLeftOut) {
  const ModelConfig config = config_of(R"({"a": null, "b": 3, "c": [null, 4]})");
  EXPECT_EQ(config.size("a b"), 3);
  EXPECT_EQ(config.size("a", 7), 7);
  EXPECT_EQ(config.size("c", 7, 0), 7);
  EXPECT_EQ(config.size("none", 7), 7);
  EXPECT_EQ(config.text("a", "silu"), "silu");
}

TEST(ModelConfig, LooksIntoTheModelOfTextFirst) {
  const ModelConfig config = config_of(
      R"({"model_type": "vl", "hidden_size": 1, "depth": 5,
          "text_config": {"model_type": "vl_text", "hidden_size": 2}})");
  EXPECT_EQ(config.size("hidden_size"), 2);
  EXPECT_EQ(config.size("depth"), 5);
  EXPECT_EQ(config.model_types(), (std::vector<std::string>{"vl", "vl_text"}));
  EXPECT_EQ(config_of(R"({"thinker_config": {"text_config": {"k": 3}}})").size("k"), 3);
  EXPECT_EQ(config_of(R"({"ffn_config": {"k": 3}})").size("k"), 3);
}

TEST(ModelConfig, TakesTheEntryOfALayerFromAList) {
  const ModelConfig config = config_of(R"({"moe_topk": [4, 8]})");
  EXPECT_EQ(config.size("moe_topk", {}, 1), 8);
  expect_config_fault([&] { config.size("moe_topk", {}, 2); },
                      {"moe_topk", "a list of 2", "expected an entry for layer 2"});
}

TEST(ModelConfig, RefusesWhatIsMissingOrOfAnotherKind) {
  const ModelConfig config =
      config_of(R"({"a": "eight", "b": -1, "c": 2.5, "d": {}, "e": 3, "f": true})");
  expect_config_fault([&] { config.size("x y"); }, {"config key x or y", "no such key"});
  expect_config_fault([&] { config.number("x y"); }, {"config key x or y", "no such key"});
  expect_config_fault([&] { config.number("a"); }, {"\"eight\"", "expected a number"});
  expect_config_fault([&] { config.number("d"); }, {"an object", "expected a number"});
  for (const char* key : {"a", "b", "c", "d", "f"}) {
    expect_config_fault([&] { config.size(key); }, {key, "expected a whole number"});
  }
  expect_config_fault([&] { config.text("e", ""); }, {"e: 3", "expected text"});
}

}  // namespace
}  // namespace moe::io::testing::model_config_test
