// SPDX-License-Identifier: Apache-2.0
// What Mixture-of-Depths states that it costs, against a layer that counts what it does.
#include "moe/cost/depth_cost.hpp"

#include <gtest/gtest.h>

#include "../support/counting_scalar.hpp"
#include "../support/depth_layers.hpp"

namespace moe::depth_cost_test {
namespace {

using testing::count_flops;
using testing::Counting;
using testing::random_matrix;

constexpr Index N = 12, D = 5;

DepthLayer<Counting> make_layer(bool predicted) {
  const TopTokensConfig config{.capacity = 0.25};
  std::optional<DepthLayer<Counting>::Predictor> predictor;
  if (predicted) {
    predictor.emplace(depth_predictor<Counting>(D, 3, config, 3));
  }
  return {linear_router<Counting>(D, 1, TopTokens<Counting>(config), 1),
          DenseFfn<Counting>({D, 7, D}, {}, 2), std::move(predictor)};
}

TEST(DepthFlops, AreThoseThatALayerPerforms) {
  for (const bool predicted : {false, true}) {
    const DepthLayer<Counting> layer = make_layer(predicted);
    for (const Index length : {12, 4}) {
      const auto x = random_matrix<Counting>(N, D, 4), dy = random_matrix<Counting>(N, D, 5);
      Matrix<Counting> y(N, D), dx(N, D);
      DepthLayer<Counting>::Scratch scratch;
      DepthLayer<Counting>::Tape tape;
      auto grads = layer.zero_grads();
      const CallOptions call{.num_threads = 1, .tokens = {.sequence_length = length}};
      const Flops inference = layer.forward_flops(N, 3);
      EXPECT_EQ(inference.total(), count_flops([&] { layer.forward(x, y, scratch, call); }));
      const Flops asked = predicted ? layer.predictor()->forward_flops(N) : Flops{};
      EXPECT_EQ((inference + asked).total(), count_flops([&] { layer.forward(x, y, tape, call); }));
      EXPECT_EQ(tape.taken.count(), 3);
      EXPECT_EQ(layer.backward_flops(N, 3).total(),
                count_flops([&] { layer.backward(x, dy, tape, dx, grads); }));
    }
  }
}

TEST(DepthFlops, OfTheBlockAreThoseOfTheTakenTokens) {
  const DepthLayer<Counting> layer = make_layer(false);
  const double products = 2.0 * 3 * D * 7;
  EXPECT_EQ(layer.forward_flops(N, 3).matmul - layer.forward_flops(N, 2).matmul, products);
  EXPECT_EQ(layer.forward_flops(N, 0).matmul, 2.0 * N * D);
}

TEST(DepthParameters, AreThoseOfRouterBlockAndPredictor) {
  const auto layer = make_layer(true);
  EXPECT_EQ(parameters(layer), D + 3 * D * 7 + 3 * D + 3 + 3 + 1);
}

TEST(DepthBytes, AreThoseOfTheWeightsTheTokensAndTheTakenOnes) {
  const auto layer = make_layer(false);
  const LayerBytes bytes = forward_bytes(layer, N, 3, 4);
  EXPECT_EQ(bytes.weights, 4 * (D + 3 * D * 7));
  EXPECT_EQ(bytes.activations, 4 * (2 * N * D + 4 * 3 * D));
  EXPECT_EQ(forward_bytes(layer, N, 0, 4).total(), 4 * (D + 2 * N * D));
}

}  // namespace
}  // namespace moe::depth_cost_test
