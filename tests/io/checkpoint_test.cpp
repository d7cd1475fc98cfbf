// SPDX-License-Identifier: Apache-2.0
// Which layers of a model are MoE, under whatever prefix it keeps them.
#include "moe/io/checkpoint.hpp"

#include "small_models.hpp"

namespace moe::io::testing::checkpoint_test {
namespace {

class CheckpointIn : public ModelFolder {
 protected:
  Checkpoint open(const NewTensors& tensors, std::string_view config = mixtral_config,
                  const CheckpointOptions& options = {}) const {
    write("config.json", config);
    write("model.safetensors", tensors);
    return Checkpoint(folder(), options);
  }
  fs::path file() const { return folder() / "model.safetensors"; }
};

using Layers = std::vector<Index>;
using Names = std::vector<std::string>;

TEST_F(CheckpointIn, HasTheLayersWithARouter) {
  const Checkpoint model = open(mixtral());
  EXPECT_EQ(model.layers(), (Layers{0, 2}));
  EXPECT_EQ(model.family().name(), "mixtral");
  EXPECT_EQ(model.layer_prefix(2), "model.layers.2.");
  EXPECT_EQ(model.block_of(2), "block_sparse_moe.");
  EXPECT_EQ(model.layer_config(2).num_experts, 4);
  EXPECT_TRUE(model.multi_token_prediction().empty());
}

TEST_F(CheckpointIn, FindsThePrefixOfAWrapper) {
  NewTensors tensors;
  tensors["language_model.model.layers.11.mlp.gate.weight"] = weights(1, {E, D});
  const Checkpoint model = open(tensors, R"({"model_type": "mixtral"})");
  EXPECT_EQ(model.layers(), Layers{11});
  EXPECT_EQ(model.layer_prefix(11), "language_model.model.layers.11.");
  EXPECT_EQ(model.block_of(11), "mlp.");
}

TEST_F(CheckpointIn, ListsLayersOfMultiTokenPredictionButDoesNotCountThem) {
  NewTensors tensors = mixtral();
  add_mixtral_layer(tensors, 3);  // num_hidden_layers is 3
  tensors["mtp.layers.0.block_sparse_moe.gate.weight"] = weights(1, {E, D});
  const Checkpoint model = open(tensors);
  EXPECT_EQ(model.layers(), (Layers{0, 2}));
  EXPECT_EQ(model.multi_token_prediction(), (Names{"mtp.layers.0", "model.layers.3"}));
}

TEST_F(CheckpointIn, RefusesALayerThatIsNone) {
  const Checkpoint model = open(mixtral());
  for (const Index layer : {1, 3, -1, 1000000}) {
    expect_fault([&] { model.layer_config(layer); }, file(), "",
                 {joined("layer ", layer, " is no MoE layer"), "expected one of 0, 2"});
  }
}

TEST_F(CheckpointIn, SaysThatALayerLiesBehindThoseThatConfigJsonCounts) {
  NewTensors tensors;
  add_mixtral_layer(tensors, 3);  // num_hidden_layers is 3
  const Checkpoint model = open(tensors);
  expect_fault([&] { model.layer_config(3); }, file(), "",
               {"layer 3 lies behind the layers that the config counts", "and none is one"});
}

TEST_F(CheckpointIn, TakesARowOfTheUsersOwn) {
  constexpr Family mine{.model_types = "mine", .blocks = "moe", .router = {.weight = "route"}};
  NewTensors tensors;
  tensors["layers.5.moe.route"] = weights(1, {E, D});
  const Checkpoint model = open(tensors, R"({"model_type": "hers"})", {.family = &mine});
  EXPECT_EQ(model.family().name(), "mine");
  EXPECT_EQ(model.layers(), Layers{5});
}

TEST_F(CheckpointIn, AsksWhichOfSeveralStacks) {
  NewTensors tensors;
  tensors["encoder.block.1.layer.1.mlp.router.classifier.weight"] = weights(1, {E, D});
  tensors["decoder.block.3.layer.2.mlp.router.classifier.weight"] = weights(1, {E, D});
  const std::string_view config = R"({"model_type": "switch_transformers"})";
  expect_fault([&] { open(tensors, config); }, file(), "",
               {"\"decoder.block.\", \"encoder.block.\"", "expected one of them as the stack"});
  const Checkpoint model = open(tensors, config, {.stack = "decoder.block."});
  EXPECT_EQ(model.layers(), Layers{3});
  EXPECT_EQ(model.block_of(3), "layer.2.mlp.");
  expect_fault([&] { open(tensors, config, {.stack = "x."}); }, file(), "", {"not \"x.\""});
}

TEST_F(CheckpointIn, IsADirectoryAndNotItsFile) {
  open(mixtral());
  expect_fault([&] { Checkpoint{file()}; }, file(), "", {"expected a directory with config.json"});
}

TEST_F(CheckpointIn, RefusesAModelWithoutMoELayers) {
  NewTensors tensors;
  tensors["model.layers.x.mlp.gate.weight"] = weights(1, {E, D});
  expect_fault([&] { open(tensors); }, file(), "",
               {"no layer with a router of family mixtral", "gate.weight"});
}

}  // namespace
}  // namespace moe::io::testing::checkpoint_test
