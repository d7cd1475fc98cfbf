// SPDX-License-Identifier: Apache-2.0
// A layer of Doge, product keys and experts of rank one, by the names of its files: read as the
// published model reads it, saved, and refused where it is another thing.
#include <algorithm>
#include <functional>

#include "moe/io/load_layer.hpp"
#include "moe/io/save_layer.hpp"
#include "small_models.hpp"
#include "support/matrix_near.hpp"
#include "support/throws.hpp"

namespace moe::io::testing::load_product_keys_test {
namespace {

class LoadProductKeys : public ModelFolder {
 protected:
  void write_model(const NewTensors& tensors, std::string_view config) const {
    write("config.json", config);
    write("model.safetensors", tensors);
  }
};

constexpr std::string_view doge_config = R"({"model_type": "doge", "is_moe": true,
    "hidden_size": 8, "intermediate_size": 6, "num_experts": 9, "num_experts_per_tok": 4,
    "norm_topk_prob": true, "hidden_act": "silu"})";

/// The router 1, the experts 2 and 3, the dense part 4 to 6.
NewTensors doge() {
  NewTensors tensors;
  const std::string block = "model.layers.0.mlp.";
  tensors[block + "router_gate.weight"] = weights(1, {6, D});
  tensors[block + "down_embed.weight"] = weights(2, {9, D});
  tensors[block + "up_embed.weight"] = weights(3, {9, D});
  tensors[block + "gate_proj.weight"] = weights(4, {F, D});
  tensors[block + "up_proj.weight"] = weights(5, {F, D});
  tensors[block + "down_proj.weight"] = weights(6, {D, F});
  return tensors;
}

/// One number after the other, as the model's code has it: its memory of logits (N, 6) is taken for
/// (2, N, 3).
Matrix<double> published_doge(const Matrix<float>& tokens) {
  const auto of = [](int n, Index rows, Index cols) -> Matrix<double> {
    return matrix(n, rows, cols).cast<double>();
  };
  const Matrix<double> x = tokens.cast<double>(), down = of(2, 9, D), up = of(3, 9, D);
  const Matrix<double> logits = x * of(1, 6, D).transpose();
  const auto silu = [](double z) { return z / (1.0 + std::exp(-z)); };
  const Matrix<double> hidden =
      (x * of(4, F, D).transpose()).unaryExpr(silu).cwiseProduct(x * of(5, F, D).transpose());
  Matrix<double> y = hidden * of(6, D, F).transpose();
  for (Index t = 0; t < x.rows(); ++t) {
    std::vector<std::pair<double, Index>> all;
    for (Index e = 0; e < 9; ++e) {
      const double first = logits.data()[t * 3 + e / 3];
      all.emplace_back(first + logits.data()[(x.rows() + t) * 3 + e % 3], e);
    }
    std::sort(all.begin(), all.end(), std::greater<>());
    double sum = 0.0;
    for (Index k = 0; k < 4; ++k) {
      sum += std::exp(all[static_cast<std::size_t>(k)].first);
    }
    for (Index k = 0; k < 4; ++k) {
      const auto [logit, e] = all[static_cast<std::size_t>(k)];
      y.row(t) += std::exp(logit) / sum * silu(x.row(t).dot(down.row(e))) * up.row(e);
    }
  }
  return y;
}

TEST_F(LoadProductKeys, TakesThemAsThePublishedModelReadsThem) {
  write_model(doge(), doge_config);
  const auto layer = load_product_key_layer<float>(folder(), 0);
  EXPECT_EQ(layer.router().config().reading, KeyReading::across_batch);
  EXPECT_EQ(layer.router().top_k(), 4);
  EXPECT_EQ(layer.experts().params().down, matrix(2, 9, D));
  for (const Index tokens : {1, 2, 5}) {
    const Matrix<float> x = matrix(7, tokens, D);
    Matrix<float> y(tokens, D);
    ProductKeyScratch<float> scratch;
    layer.forward(x, y, scratch);
    EXPECT_TRUE(moe::testing::matrix_near(y, published_doge(x), 1e-6)) << tokens;
  }
}

TEST_F(LoadProductKeys, SavesThemAsTheyWere) {
  write_model(doge(), doge_config);
  const auto layer = load_product_key_layer<float>(folder(), 0);
  save_layer(layer, *find_family("doge"), folder());
  const SafeTensors file = SafeTensors::map(folder() / "model.safetensors");
  const NewTensors want = doge();
  ASSERT_EQ(file.tensors().size(), want.size());
  for (const auto& [name, tensor] : want) {
    EXPECT_EQ(file.at(name).shape, tensor.shape) << name;
    EXPECT_TRUE(std::ranges::equal(file.at(name).data, tensor.data)) << name;
  }
}

TEST_F(LoadProductKeys, RefusesThemWhereTheyAreAnotherThing) {
  const fs::path config = folder() / "config.json";
  write_model(doge(), doge_config);
  expect_fault([&] { load_layer<float>(folder(), 0); }, config, "",
               {"doge", "experts of rank one, expected a ProductKeyLayer"});
  NewTensors more = doge();
  more["model.layers.0.mlp.third_embed.weight"] = weights(8, {9, D});
  write_model(more, doge_config);
  expect_fault([&] { load_product_key_layer<float>(folder(), 0); }, folder() / "model.safetensors",
               "model.layers.0.mlp.third_embed.weight", {"no parameter of family doge"});
  const auto text = [](std::string_view is_moe, int experts) {
    return joined(R"({"model_type": "doge", "is_moe": )", is_moe,
                  R"(, "hidden_size": 8, "intermediate_size": 6, "num_experts_per_tok": 4,
                      "num_experts": )",
                  experts, "}");
  };
  write_model(doge(), text("true", 10));
  expect_fault([&] { load_product_key_layer<float>(folder(), 0); }, config, "",
               {"num_experts = 10, expected a square"});
  write_model(doge(), text("false", 9));
  expect_fault([&] { load_product_key_layer<float>(folder(), 0); }, config, "", {"is_moe", "true"});

  ProductKeyLayer<float> own({.d_model = 8, .keys = {3, 4}, .shared_d_ff = 6}, 1);
  write("config.json", doge_config);
  EXPECT_EQ(moe::testing::message_of([&] { save_layer(own, *find_family("doge"), folder()); }),
            "save_layers: router.reading = 0 of its enum, but readers of family doge take it to be "
            "1");
  ProductKeyLayer<float> other_shared = load_product_key_layer<float>(folder(), 0);
  other_shared.shared().emplace(
      Expert<float>(other_shared.shared()->params(), {.activation = Activation::relu}));
  EXPECT_EQ(
      moe::testing::message_of([&] { save_layer(other_shared, *find_family("doge"), folder()); }),
      "save_layers: activation, limit, clamp, alpha or bounds of the shared expert are not "
      "those that readers of family doge take");
  EXPECT_EQ(moe::testing::message_of([&] { save_layer(own, *find_family("mixtral"), folder()); }),
            "save_layers: the experts are of rank one, expected others of family mixtral");
  const MoELayer<float> other({.d_model = 8, .d_ff = 6, .num_experts = 9, .top_k = 4}, 1);
  EXPECT_EQ(moe::testing::message_of([&] { save_layer(other, *find_family("doge"), folder()); }),
            "save_layers: the experts are not of rank one, expected such of family doge");
}

}  // namespace
}  // namespace moe::io::testing::load_product_keys_test
