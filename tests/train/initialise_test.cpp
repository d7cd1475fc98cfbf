// SPDX-License-Identifier: Apache-2.0
// Scaled layers against fresh ones of the same seed, and drawn ones by their deviations.
#include "moe/train/initialise.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "../support/throws.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routing.hpp"

namespace moe::initialise_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::same_bits;

MoEConfig config() {
  return {.d_model = 8,
          .d_ff = 6,
          .num_experts = 3,
          .top_k = 2,
          .expert = {.bias = true},
          .shared = SharedExpertConfig{.d_ff = 5, .output_gate = true}};
}

/// Holds each tensor of a scaled layer to that of a fresh one times what `factor` says of its name.
template <class Layer, class Factor>
void expect_scaled(Layer scaled, Layer fresh, const InitScale& scale, const Factor& factor) {
  scale_init(scaled, scale);
  std::vector<Matrix<double>> want;
  fresh.for_each_parameter([&](const ParameterName& name, const auto& tensor) {
    want.push_back(factor(name.text()) * tensor.template cast<double>());
  });
  std::size_t number = 0;
  scaled.for_each_parameter([&](const ParameterName& name, const auto& tensor) {
    EXPECT_TRUE(matrix_near(tensor.template cast<double>(), want[number++], 1e-15)) << name.text();
  });
}

double plain_factor(const std::string& name) {
  if (name.starts_with("router")) {
    return name == "router.weight" ? 0.1 : 1.0;
  }
  if (name.ends_with("output_gate") || name.ends_with("bias")) {
    return 1.0;
  }
  return name.ends_with("down") ? 0.25 : 0.5;
}

TEST(InitScale, HasItsFactorsOfARouterAndOfAllFeedForwards) {
  const InitScale scale{.input = 0.5, .output = 0.25, .router = 0.1};
  expect_scaled(MoELayer<double>(config(), 3), MoELayer<double>(config(), 3), scale, plain_factor);
  expect_scaled(DenseFfn<double>({8, 6, 8}, {.bias = true}, 3),
                DenseFfn<double>({8, 6, 8}, {.bias = true}, 3), scale, plain_factor);
}

TEST(InitScale, LeavesTheBiasesAndScalesOfARouter) {
  MoEConfig biased = config();
  biased.router.logits.bias = true;
  biased.router.selection.bias = true;
  biased.router.weight.expert_scale = ExpertScale::learned;
  const auto made = [&] {
    MoELayer<double> layer(biased, 3);
    layer.router().params().bias.setOnes();
    layer.router().params().selection_bias.setOnes();
    return layer;
  };
  expect_scaled(made(), made(), {.router = 0.1},
                [](const std::string& name) { return name == "router.weight" ? 0.1 : 1.0; });
}

/// A tensor of a gate is drawn if it is another one with another seed.
template <class Gate>
void expect_drawn_scaled(const Gate& gate) {
  using Router = GatedRouter<double, Gate, TopK<double>>;
  const TopK<double> rule(3, 2, {.weight = {.expert_scale = ExpertScale::learned}});
  const auto made = [&](std::uint64_t seed) {
    return MoELayer<double, Router>(
        Router(gate, rule, {gate.initial_params(seed), rule.initial_params()}),
        make_experts<double>(config(), 1));
  };
  MoELayer<double, Router> scaled = made(1), fresh = made(1), other = made(2);
  scale_init(scaled, {.router = 0.1});
  using Params = typename Router::Params;
  Params::for_each(
      [](std::string_view name, const auto& got, const auto& was, const auto& another) {
        const double factor = was == another ? 1.0 : 0.1;
        EXPECT_TRUE(matrix_near(got, factor * was, 1e-15)) << name;
      },
      scaled.router().params(), fresh.router().params(), other.router().params());
}

