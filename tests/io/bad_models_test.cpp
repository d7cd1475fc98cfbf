// SPDX-License-Identifier: Apache-2.0
// Every family, and every key of its config and tensor of its layer in turn: missing, or not what
// it must be. Only a FormatError comes out, and it names the file and the tensor.
#include <nlohmann/json.hpp>

#include "family_configs.hpp"
#include "family_layer.hpp"
#include "moe/io/save_layer.hpp"
#include "small_models.hpp"

namespace moe::io::testing::bad_models_test {
namespace {

using nlohmann::json;

class BadModels : public ModelFolder {
 protected:
  fs::path file() const { return folder() / "model.safetensors"; }

  void save(const Family& family) const {
    const std::string text = config_text(family.name());
    write("config.json", text);
    const LayerConfig config = layer_config(family, ModelConfig::parse(text), 0);
    if (has_product_keys(family)) {
      return save_layer(random_product_key_layer<float>(config), family, folder());
    }
    visit_layer_types(family, [&]<class R, class E>(std::type_identity<R>, std::type_identity<E>) {
      save_layer(random_layer<float, R, E>(config), family, folder());
    });
  }
  void load(const Family& family) const {
    if (has_product_keys(family)) {
      load_product_key_layer<float>(folder(), 0);
      return;
    }
    visit_layer_types(family, [&]<class R, class E>(std::type_identity<R>, std::type_identity<E>) {
      load_layer<float, R, E>(folder(), 0);
    });
  }
  NewTensors tensors() const {
    const SafeTensors saved = SafeTensors::load(file());
    NewTensors all;
    for (const TensorView& tensor : saved.tensors()) {
      all[tensor.name] = {std::string(name(tensor.dtype)), tensor.shape,
                          FileBytes(tensor.data.begin(), tensor.data.end())};
    }
    return all;
  }
};

TEST_F(BadModels, AreRefusedForEachMissingOrUnfitTensor) {
  for (const Family& family : detail::families) {
    SCOPED_TRACE(family.name());
    save(family);
    const NewTensors good = tensors();
    EXPECT_NO_THROW(load(family));
    for (const auto& [name, tensor] : good) {
      SCOPED_TRACE(name);
      NewTensors bad = good;
      bad.erase(name);
      write("model.safetensors", bad);
      try {
        load(family);
        ADD_FAILURE() << "accepted without it";
      } catch (const FormatError& error) {
        EXPECT_EQ(error.file(), file().string()) << error.what();
        // Without its router a layer is none.
        EXPECT_TRUE(error.tensor() == name || error.tensor().empty()) << error.what();
      }
      const bool integers = tensor.dtype == "I64";
      bad = good;
      bad[name].dtype = integers ? "F64" : "I32";
      write("model.safetensors", bad);
      expect_fault([&] { load(family); }, file(), name, {"dtype ", "expected "});
      bad = good;
      bad[name].shape.push_back(2);
      bad[name].data.resize(2 * tensor.data.size());
      write("model.safetensors", bad);
      expect_fault([&] { load(family); }, file(), name, {", 2], expected "});
    }
  }
}

TEST(BadConfigs, AreRefusedByAFormatErrorWhateverStandsInAKey) {
  const json values[] = {nullptr,
                         true,
                         -1,
                         0,
                         2.5,
                         1e300,
                         "x",
                         json::array(),
                         json::array({3}),
                         json::object(),
                         9223372036854775807,
                         4611686018427387904,
                         2147483648,
                         18446744073709551615ULL};
  std::size_t refused = 0;
  const auto read = [&](const Family& family, const json& config) {
    try {
      const LayerConfig made =
          layer_config(family, ModelConfig::parse(config.dump(), "config.json"), 0);
      EXPECT_NO_THROW(made.validate());
      EXPECT_GE(made.num_feed_forwards(), 1);
    } catch (const FormatError& error) {
      ++refused;
      EXPECT_EQ(error.file(), "config.json");
      const std::string message = error.what();
      EXPECT_TRUE(message.find("expected") != std::string::npos ||
                  message.find("overflows") != std::string::npos)
          << message;
    }
  };
  for (const Family& family : detail::families) {
    const json good = json::parse(config_text(family.name()));
    SCOPED_TRACE(family.name());
    for (const auto& [key, value] : good.items()) {
      SCOPED_TRACE(key);
      json bad = good;
      bad.erase(key);
      read(family, bad);
      for (const json& other : values) {
        bad[key] = other;
        read(family, bad);
      }
    }
  }
  EXPECT_GT(refused, 1000U);
}

}  // namespace
}  // namespace moe::io::testing::bad_models_test
