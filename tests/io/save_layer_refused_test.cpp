// SPDX-License-Identifier: Apache-2.0
// What readers would refuse, or take for another layer, is refused by its name before it is saved:
// by the config.json that is there, and where there is none by what the family's row says alone.
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "family_configs.hpp"
#include "family_layer.hpp"
#include "moe/io/save_layer.hpp"
#include "small_models.hpp"
#include "support/throws.hpp"

namespace moe::io::testing::save_layer_refused_test {
namespace {

using moe::testing::message_of;

class SaveLayerRefused : public ModelFolder {
 protected:
  static LayerConfig config_of(std::string_view family) {
    return layer_config(*find_family(family), ModelConfig::parse(config_text(family), "config"), 0);
  }
  template <class Layer>
  std::string refusal_of(const Layer& layer, std::string_view family) const {
    std::string message = message_of([&] { save_layer(layer, *find_family(family), folder()); });
    EXPECT_FALSE(fs::exists(folder() / "model.safetensors"));
    return message;
  }
  /// Of a layer of the family's own config, with something changed.
  template <class Change>
  std::string refusal_after(std::string_view family, const Change& change) const {
    LayerConfig config = config_of(family);
    change(config);
    return refusal_of(random_layer<float>(config), family);
  }
};

std::string refusal(std::string_view what, std::string_view family, std::string_view read) {
  return joined("save_layers: ", what, ", but readers of family ", family, " take it to be ", read);
}

/// By how the refusal begins.
using Changes = std::map<std::string, std::function<void(MoEConfig&)>>;

MoEConfig mixtral() { return {.d_model = 8, .d_ff = 6, .num_experts = 4, .top_k = 2}; }

// What no tensor shows would be read as the family has it, and give another function.
TEST_F(SaveLayerRefused, IsALayerThatReadersOfTheFamilyWouldTakeForAnother) {
  const Changes changes{
      {"router.score = 1 of its enum", [](auto& c) { c.router.score = Score::sigmoid; }},
      {"router.weight.renormalise = 0", [](auto& c) { c.router.weight.renormalise = false; }},
      {"router.weight.scale = 2.5", [](auto& c) { c.router.weight.scale = 2.5; }},
      {"router.logits.softcap = 30", [](auto& c) { c.router.logits.softcap = 30.0; }},
      {"routed_scale = 2.5", [](auto& c) { c.routed_scale = 2.5; }},
      {"expert.up_offset = 1", [](auto& c) { c.expert.up_offset = 1.0; }},
      {"weight_on = 1 of its enum", [](auto& c) { c.weight_on = WeightOn::input; }}};
  for (const auto& [message, change] : changes) {
    MoEConfig config = mixtral();
    change(config);
    EXPECT_TRUE(refusal_of(MoELayer<float>(config, 1), "mixtral")
                    .starts_with(refusal(message, "mixtral", "")))
        << message;
  }
  MoEConfig cut_behind = mixtral();
  cut_behind.expert.clamp = Clamp::after;
  EXPECT_TRUE(refusal_of(MoELayer<float>(cut_behind, 1), "mixtral")
                  .starts_with("save_layers: the expert's clamp, alpha or bounds are not those "
                               "that readers of family mixtral take"));
  EXPECT_TRUE(fs::is_empty(folder()));
}

TEST_F(SaveLayerRefused, IsALayerThatAConfigOfTheDirectoryTellsOtherwise) {
  write("config.json", config_text("mixtral"));
  const Changes changes{
      {"expert.activation = ", [](auto& c) { c.expert.activation = Activation::gelu_erf; }},
      {"expert.limit = 7", [](auto& c) { c.expert.limit = 7.0; }},
      {"the expert's clamp, alpha", [](auto& c) { c.expert.alpha = 2.0; }},
      {"top_k = 3", [](auto& c) { c.top_k = 3; }},
      {"capacity.rows = 2", [](auto& c) { c.capacity.rows = 2; }}};
  for (const auto& [message, change] : changes) {
    MoEConfig config = mixtral();
    change(config);
    EXPECT_TRUE(
        refusal_of(MoELayer<float>(config, 1), "mixtral").starts_with("save_layers: " + message))
        << message;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder()), fs::directory_iterator()), 1);
  save_layer(MoELayer<float>(mixtral(), 1), *find_family("mixtral"), folder());
  EXPECT_TRUE(fs::exists(folder() / "model.safetensors"));
}

