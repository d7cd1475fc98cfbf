// SPDX-License-Identifier: Apache-2.0
// What a Soft MoE costs by its config, against a layer that counts what it does.
#include "moe/cost/soft_moe_cost.hpp"

#include <gtest/gtest.h>

#include "../support/counting_scalar.hpp"
#include "../support/random_matrix.hpp"
#include "moe/layers/soft_moe.hpp"

namespace moe::soft_moe_cost_test {
namespace {

using testing::count_flops;
using testing::Counting;
using testing::random_matrix;

const SoftMoEConfig config{
    .d_model = 5, .d_ff = 3, .num_experts = 4, .slots = 2, .d_out = 6, .expert = {.bias = true}};

TEST(SoftMoEFlops, AreThoseThatALayerPerforms) {
  const SoftMoELayer<Counting> layer(config, 1);
  for (const Index length : {0, 1, 3}) {
    const Index sequences = length == 0 ? 1 : 12 / length;
    const auto x = random_matrix<Counting>(12, 5, 2), dy = random_matrix<Counting>(12, 6, 3);
    Matrix<Counting> y(12, 6), dx(12, 5);
    SoftMoELayer<Counting>::Scratch scratch;
    SoftMoELayer<Counting>::Tape tape;
    auto grads = layer.zero_grads();
    const CallOptions call{.num_threads = 1, .tokens = {.sequence_length = length}};
    const Work work = predicted_work(config, 12, sequences);
    EXPECT_EQ(forward_flops(config, work).total(),
              count_flops([&] { layer.forward(x, y, scratch, call); }));
    EXPECT_EQ(forward_flops(config, work).total(),
              count_flops([&] { layer.forward(x, y, tape, call); }));
    EXPECT_EQ(backward_flops(config, work).total(),
              count_flops([&] { layer.backward(x, dy, tape, dx, grads); }));
  }
}

TEST(SoftMoEFlops, OfTheExpertsDoNotGrowWithTheTokens) {
  const LayerFlops few = forward_flops(config, predicted_work(config, 10));
  const LayerFlops many = forward_flops(config, predicted_work(config, 1000));
  EXPECT_EQ(few.experts.total(), many.experts.total());
  EXPECT_EQ(100 * few.combine.matmul, many.combine.matmul);
  EXPECT_EQ(few.combine.matmul, 2 * 10 * 8 * (5 + 6));
}

TEST(SoftMoEParameters, AreThoseThatALayerHas) {
  const ParameterCount count = parameters(config);
  EXPECT_EQ(count.total, parameters(SoftMoELayer<float>(config, 1)));
  EXPECT_EQ(count.router, 8 * 5 + 1);
  EXPECT_EQ(count.active, count.total);
  EXPECT_THROW(parameters(SoftMoEConfig{}), std::invalid_argument);
}

TEST(SoftMoEBytes, AreThoseOfTheWeightsTheSlotsAndTheSoftmaxes) {
  const LayerBytes bytes = forward_bytes(config, predicted_work(config, 10, 2), 4);
  EXPECT_EQ(bytes.weights, 4.0 * static_cast<double>(parameters(config).total));
  EXPECT_EQ(bytes.activations, 4.0 * (10 * (5 + 6 + 6 * 8) + 2 * 8 * 2 * (5 + 6)));
}

}  // namespace
}  // namespace moe::soft_moe_cost_test
