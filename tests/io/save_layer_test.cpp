// SPDX-License-Identifier: Apache-2.0
// What is saved is loaded again, of every family; and how the files lie there.
#include "moe/io/save_layer.hpp"

#include "moe/io/load_layer.hpp"
#include "small_models.hpp"
#include "support/family_experts.hpp"
#include "support/throws.hpp"

namespace moe::io::testing {
namespace {

/// A config that every family finds its keys in.
std::string config_text(std::string_view family) {
  return joined(R"({"model_type": ")", family, R"(", "hidden_size": 8, "num_experts": 4,
      "num_experts_per_tok": 2, "moe_intermediate_size": 6, "intermediate_size": 6,
      "ffn_hidden_size": 6, "moe_ffn_hidden_size": 6, "d_ff": 6, "shared_expert_intermediate_size": 3,
      "shared_intermediate_size": 3, "n_shared_experts": 2, "routed_scaling_factor": 1.5,
      "n_group": 1, "router_bias": true, "expert_selection_fn": "softmax",
      "shared_expert_combination_strategy": "sum", "share_expert_dim": 3, "vocab_size": 5,
      "moe_shared_expert_intermediate_size": 3, "moe_num_primary_experts": 4,
      "moe_num_active_primary_experts": 2, "expert_ffn_hidden_size": 6, "zero_expert_num": 2,
      "moe_latent_size": 5, "routed_expert_hidden_size": 5, "norm_topk_prob": false,
      "encoder_ffn_dim": 6, "router_hidden_size": 5})");
}

class SaveLayer : public ModelFolder {
 protected:
  LayerConfig config_of(std::string_view family) const {
    const std::string text = config_text(family);
    write("config.json", text);
    return layer_config(*find_family(family), ModelConfig::parse(text, "config.json"), 0);
  }

  /// A layer of random numbers, also where they begin as zeros.
  template <Real T, class RouterT = Router<T>, class E = Expert<T>>
  MoELayer<T, RouterT, E> layer_of(std::string_view family) const {
    const LayerConfig config = config_of(family);
    MoELayer<T, RouterT, E> layer(
        FamilyRouter<RouterT>::make(
            config, random_expert_table(config.router.selection.vocabulary, config.num_experts,
                                        config.top_k, 3)),
        detail::with_zero_experts<typename MoELayer<T, RouterT, E>::Set>(
            FfnExperts<T>(experts_of<T>(config, 1)), config),
        config.options(), make_shared_expert<T>(config, 1), make_extras<T>(config, 1));
    int number = 0;
    layer.for_each_parameter([&](const std::string&, auto& parameter) {
      using P = typename std::decay_t<decltype(parameter)>::Scalar;
      parameter = matrix(++number, parameter.rows(), parameter.cols()).template cast<P>();
    });
    return layer;
  }

  std::size_t num_files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder()), fs::directory_iterator()));
  }
};

template <class Layer>
std::map<std::string, Matrix<double>> parameters(const Layer& layer) {
  std::map<std::string, Matrix<double>> all;
  layer.for_each_parameter([&](const std::string& name, const auto& parameter) {
    all[name] = parameter.template cast<double>();
  });
  return all;
}

template <class Layer>
void expect_same(const Layer& got, const Layer& want) {
  const auto a = parameters(got), b = parameters(want);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, parameter] : b) {
    ASSERT_TRUE(a.contains(name)) << name;
    EXPECT_EQ(a.at(name), parameter) << name;
  }
  if constexpr (requires { want.router().rule().table(); }) {
    EXPECT_EQ(got.router().rule().table(), want.router().rule().table());
  }
  EXPECT_EQ(got.options().routed_scale, want.options().routed_scale);
  EXPECT_EQ(got.options().shared_scale, want.options().shared_scale);
  EXPECT_EQ(got.options().weight_on, want.options().weight_on);
  EXPECT_EQ(got.options().capacity.rows, want.options().capacity.rows);
}

TEST_F(SaveLayer, OfEveryFamilyIsLoadedAgain) {
  for (const Family& family : detail::families) {
    const std::string name(family.name());
    SCOPED_TRACE(name);
    visit_router_type<float>(family.router_type, [&]<class RouterT>(std::type_identity<RouterT>) {
      const auto expect_round_trip = [&]<class E>(std::type_identity<E>) {
        const auto layer = layer_of<float, RouterT, E>(name);
        save_layer(layer, family, folder());
        expect_same(load_layer<float, RouterT, E>(folder(), 0), layer);
      };
      if (!family.copies.keys.empty() || family.zeros.omitted > 0.0) {
        return expect_round_trip(std::type_identity<ZeroExperts<float>>{});
      }
      expect_round_trip(std::type_identity<Expert<float>>{});
    });
    EXPECT_EQ(num_files(), 2U);
  }
}