// A row of the user's own stands for a type that a family has, too.
TEST_F(SaveLayerRefused, IsALayerBesideTheConfigOfAnotherFamily) {
  write("config.json", config_text("qwen3_moe"));
  const MoELayer<float> layer(mixtral(), 1);
  EXPECT_EQ(refusal_of(layer, "mixtral"),
            "save_layers: family mixtral, expected that of config.json, qwen3_moe");
  const Family own = *find_family("mixtral");
  save_layer(layer, own, folder());
  EXPECT_TRUE(fs::exists(folder() / "model.safetensors"));
}

using Change = std::function<void(LayerConfig&)>;

struct Case {
  std::string_view family, found, read;
  Change change;
};

TEST_F(SaveLayerRefused, IsWhatTheRowSaysOtherwiseWhateverTheConfig) {
  const std::vector<Case> cases{
      {"mixtral", "capacity.rows = 2", "none", [](auto& c) { c.capacity.rows = 2; }},
      {"mixtral", "capacity.factor = 1.25", "none", [](auto& c) { c.capacity.factor = 1.25; }},
      {"switch_transformers", "capacity.factor = 1.25", "none",
       [](auto& c) { c.capacity = {.factor = 1.25}; }},
      {"switch_transformers", "capacity.policy = 1 of its enum", "0",
       [](auto& c) { c.capacity.policy = DropPolicy::probability; }},
      {"mixtral", "expert.limit = 7", "none", [](auto& c) { c.expert.limit = 7.0; }},
      {"mixtral", "expert.gated = 0", "1", [](auto& c) { c.expert.gated = false; }},
      {"gpt_oss", "expert.bias = 0", "1", [](auto& c) { c.expert.bias = false; }},
      {"mixtral", "router.selection.groups = 2", "1",
       [](auto& c) { c.router.selection.groups = GroupLimit{.num_groups = 2, .kept = 1}; }},
      {"mixtral", "router.weight.epsilon = 0.5", "0",
       [](auto& c) { c.router.weight.epsilon = 0.5; }},
      {"deepseek_v3", "router.selection.bias = 0", "1",
       [](auto& c) { c.router.selection.bias = false; }},
      {"gpt_oss", "router.logits.bias = 0", "1", [](auto& c) { c.router.logits.bias = false; }},
      {"switch_transformers", "top_k = 2", "1", [](auto& c) { c.top_k = 2; }},
      {"llama4", "the number of shared experts = 0", "1", [](auto& c) { c.shared.reset(); }},
      {"jetmoe", "the number of shared experts = 0", "1", [](auto& c) { c.shared.reset(); }},
      {"qwen2_moe", "shared.output_gate = 0", "1", [](auto& c) { c.shared->output_gate = false; }},
      {"qwen2_moe", "shared.bias = 1", "0", [](auto& c) { c.shared->bias = true; }},
      {"qwen2_moe", "shared.limit = 7", "none", [](auto& c) { c.shared->limit = 7.0; }},
      {"deepseek_v3", "shared.has_width = 0", "1",
       [](auto& c) { c.shared = SharedExpertConfig{.d_ff = 0, .bias = true}; }},
      {"Klear", "coefficients of the outputs = 0", "1",
       [](auto& c) { c.shared->coefficients = false; }},
      {"axk1", "a norm of the output = 0", "1", [](auto& c) { c.output_norm.reset(); }},
      {"qwen3_moe", "d_out = 5", "8", [](auto& c) { c.d_out = 5; }}};
  for (const bool with_config : {false, true}) {
    for (const Case& each : cases) {
      if (with_config) {
        write("config.json", config_text(each.family));
      }
      EXPECT_EQ(refusal_after(each.family, each.change),
                refusal(each.found, each.family, each.read));
    }
  }
}

