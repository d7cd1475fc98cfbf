// SPDX-License-Identifier: Apache-2.0
// A dense feed-forward's bytes by hand and against what its tape allocates, and the dense ones that
// a layer is compared with, against a search.
#include "moe/cost/dense_cost.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/random_matrix.hpp"
#include "moe/cost/part_cost.hpp"
#include "moe/experts/dense_ffn.hpp"

namespace moe::dense_cost_test {
namespace {

TEST(DenseCost, HasTheBytesOfItsWeightsAndItsRows) {
  const FfnShape dense{10, 6, 4, {.bias = true}};
  const LayerBytes bytes = forward_bytes(dense, 3, 4);
  EXPECT_EQ(bytes.weights, 4 * (2 * (6 * 10 + 6) + 4 * 6 + 4));
  EXPECT_EQ(bytes.activations, 4 * 3 * (10 + 4));
  const DenseFfn<float> made({10, 6, 4}, dense.kind, 1);
  EXPECT_EQ(bytes.weights, 4.0 * static_cast<double>(parameters(made)));
}

TEST(DenseCost, HasATapeOfGateUpAndHiddenWithTheirGradients) {
  EXPECT_EQ(tape_bytes(FfnShape{10, 6, 4, {}}, 3, 8).rows, 8 * 3 * 5 * 6);
  EXPECT_EQ(tape_bytes(FfnShape{10, 6, 4, {}}, 3, 8).routing, 0);
  const FfnShape plain{10, 6, 4, {.gated = false, .output_gate = true}};
  EXPECT_EQ(tape_bytes(plain, 3, 8).total(), 8 * 3 * (3 * 6 + 2 * 4 + 2));
}

#if MOE_COUNTS_ALLOCATIONS
// Rows of 80 floats are not padded.
TEST(DenseCost, HasTheTapeThatADenseLayerAllocates) {
  for (const bool gated : {false, true}) {
    for (const bool output_gate : {false, true}) {
      const DenseFfn<float> ffn({48, 80, 48}, {.gated = gated, .output_gate = output_gate}, 1);
      const Matrix<float> x = testing::random_matrix<float>(500, 48, 2);
      Matrix<float> y(500, 48), dx(500, 48);
      auto grads = ffn.zero_grads();
      DenseFfn<float>::Tape tape;
      const std::size_t all = testing::count_bytes([&] {
        ffn.forward(x, y, tape, {.num_threads = 1});
        ffn.backward(x, y, tape, dx, grads);
      });
      const double expected = tape_bytes(ffn.expert().shape(), 500, sizeof(float)).total();
      const double packing = kernels::GemmMemory<float>::most_bytes;
      EXPECT_NEAR((static_cast<double>(all) - packing) / expected, 1.0, 0.03)
          << gated << output_gate;
    }
  }
}
#endif

const MoEConfig layers[] = {
    {.d_model = 64, .d_ff = 32, .num_experts = 32, .top_k = 2},
    {.d_model = 10, .d_ff = 7, .num_experts = 3, .top_k = 1, .expert = {.gated = false}},
    {.d_model = 16,
     .d_ff = 24,
     .num_experts = 4,
     .top_k = 2,
     .expert = {.bias = true},
     .shared = SharedExpertConfig{.d_ff = 40}}};

template <class Amount>
void expect_narrowest(const FfnShape& found, double wanted, const Amount& amount) {
  EXPECT_GE(amount(found), wanted);
  FfnShape narrower = found;
  --narrower.d_ff;
  EXPECT_TRUE(narrower.d_ff < 1 || amount(narrower) < wanted) << found.d_ff;
}

TEST(DenseOfEqualFlops, IsTheNarrowestThatComputesAsMuchForAToken) {
  for (const MoEConfig& layer : layers) {
    expect_narrowest(dense_of_equal_flops(layer),
                     forward_flops(layer, predicted_work(layer, 1)).total(),
                     [](const FfnShape& shape) { return shape.forward_flops(1).total(); });
  }
  EXPECT_EQ(dense_of_equal_flops(layers[0]).d_ff, 76);
}

TEST(DenseOfEqualParameters, IsTheNarrowestThatHasAsMany) {
  for (const MoEConfig& layer : layers) {
    expect_narrowest(dense_of_equal_parameters(layer), static_cast<double>(parameters(layer).total),
                     [](const FfnShape& shape) { return static_cast<double>(shape.parameters()); });
  }
}

TEST(DenseOfEqualFlops, RefusesALayerThatThereIsNot) {
  EXPECT_THROW(dense_of_equal_flops({.d_model = 8, .d_ff = 8, .num_experts = 2, .top_k = 3}),
               std::invalid_argument);
}

}  // namespace
}  // namespace moe::dense_cost_test
