// SPDX-License-Identifier: Apache-2.0
// The list of published models: each valid, each found by its name, each as large as published.
#include "moe/cost/models.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <string_view>

#include "moe/cost/model_cost.hpp"
#include "support/throws.hpp"

namespace moe::models_test {
namespace {

// The published count is rounded to a few digits: 0.3 % of all, 0.5 % of the active, but for these.
const std::map<std::string_view, double> coarse_active = {
    {"Switch-Base-256", 0.011},   // published is T5-Base, without the routers
    {"OLMoE-1B-7B", 0.014},       // 1.28 B, published as 1.3 B
    {"DeepSeek-V2-Lite", 0.022},  // 2.45 B, published as 2.4 B
    {"Qwen3-30B-A3B", 0.017},     // 3.35 B, published as 3.3 B
};

TEST(PublishedModels, HaveTheParametersTheirPublishersCount) {
  for (const ModelConfig& model : published_models()) {
    const ModelCost cost = model_cost(model);
    const auto coarse = coarse_active.find(model.name);
    const double bound = coarse == coarse_active.end() ? 0.005 : coarse->second;
    EXPECT_NEAR(static_cast<double>(cost.total) / model.published.total, 1, 0.003) << model.name;
    EXPECT_NEAR(static_cast<double>(cost.active) / model.published.active, 1, bound) << model.name;
  }
}

TEST(PublishedModels, HaveNamesOfTheirOwnThatBeginWithTheFamily) {
  std::set<std::string_view> names;
  for (const ModelConfig& model : published_models()) {
    EXPECT_TRUE(names.insert(model.name).second) << model.name;
    EXPECT_TRUE(model.name.starts_with(model.family)) << model.name;
    EXPECT_FALSE(model.published.source.empty()) << model.name;
    EXPECT_NO_THROW(model.validate()) << model.name;
  }
}

TEST(PublishedModels, AreFoundByName) {
  EXPECT_EQ(published_model("Mixtral-8x7B").layers, 32);
  const std::string message = testing::message_of([] { published_model("Mixtral"); });
  EXPECT_TRUE(message.starts_with("published_model: name = Mixtral, expected one of Switch-Base-8"))
      << message;
  EXPECT_TRUE(message.ends_with(", DeepSeek-V3")) << message;
}

TEST(ModelConfig, SaysWhichOfItsValuesIsWrong) {
  const auto message = [](auto change) {
    ModelConfig model = published_model("DeepSeek-V3");
    change(model);
    return testing::message_of([&] { model.validate(); });
  };
  EXPECT_EQ(message([](ModelConfig& m) { m.layers = 0; }),
            "ModelConfig: layers = 0, expected at least 1");
  EXPECT_EQ(message([](ModelConfig& m) { m.dense_layers = 62; }),
            "ModelConfig: dense_layers = 62, expected in [0, layers = 61]");
  EXPECT_EQ(message([](ModelConfig& m) { m.dense_d_ff = 0; }),
            "ModelConfig: dense_d_ff = 0, expected at least 1 with dense_layers");
  EXPECT_EQ(message([](ModelConfig& m) { m.vocabulary = 0; }),
            "ModelConfig: vocabulary = 0, expected at least 1");
  EXPECT_EQ(message([](ModelConfig& m) { m.published.rule = static_cast<ActiveCount>(2); }),
            "ModelConfig: published.rule = 2, expected one of the enum");
  EXPECT_TRUE(message([](ModelConfig& m) { m.moe.top_k = 0; }).starts_with("MoEConfig: top_k = 0"));
}

}  // namespace
}  // namespace moe::models_test