TEST_F(SaveLayer, WritesTheFamilysOwnNames) {
  save_layer(layer_of<float>("mixtral"), *find_family("mixtral"), folder(),
             {.layer = "model.layers.7."});
  const SafeTensors file = SafeTensors::map(folder() / "model.safetensors");
  EXPECT_EQ(file.tensors().size(), 13U);
  EXPECT_EQ(file.at("model.layers.7.block_sparse_moe.experts.3.w2.weight").shape,
            (std::vector<Index>{8, 6}));
  EXPECT_EQ(Checkpoint(folder()).layers(), std::vector<Index>{7});
}

TEST_F(SaveLayer, WritesShardsAndTheirIndex) {
  const auto layer = layer_of<float>("qwen3_moe");
  save_layer(layer, *find_family("qwen3_moe"), folder(), {.shard_bytes = 1000});
  EXPECT_GT(num_files(), 3U);
  EXPECT_TRUE(fs::exists(folder() / "model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(folder() / "model.safetensors"));
  expect_same(load_layer<float>(folder(), 0), layer);
}

TEST_F(SaveLayer, RefusesShardsBesideAFileThatReadersTakeFirst) {
  const auto layer = layer_of<float>("qwen3_moe");
  const Family& family = *find_family("qwen3_moe");
  save_layer(layer, family, folder());
  expect_fault([&] { save_layer(layer, family, folder(), {.shard_bytes = 1000}); },
               folder() / "model.safetensors", "", {"expected a folder without it"});
  EXPECT_EQ(num_files(), 2U);
}

TEST_F(SaveLayer, RoundsToTheTypeThatIsAskedFor) {
  const auto layer = layer_of<float>("olmoe");
  save_layer(layer, *find_family("olmoe"), folder(), {.dtype = DType::BF16});
  const auto wanted = layer.experts()[1].params().up.cast<bf16>().eval();
  EXPECT_EQ(load_layer<bf16>(folder(), 0).experts()[1].params().up, wanted);
  EXPECT_EQ(load_layer<float>(folder(), 0).experts()[1].params().up, wanted.cast<float>());
  const SafeTensors file = SafeTensors::map(folder() / "model.safetensors");
  for (const TensorView& tensor : file.tensors()) {
    EXPECT_EQ(tensor.dtype, DType::BF16);
  }
}

TEST_F(SaveLayer, KeepsTheTypeOfEachParameterOtherwise) {
  save_layer(layer_of<bf16>("olmoe"), *find_family("olmoe"), folder());
  const SafeTensors file = SafeTensors::map(folder() / "model.safetensors");
  EXPECT_EQ(file.at("model.layers.0.mlp.gate.weight").dtype, DType::F32);
  EXPECT_EQ(file.at("model.layers.0.mlp.experts.0.up_proj.weight").dtype, DType::BF16);
}

TEST_F(SaveLayer, RefusesWhatTheFamilyHasNoNameFor) {
  const auto layer = layer_of<float>("qwen2_moe");  // which has a shared expert
  EXPECT_THROW(save_layer(layer, *find_family("olmoe"), folder()), std::invalid_argument);
  EXPECT_THROW(save_layer(layer, *find_family("qwen2_moe"), folder(), {.dtype = DType::I8}),
               std::invalid_argument);
  const MoELayer<float> latent(
      {.d_model = 4, .d_ff = 3, .num_experts = 2, .top_k = 1, .latent = LatentConfig{.width = 2}},
      1);
  EXPECT_EQ(moe::testing::message_of([&] { save_layer(latent, *find_family("olmoe"), folder()); }),
            "family olmoe has no latent.down");
  const auto with_copies = layer_of<float, Router<float>, ZeroExperts<float>>("longcat_flash");
  EXPECT_EQ(
      moe::testing::message_of([&] { save_layer(with_copies, *find_family("olmoe"), folder()); }),
      "save_layers: there are 0 constant, 2 copy and 0 zero experts, expected none of family "
      "olmoe");
  EXPECT_EQ(num_files(), 1U);
}

TEST_F(SaveLayer, KeepsWhatWasThereIfItCannotBeWritten) {
  const auto layer = layer_of<float>("olmoe");
  const fs::path missing = folder() / "none";
  expect_fault([&] { save_layer(layer, *find_family("olmoe"), missing); },
               missing / "model.safetensors", "", {"cannot make"});
}

}  // namespace
}  // namespace moe::io::testing
