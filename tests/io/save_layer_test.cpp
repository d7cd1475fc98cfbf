// SPDX-License-Identifier: Apache-2.0
// What is saved is loaded again, of every family; and how the files lie there.
#include "moe/io/save_layer.hpp"

#include <functional>
#include <map>

#include "family_configs.hpp"
#include "family_layer.hpp"
#include "hard_times.hpp"
#include "moe/routing/expert_choice.hpp"
#include "small_models.hpp"
#include "support/throws.hpp"

namespace moe::io::testing::save_layer_test {
namespace {

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
    return numbered(random_layer<T, RouterT, E>(config_of(family)));
  }
  template <class Layer>
  static Layer numbered(Layer layer) {
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
std::map<std::string, Matrix<double>> parameters_of(const Layer& layer) {
  std::map<std::string, Matrix<double>> all;
  layer.for_each_parameter([&](const std::string& name, const auto& parameter) {
    all[name] = parameter.template cast<double>();
  });
  return all;
}

void expect_same_options(const LayerOptions& got, const LayerOptions& want) {
  EXPECT_EQ(got.routed_scale, want.routed_scale);
  EXPECT_EQ(got.shared_scale, want.shared_scale);
  EXPECT_EQ(got.weight_on, want.weight_on);
  EXPECT_EQ(got.capacity.rows, want.capacity.rows);
}

template <class Layer>
void expect_same(const Layer& got, const Layer& want) {
  const auto a = parameters_of(got), b = parameters_of(want);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, parameter] : b) {
    ASSERT_TRUE(a.contains(name)) << name;
    EXPECT_EQ(a.at(name), parameter) << name;
  }
  if constexpr (requires { want.router().rule().table(); }) {
    EXPECT_EQ(got.router().rule().table(), want.router().rule().table());
  }
  if constexpr (requires { want.options(); }) {
    expect_same_options(got.options(), want.options());
  }
}

// Beside a config of its own, or before there is one.
TEST_F(SaveLayer, OfEveryFamilyIsLoadedAgain) {
  for (const bool with_config : {true, false}) {
    for (const Family& family : detail::families) {
      const std::string name(family.name());
      SCOPED_TRACE(name);
      const auto save = [&](const auto& layer) {
        if (!with_config) {
          fs::remove(folder() / "config.json");
        }
        save_layer(layer, family, folder());
        write("config.json", config_text(name));
      };
      if (has_product_keys(family)) {
        const auto layer = numbered(random_product_key_layer<float>(config_of(name)));
        save(layer);
        expect_same(load_product_key_layer<float>(folder(), 0), layer);
        continue;
      }
      visit_router_type<float>(family.router_type, [&]<class RouterT>(std::type_identity<RouterT>) {
        const auto expect_round_trip = [&]<class E>(std::type_identity<E>) {
          const auto layer = layer_of<float, RouterT, E>(name);
          save(layer);
          expect_same(load_layer<float, RouterT, E>(folder(), 0), layer);
        };
        if (!family.copies.keys.empty() || family.zeros.omitted > 0.0) {
          return expect_round_trip(std::type_identity<ZeroExperts<float>>{});
        }
        if (family.adjugates.layout.names != nullptr) {
          return expect_round_trip(std::type_identity<AdjugateExperts<float>>{});
        }
        expect_round_trip(std::type_identity<Expert<float>>{});
      });
      EXPECT_EQ(num_files(), 2U);
    }
  }
}