TEST(InitScale, ScalesWhatIsDrawnOfEveryGate) {
  const LogitsConfig logits{.bias = true, .noisy = true};
  expect_drawn_scaled(LinearGate<double>(8, 3, logits));
  expect_drawn_scaled(NormGate<double>(8, 3, logits, {}));
  expect_drawn_scaled(TwoLayerGate<double>(8, 4, 3, logits));
  expect_drawn_scaled(CosineGate<double>(8, 3, {.width = 4}));
  expect_drawn_scaled(UnitGate<double>(8, 3, {}));
  expect_drawn_scaled(StateGate<double>(8, 3, {.d_state = 4, .takes_state = false}));
}

TEST(InitScale, OfALatentLayerHasItsOutputFactorOnceOnEachWayOut) {
  MoEConfig latent = config();
  latent.latent = LatentConfig{.width = 4, .norm = true};
  expect_scaled(MoELayer<double>(latent, 3), MoELayer<double>(latent, 3), {.output = 0.25},
                [](const std::string& name) {
                  return name == "latent.up" || name == "shared.down" ? 0.25 : 1.0;
                });
}

TEST(InitScale, OfOneChangesNoBit) {
  MoELayer<bf16> layer(config(), 3);
  const MoELayer<bf16> fresh = layer;
  scale_init(layer, {});
  EXPECT_TRUE(testing::same_bits(layer.experts()[1].params().up, fresh.experts()[1].params().up));
}

TEST(ResidualScale, IsOneOverTheRootOfAllAdditions) {
  EXPECT_DOUBLE_EQ(residual_scale(8), 0.25);
  EXPECT_DOUBLE_EQ(residual_scale(9, 1), 1.0 / 3.0);
  EXPECT_EQ(message_of([] { residual_scale(0); }),
            "residual_scale: 0 blocks of 2 additions, expected at least 1 of each");
}

TEST(DrawInit, HasTheDeviationOfEachTensorAndLeavesTheOthers) {
  MoELayer<float> layer({.d_model = 64, .d_ff = 96, .num_experts = 2, .top_k = 1}, 1);
  const MoELayer<float> fresh = layer;
  const auto deviation = [](const ParameterName& name, const auto&) -> std::optional<double> {
    if (name.text() == "router.weight") {
      return 0.006;
    }
    return name.word == "gate" ? std::optional<double>() : 0.02;
  };
  draw_init(layer, 5, deviation);
  const auto root_mean_square = [](const Matrix<float>& tensor) {
    return static_cast<double>(tensor.norm()) / std::sqrt(static_cast<double>(tensor.size()));
  };
  EXPECT_NEAR(root_mean_square(layer.router().params().weight), 0.006, 0.0015);
  EXPECT_NEAR(root_mean_square(layer.experts()[0].params().up), 0.02, 0.001);
  EXPECT_TRUE(
      testing::same_bits(layer.experts()[1].params().gate, fresh.experts()[1].params().gate));
  EXPECT_GT((layer.experts()[0].params().up - layer.experts()[1].params().up).norm(), 0.1F);
  MoELayer<float> again = fresh;
  draw_init(again, 5, deviation);
  EXPECT_TRUE(
      testing::same_bits(again.experts()[1].params().down, layer.experts()[1].params().down));
}

TEST(Init, RefusesFactorsAndDeviationsThatAreNone) {
  MoELayer<double> layer(config(), 3);
  EXPECT_EQ(message_of([&] { scale_init(layer, {.router = -1.0}); }),
            "InitScale: a factor is -1, expected finite and at least 0");
  EXPECT_EQ(message_of([&] {
              draw_init(layer, 1, [](const ParameterName&, const auto&) {
                return std::optional<double>(-0.5);
              });
            }),
            "draw_init: the deviation of router.weight is -0.5, expected finite and at least 0");
  const MoELayer<double> before = layer;
  EXPECT_THROW(draw_init(layer, 1,
                         [](const ParameterName& name, const auto&) {
                           return std::optional<double>(name.word == "down" ? std::nan("") : 0.02);
                         }),
               std::invalid_argument);
  EXPECT_TRUE(same_bits(layer.router().params().weight, before.router().params().weight));
  EXPECT_TRUE(same_bits(layer.experts()[0].params().up, before.experts()[0].params().up));
}

}  // namespace
}  // namespace moe::initialise_test
