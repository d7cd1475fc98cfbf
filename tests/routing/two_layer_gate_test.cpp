// SPDX-License-Identifier: Apache-2.0
// A gate with a hidden layer: values by hand and of plain loops, gradients, bits.
#include "moe/routing/two_layer_gate.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "../support/gate_step.hpp"
#include "../support/throws.hpp"
#include "moe/routing/concepts.hpp"

namespace moe::two_layer_gate_test {
namespace {

using testing::expect_logits;
using testing::message_of;

constexpr Index D = 5, E = 4;

static_assert(TrainableGate<TwoLayerGate<float>, float> && TrainableGate<TwoLayerGate<bf16>, bf16>);

TEST(TwoLayerGate, ProjectsTheTanhOfAProjection) {
  const TwoLayerGate<double> gate(2, 1, 2, {});
  TwoLayerGate<double>::Params params = gate.initial_params(1);
  params.hidden.weight << std::log(3.0), -std::log(3.0);
  params.output.weight << 10.0, -5.0;
  Matrix<double> x(1, 2);
  x << 2.0, 1.0;  // tanh(log 3) is 0.8
  TwoLayerGate<double>::Table table;
  gate.forward(params, x, {}, table);
  EXPECT_NEAR(table.logits(0, 0), 8.0, 1e-14);
  EXPECT_NEAR(table.logits(0, 1), -4.0, 1e-14);
}

TEST(TwoLayerGate, AgreesWithPlainLoops) {
  for (const LogitsConfig& config : {LogitsConfig{}, LogitsConfig{.bias = true, .softcap = 1.5}}) {
    expect_logits(TwoLayerGate<double>(D, 7, E, config), [&](const auto& params, const auto& x) {
      return reference::logits(params, config, x);
    });
  }
}

TEST(TwoLayerGate, HasTheGradientsOfCentralDifferences) {
  for (const LogitsConfig& config :
       {LogitsConfig{}, LogitsConfig{.bias = true, .softcap = 1.5},
        LogitsConfig{.input_jitter = 0.3, .bias = true, .noisy = true}}) {
    for (const bool masked : {false, true}) {
      EXPECT_LT(testing::gate_gradient_error(TwoLayerGate<double>(D, 7, E, config), masked), 1e-7);
    }
  }
}

TEST(TwoLayerGate, HasTheSameBitsForAnyThreads) {
  testing::expect_gate_has_same_bits_for_any_threads(
      TwoLayerGate<float>(70, 40, 9, {.bias = true}));
}

TEST(TwoLayerGate, HasATensorForEachLayer) {
  std::vector<std::string> names;
  const TwoLayerGate<double> gate(D, 7, E, {.bias = true});
  const auto shapes = gate.shapes();
  TwoLayerGateTensors<Shape>::for_each(
      [&](std::string_view name, const Shape& shape) {
        names.push_back(std::string(name) + " " + std::to_string(shape.rows) + " " +
                        std::to_string(shape.cols));
      },
      shapes);
  EXPECT_EQ(names, (std::vector<std::string>{"hidden 7 5", "hidden_bias 1 7", "weight 4 7",
                                             "bias 1 4", "noise 0 7"}));
}

}  // namespace
}  // namespace moe::two_layer_gate_test