// What no tensor shows would be read as the family has it, and give another function.
TEST_F(SaveLayer, RefusesExpertsThatReadersOfTheFamilyWouldTakeForOthers) {
  const auto layer = layer_of<float>("qwen2_moe");  // which has a shared expert
  const auto refusal_after = [&](const auto& change) {
    auto changed = layer;
    change(changed);
    return moe::testing::message_of(
        [&] { save_layer(changed, *find_family("qwen2_moe"), folder()); });
  };
  const auto with = [](const Expert<float>& expert, const auto& change) {
    ExpertConfig config = expert.config();
    change(config);
    return Expert<float>(expert.params(), config);
  };
  for (const bool with_config : {true, false}) {
    if (!with_config) {
      fs::remove(folder() / "config.json");
    }
    EXPECT_EQ(refusal_after([&](auto& changed) {
                changed.experts()[2] = with(changed.experts()[2], [](ExpertConfig& config) {
                  config.activation = Activation::relu;
                });
              }),
              "save_layers: the config of expert 2 is not that of the first, as readers of family "
              "qwen2_moe take it to be");
    for (const auto& change : std::vector<std::function<void(ExpertConfig&)>>{
             [](ExpertConfig& config) { config.activation = Activation::relu; },
             [](ExpertConfig& config) { config.up_offset = 1.0; },
             [](ExpertConfig& config) { config.clamp = Clamp::after; }}) {
      EXPECT_EQ(refusal_after([&](auto& changed) {
                  changed.shared().emplace(with(changed.shared()->expert(), change));
                }),
                "save_layers: activation, limit, clamp, alpha or bounds of the shared expert are "
                "not those that readers of family qwen2_moe take");
    }
    const MoELayer<float> scaled(
        {.d_model = 8,
         .d_ff = 6,
         .num_experts = 4,
         .top_k = 2,
         .router = layer.router().rule().config(),
         .shared = SharedExpertConfig{.d_ff = 6, .output_gate = true, .scale = 0.5}},
        1);
    EXPECT_EQ(
        moe::testing::message_of([&] { save_layer(scaled, *find_family("qwen2_moe"), folder()); }),
        "save_layers: shared_scale = 0.5, but readers of family qwen2_moe take it to be 1");
  }
  EXPECT_EQ(num_files(), 0U);
}

TEST_F(SaveLayer, RefusesARouterThatReadersOfTheFamilyWouldNotMake) {
  const auto refusal_of = [&](const auto& router, std::string_view family) {
    const MoEConfig config{.d_model = 8, .d_ff = 6, .num_experts = 4, .top_k = 2};
    const MoELayer<float, std::decay_t<decltype(router)>> layer(router,
                                                                make_experts<float>(config, 1));
    return moe::testing::message_of([&] { save_layer(layer, *find_family(family), folder()); });
  };
  const std::string text = "save_layers: the router is of another type, but readers of family ";
  EXPECT_EQ(refusal_of(linear_router<float>(8, 4, SparseMixer<float>(4, {}), 1), "mixtral"),
            text + "mixtral take it to be a Router");
  EXPECT_EQ(refusal_of(linear_router<float>(8, 4, ExpertChoice<float>({.capacity_factor = 2}), 1),
                       "mixtral"),
            text + "mixtral take it to be a Router");
  EXPECT_EQ(refusal_of(ProductKeyRouter<float>(8, {2, 2}, 1), "mixtral"),
            text + "mixtral take it to be a Router")
      << "2 n logits, which are as many as the n^2 experts here";
  EXPECT_EQ(refusal_of(linear_router<float>(8, 4, TopK<float>(4, 2, {}), 1), "phimoe"),
            text + "phimoe take it to be a SparseMixerRouter");
  EXPECT_EQ(num_files(), 0U);
  EXPECT_EQ(refusal_of(linear_router<float>(8, 4, TopK<float>(4, 2, {}), 1), "mixtral"),
            "(nothing was thrown)");
}

