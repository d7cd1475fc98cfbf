// SPDX-License-Identifier: Apache-2.0
// Models of several layers in shards, at sizes where a tensor is larger than a page and a layer
// larger than a cache: written, found, loaded and packed again, bit for bit.
#include "moe/io/load_layer.hpp"
#include "moe/io/save_layer.hpp"
#include "small_models.hpp"

namespace moe::io::testing::round_trip_test {
namespace {

constexpr std::array<Index, 3> moe_layers{0, 1, 3};  // the model has a dense one between

class RoundTrip : public ModelFolder {
 protected:
  /// Layers of random bfloat16 in shards of 4 MB, with their config.json.
  std::vector<MoELayer<bf16>> write_model(const std::string& family, const std::string& sizes) {
    const std::string text =
        joined(R"({"model_type": ")", family, R"(", "num_hidden_layers": 4, )", sizes, "}");
    write("config.json", text);
    const ModelConfig config = ModelConfig::parse(text, "config.json");
    std::vector<MoELayer<bf16>> layers;
    LayersToSave<bf16> to_save;
    layers.reserve(moe_layers.size());
    for (const Index layer : moe_layers) {
      layers.emplace_back(layer_config(*find_family(family), config, layer),
                          static_cast<std::uint64_t>(layer + 1));
      to_save[joined("model.layers.", layer, ".")] = &layers.back();
    }
    save_layers(to_save, *find_family(family), folder(), {.shard_bytes = shard_bytes});
    return layers;
  }

  void expect_shards() const {
    Index shards = 0;
    for (const auto& file : fs::directory_iterator(folder())) {
      if (file.path().extension() == ".safetensors") {
        ++shards;
        EXPECT_LE(file.file_size(), shard_bytes + 100'000) << file.path();  // and a header
      }
    }
    EXPECT_GE(shards, 3);
  }

  static constexpr std::uint64_t shard_bytes = 4'000'000;
};

void expect_equal(const MoELayer<bf16>& got, const MoELayer<bf16>& want) {
  std::map<std::string, Matrix<float>> wanted;
  want.for_each_parameter([&](const std::string& name, const auto& parameter) {
    wanted[name] = parameter.template cast<float>();
  });
  got.for_each_parameter([&](const std::string& name, const auto& parameter) {
    EXPECT_EQ(parameter.template cast<float>().eval(), wanted.at(name)) << name;
    wanted.erase(name);
  });
  EXPECT_TRUE(wanted.empty());
}

/// The same bits for one token and for many.
template <class Packed>
void expect_same_outputs(const Packed& got, const Packed& want) {
  for (const Index tokens : {1, 64}) {
    const Matrix<float> x = Matrix<float>::NullaryExpr(
        tokens, want.d_in(),
        [](Index row, Index col) { return value_of(static_cast<int>(row), col); });
    Matrix<float> a(tokens, want.d_out()), b(tokens, want.d_out());
    typename Packed::Scratch scratch;
    got.forward(x, a, scratch, {.num_threads = 1});
    want.forward(x, b, scratch, {.num_threads = 1});
    EXPECT_EQ(a, b);
    EXPECT_GT(a.norm(), 0.0F);
  }
}

TEST_F(RoundTrip, OfOneTensorForEachMatrix) {
  const auto layers = write_model("qwen3_moe", R"("hidden_size": 256, "num_experts": 32,
      "num_experts_per_tok": 4, "moe_intermediate_size": 96, "norm_topk_prob": true)");
  expect_shards();
  Checkpoint model(folder());
  EXPECT_EQ(model.layers(), std::vector<Index>(moe_layers.begin(), moe_layers.end()));
  for (std::size_t i = 0; i < layers.size(); ++i) {
    expect_equal(load_layer<bf16>(model, moe_layers[i]), layers[i]);
  }
  expect_same_outputs(load_packed<bf16>(model, 3), pack<bf16>(layers[2]));
}

TEST_F(RoundTrip, OfTensorsOfAllExpertsWithASharedOne) {
  const auto layers = write_model("qwen3_5_moe", R"("hidden_size": 256, "num_experts": 24,
      "num_experts_per_tok": 4, "moe_intermediate_size": 96,
      "shared_expert_intermediate_size": 160)");
  expect_shards();
  Checkpoint model(folder());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    expect_equal(load_layer<bf16>(model, moe_layers[i]), layers[i]);
  }
  expect_same_outputs(load_packed<bf16>(model, 1), pack<bf16>(layers[1]));
}

TEST_F(RoundTrip, OfInterleavedColumnsAndBiases) {
  const auto layers = write_model("gpt_oss", R"("hidden_size": 192, "num_local_experts": 24,
      "num_experts_per_tok": 4, "intermediate_size": 160)");
  expect_shards();
  Checkpoint model(folder());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    expect_equal(load_layer<bf16>(model, moe_layers[i]), layers[i]);
  }
  expect_same_outputs(load_packed<bf16>(model, 0), pack<bf16>(layers[0]));
}

TEST_F(RoundTrip, OfExpertsOfALatentWidthWithANorm) {
  const auto layers = write_model("kimi_k3", R"("hidden_size": 256, "num_experts": 32,
      "num_experts_per_token": 4, "moe_intermediate_size": 96, "num_shared_experts": 2,
      "routed_expert_hidden_size": 128, "latent_moe_use_norm": true, "hidden_act": "situ",
      "activation_situ_beta": 4.0, "activation_situ_linear_beta": 25.0,
      "routed_scaling_factor": 1.0)");
  expect_shards();
  Checkpoint model(folder());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto loaded = load_layer<bf16>(model, moe_layers[i]);
    expect_equal(loaded, layers[i]);
    EXPECT_TRUE(loaded.latent()->config().norm);
  }
  expect_same_outputs(load_packed<bf16>(model, 3), pack<bf16>(layers[2]));
}

}  // namespace
}  // namespace moe::io::testing::round_trip_test