TEST_F(SaveLayerRefused, IsWhatOnlyAConfigSaysOtherwise) {
  const std::vector<Case> cases{
      {"mixtral", "router.weight = (5, 8)", "(4, 8)", [](auto& c) { c.num_experts = 5; }},
      {"mixtral", "experts.0.gate = (5, 8)", "(6, 8)", [](auto& c) { c.d_ff = 5; }},
      {"qwen2_moe", "the number of shared experts = 0", "1", [](auto& c) { c.shared.reset(); }},
      {"qwen2_moe", "shared.gate = (5, 8)", "(3, 8)", [](auto& c) { c.shared->d_ff = 5; }},
      {"switch_transformers", "capacity.rows = 2", "64", [](auto& c) { c.capacity.rows = 2; }},
      {"switch_transformers", "capacity.rows = none", "64", [](auto& c) { c.capacity = {}; }},
      {"kimi_linear", "experts.0.gate = (6, 8)", "(6, 5)", [](auto& c) { c.latent.reset(); }}};
  for (const Case& each : cases) {
    fs::remove(folder() / "model.safetensors");
    write("config.json", config_text(each.family));
    EXPECT_EQ(refusal_after(each.family, each.change), refusal(each.found, each.family, each.read));
    fs::remove(folder() / "config.json");
    LayerConfig config = config_of(each.family);
    each.change(config);
    EXPECT_NO_THROW(save_layer(random_layer<float>(config), *find_family(each.family), folder()));
  }
}

TEST_F(SaveLayerRefused, IsASharedExpertThatTheConfigHasNot) {
  write("config.json", joined(R"({"model_type": "deepseek_v3", "n_shared_experts": 0,
      "n_group": 1, "norm_topk_prob": false, "routed_scaling_factor": 1.5, )",
                              four_experts, "}"));
  EXPECT_EQ(refusal_after("deepseek_v3", [](auto&) {}),
            refusal("the number of shared experts = 1", "deepseek_v3", "0"));
}

TEST_F(SaveLayerRefused, AreProductKeysWithoutTheSharedExpertOrOfAnotherNumber) {
  write("config.json", config_text("doge"));
  LayerConfig config = config_of("doge");
  const ProductKeyLayerConfig keys = product_key_layer_config(config);
  ProductKeyLayerConfig other = keys;
  other.shared_d_ff.reset();
  EXPECT_EQ(refusal_of(ProductKeyLayer<float>(other, 1), "doge"),
            refusal("the number of shared experts = 0", "doge", "1"));
  other = keys;
  other.keys.num_keys = 3;
  EXPECT_EQ(refusal_of(ProductKeyLayer<float>(other, 1), "doge"),
            refusal("router.weight = (6, 8)", "doge", "(4, 8)"));
}

TEST_F(SaveLayerRefused, AreExpertsOfSeveralWidths) {
  const auto of_widths = [](std::string_view family) {
    const LayerConfig config = config_of(family);
    LayerConfig narrow = config;
    narrow.d_ff = 5;
    std::vector<Expert<float>> experts = experts_of<float>(config, 1);
    experts[1] = experts_of<float>(narrow, 1)[1];
    return MoELayer<float>(FamilyRouter<Router<float>>::make(config, {}), std::move(experts),
                           config.options(), make_shared_expert<float>(config, 1));
  };
  EXPECT_EQ(refusal_of(of_widths("mixtral"), "mixtral"),
            "save_layers: expert 1 is 5 wide, but readers of family mixtral take it to be 6");
  EXPECT_EQ(refusal_of(of_widths("qwen3_5_moe"), "qwen3_5_moe"),
            "save_layers: experts.1.gate is of another size than what lies in "
            "model.layers.0.mlp.experts.gate_up_proj, too")
      << "where all of them are one tensor";
}

}  // namespace
}  // namespace moe::io::testing::save_layer_refused_test