TEST_F(SaveLayer, RefusesPartsThatAConfigOfTheDirectoryTellsOtherwise) {
  LayerConfig gemma = config_of("gemma4");
  gemma.router_norm.epsilon = 0.25;
  EXPECT_EQ(moe::testing::message_of([&] {
              save_layer(random_layer<float, NormRouter<float>>(gemma), *find_family("gemma4"),
                         folder());
            }),
            "save_layers: router.norm.epsilon = 0.25, but readers of family gemma4 take it to be "
            "1e-06");
  LayerConfig phi = config_of("phimoe");
  phi.sparse_mixer.jitter = 0.25;
  EXPECT_EQ(moe::testing::message_of([&] {
              save_layer(random_layer<float, SparseMixerRouter<float>>(phi), *find_family("phimoe"),
                         folder());
            }),
            "save_layers: router.jitter = 0.25, but readers of family phimoe take it to be 0.01");
  LayerConfig nllb = config_of("nllb-moe");
  nllb.second_expert.policy = SecondPolicy::threshold;
  EXPECT_EQ(moe::testing::message_of([&] {
              save_layer(random_layer<float, SecondExpertRouter<float>>(nllb),
                         *find_family("nllb-moe"), folder());
            }),
            "save_layers: router.policy = 1 of its enum, but readers of family nllb-moe take it to "
            "be 0");
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
  EXPECT_EQ(moe::testing::message_of([&] {
              save_layer(layer, *find_family("qwen2_moe"), folder(),
                         {.dtype = static_cast<DType>(99)});
            }),
            "SaveOptions: dtype = 99, expected one of the enum");
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

TEST_F(SaveLayer, RefusesAFolderThatIsAFile) {
  const fs::path folder_of_none = write("file", "mine");
  const auto layer = layer_of<float>("olmoe");
  expect_fault([&] { save_layer(layer, *find_family("olmoe"), folder_of_none); },
               folder_of_none / "model.safetensors", "", {"cannot make"});
}

TEST_F(SaveLayer, RefusesAPrefixThatNoReaderTakes) {
  const auto layer = layer_of<float>("olmoe");
  expect_fault(
      [&] { save_layer(layer, *find_family("olmoe"), folder(), {.layer = "model.\xFF.0."}); },
      folder() / "model.safetensors", "", {"not UTF-8"});
  EXPECT_EQ(num_files(), 1U);
}

#if !defined(_WIN32)
TEST_F(SaveLayer, KeepsWhatWasThereWhenThereIsNoRoom) {
  const Family& family = *find_family("olmoe");
  const auto before = layer_of<float>("olmoe");
  auto after = before;
  after.experts()[1].params().up.setConstant(3.0F);
  for (const std::uint64_t shard_bytes : {std::uint64_t{1} << 32, std::uint64_t{1000}}) {
    fs::remove(folder() / "model.safetensors");
    save_layer(before, family, folder(), {.shard_bytes = shard_bytes});
    const std::size_t files = num_files();
    for (const rlim_t room : {0U, 1U, 100U, 1000U}) {
      const FileSizeLimit limit(room);
      EXPECT_THROW(save_layer(after, family, folder(), {.shard_bytes = shard_bytes}), FormatError);
    }
    expect_same(load_layer<float>(folder(), 0), before);
    EXPECT_EQ(num_files(), files);
  }
}

TEST_F(SaveLayer, HasTheOldLayerOrTheNewWheneverItIsKilled) {
  const Family& family = *find_family("olmoe");
  const auto one = layer_of<float>("olmoe");
  auto other = one;
  other.for_each_parameter([](const std::string&, auto& parameter) { parameter *= 2; });
  for (const std::uint64_t shard_bytes : {std::uint64_t{1000}, std::uint64_t{1} << 32}) {
    save_layer(one, family, folder(), {.shard_bytes = shard_bytes});
    std::mt19937 random(1);
    for (int round = 0; round < 40; ++round) {
      kill_while(
          [&] {
            save_layer(other, family, folder(), {.shard_bytes = shard_bytes});
            save_layer(one, family, folder(), {.shard_bytes = shard_bytes});
          },
          std::chrono::microseconds(random() % 10'000));
      const auto got = load_layer<float>(folder(), 0);
      const bool is_one = got.router().params().weight == one.router().params().weight;
      expect_same(got, is_one ? one : other);
    }
  }
}
#endif

}  // namespace
}  // namespace moe::io::testing::save_layer_test
