// SPDX-License-Identifier: Apache-2.0
// A router may look at something else than the experts: {x, router_x}, and {dx, router_dx} back.
#include "moe/layers/layer_input.hpp"

#include <gtest/gtest.h>

#include "moe/layers.hpp"
#include "moe/reference.hpp"
#include "support/finite_difference.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe::layer_input_test {
namespace {

using testing::gradient_error;
using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using testing::same_grads;
using Layer = MoELayer<double>;
using M = Matrix<double>;

constexpr Index N = 7, D = 5;

MoEConfig config() {
  return {.d_model = D,
          .d_ff = 6,
          .num_experts = 4,
          .top_k = 2,
          .d_out = 3,
          .router = {.score = Score::sigmoid},
          .shared = SharedExpertConfig{.d_ff = 4}};
}

/// A step of an input of two.
struct Step {
  M x = random_matrix<double>(N, D, 1), router_x = random_matrix<double>(N, D, 2);
  M dy = random_matrix<double>(N, 3, 3), y = M(N, 3), dx = M(N, D), router_dx = M(N, D);
  Layer::Grads grads;

  template <class Tape>
  void run(const Layer& layer, Tape& tape, const CallOptions& call = {}) {
    grads = layer.zero_grads();
    layer.forward({x, router_x}, y, tape, call);
    layer.backward({x, router_x}, dy, tape, {dx, router_dx}, grads);
  }
};

/// The layer of config(), and one whose experts are between projections.
std::vector<MoEConfig> configs() {
  MoEConfig latent = config();
  latent.latent = LatentConfig{.width = 4, .norm = true, .eps = 0.1};
  return {config(), latent};
}

void routes_by_one_and_computes_of_the_other(const Layer& layer) {
  Step step;
  Layer::Scratch scratch;
  layer.forward({step.x, step.router_x}, step.y, scratch);
  EXPECT_TRUE(matrix_near(step.y, reference::forward(layer, step.x, {}, &step.router_x), 1e-13));

  const auto packed = pack<double>(layer);
  decltype(packed)::Scratch packed_scratch;
  M y(N, 3);
  packed.forward({step.x, step.router_x}, y, packed_scratch);
  EXPECT_TRUE(same_bits(y, step.y));
}

TEST(LayerInput, RoutesByOneMatrixWhatTheExpertsComputeOfTheOther) {
  for (const MoEConfig& each : configs()) {
    routes_by_one_and_computes_of_the_other(make_layer<double>(each, 5));
  }
}

void has_a_gradient_for_each(Layer layer) {
  Step step;
  Layer::Tape tape;
  step.run(layer, tape);
  Layer::Scratch scratch;
  const auto loss = [&] {
    M y(N, 3);
    layer.forward({step.x, step.router_x}, y, scratch, {.num_threads = 1});
    return (y.array() * step.dy.array()).sum();
  };
  EXPECT_LT(gradient_error(loss, step.x, step.dx), 1e-8);
  EXPECT_LT(gradient_error(loss, step.router_x, step.router_dx), 1e-8);
  EXPECT_LT(gradient_error(loss, layer.router().params().gate_part().weight,
                           step.grads.router.gate_part().weight),
            1e-8);
}

TEST(LayerInput, HasAGradientForEach) {
  for (MoEConfig each : configs()) {
    for (const WeightOn place : {WeightOn::output, WeightOn::input, WeightOn::hidden}) {
      each.weight_on = place;
      has_a_gradient_for_each(make_layer<double>(each, 5));
    }
    each.shared.reset();
    has_a_gradient_for_each(make_layer<double>(each, 5));
  }
}

void of_the_same_matrix_twice_is_that_of_one(const Layer& layer) {
  Step two;
  two.router_x = two.x;
  Layer::Tape tape;
  two.run(layer, tape);
  M y(N, 3), dx(N, D);
  auto grads = layer.zero_grads();
  layer.forward(two.x, y, tape);
  layer.backward(two.x, two.dy, tape, dx, grads);
  EXPECT_TRUE(same_bits(y, two.y));
  EXPECT_TRUE(same_grads(layer, grads, two.grads));
  EXPECT_TRUE(matrix_near(dx, two.dx + two.router_dx, 1e-13));
}

TEST(LayerInput, OfTheSameMatrixTwiceIsThatOfOne) {
  for (const MoEConfig& each : configs()) {
    of_the_same_matrix_twice_is_that_of_one(make_layer<double>(each, 6));
  }
}

void is_recomputed_to_the_same_bits(const Layer& layer) {
  Step kept, computed;
  Layer::Tape tape, memory;
  Layer::RecomputingTape recomputing(memory);
  kept.run(layer, tape);
  computed.run(layer, recomputing);
  EXPECT_TRUE(same_bits(computed.y, kept.y));
  EXPECT_TRUE(same_bits(computed.dx, kept.dx));
  EXPECT_TRUE(same_bits(computed.router_dx, kept.router_dx));
  EXPECT_TRUE(same_grads(layer, computed.grads, kept.grads));
}

TEST(LayerInput, IsRecomputedToTheSameBits) {
  for (const MoEConfig& each : configs()) {
    is_recomputed_to_the_same_bits(make_layer<double>(each, 7));
  }
}

void padding_reaches_nothing(const Layer& layer) {
  std::vector<std::uint8_t> padding(N, 0);
  padding[2] = 1;
  Step clean, spoilt;
  spoilt.x.row(2).setConstant(std::nan(""));
  spoilt.router_x.row(2).setConstant(std::nan(""));
  Layer::Tape tape;
  clean.run(layer, tape, {.tokens = {.padding = padding}});
  spoilt.run(layer, tape, {.tokens = {.padding = padding}});
  EXPECT_TRUE(same_bits(spoilt.y, clean.y));
  EXPECT_TRUE(same_bits(spoilt.dx, clean.dx));
  EXPECT_TRUE(same_bits(spoilt.router_dx, clean.router_dx));
  EXPECT_TRUE(same_grads(layer, spoilt.grads, clean.grads));
  EXPECT_EQ(spoilt.router_dx.row(2).cwiseAbs().maxCoeff(), 0.0);
}

TEST(LayerInput, OfPaddingReachesNothing) {
  for (const MoEConfig& each : configs()) {
    padding_reaches_nothing(make_layer<double>(each, 8));
  }
}

TEST(LayerInput, ThatDoesNotFitIsRefusedBeforeAnythingIsWritten) {
  const auto layer = make_layer<double>(config(), 9);
  Step step;
  Layer::Scratch scratch;
  Layer::Tape tape;
  const M short_x = step.x.topRows(N - 1);
  EXPECT_EQ(message_of([&] {
              layer.forward({step.x, short_x}, step.y, scratch);
            }),
            "MoELayer: router_x is (6, 5), expected (7, 5)");
  step.run(layer, tape);
  EXPECT_EQ(message_of([&] {
              layer.backward({step.x, step.router_x}, step.dy, tape, step.dx, step.grads);
            }),
            "MoELayer: there is one gradient of x and router_x, expected one of each");
  EXPECT_EQ(
      message_of([&] {
        layer.backward({step.x, step.router_x}, step.dy, tape, {step.dx, step.dx}, step.grads);
      }),
      "MoELayer: dx overlaps router_dx, expected memory of its own");
  EXPECT_EQ(message_of([&] {
              layer.backward({step.x, step.router_x}, step.dy, tape, {step.dx, step.router_x},
                             step.grads);
            }),
            "MoELayer: dx overlaps x or dy, expected memory of its own");
}

}  // namespace
}  // namespace moe::layer_input_test
