// SPDX-License-Identifier: Apache-2.0
// The predicted bytes of a tape, by hand and against what a tape allocates.
#include "moe/cost/tape_bytes.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/random_matrix.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::tape_bytes_test {
namespace {

TEST(TapeBytes, AreThoseOfTheRowsAndTheRoutingTable) {
  const MoEConfig config{.d_model = 10, .d_ff = 6, .num_experts = 4, .top_k = 2};
  const TapeBytes bytes = tape_bytes(config, predicted_work(config, 3), 8);
  // 6 choices: a weight and an expert each; 3 tokens: probs and logits; 6 rows with three integers
  // each, and one for each token.
  EXPECT_EQ(bytes.routing, 8 * (6 + 3 * 2 * 4) + 6 * 4 + (3 * 6 + 3) * 8);
  // Of each row x and y, gate, up and hidden: all but hidden with gradients; and its weight.
  EXPECT_EQ(bytes.rows, 8 * (6 * (2 * (10 + 10) + (2 * 2 + 1) * 6 + 1) + 6 + 3 * 2 * 4));
  EXPECT_EQ(bytes.total(), bytes.routing + bytes.rows);
}

TEST(TapeBytes, OfMoreTokensThanABatchHasAreThoseOfATokenTimesItsTokens) {
  const MoEConfig config{.d_model = 7168, .d_ff = 2048, .num_experts = 256, .top_k = 64};
  const TapeBytes one = tape_bytes(config, predicted_work(config, 1), 4);
  const TapeBytes all = tape_bytes(config, predicted_work(config, 14'800'000'000'000), 4);
  EXPECT_NEAR(all.rows / (14.8e12 * one.rows), 1.0, 1e-12);
  EXPECT_NEAR(all.routing / (14.8e12 * one.routing), 1.0, 1e-12);
}

#if MOE_COUNTS_ALLOCATIONS
/// Bytes that a tape takes in its first step, and those of a second layer's recomputing tape.
TapeBytes allocated_tape_bytes(const MoEConfig& config, Index num_tokens) {
  using Layer = MoELayer<float>;
  const Layer layer(config, 1), next(config, 2);
  const auto x = testing::random_matrix<float>(num_tokens, layer.d_in(), 3);
  Matrix<float> y(num_tokens, layer.d_out()), dx(num_tokens, layer.d_in());
  auto grads = layer.zero_grads();
  Layer::Tape memory;
  Layer::RecomputingTape tape(memory), second(memory);
  const CallOptions one_thread{.num_threads = 1};
  const std::size_t all = testing::count_bytes([&] {
    layer.forward(x, y, tape, one_thread);
    layer.backward(x, y, tape, dx, grads);
  });
  const std::size_t kept = testing::count_bytes([&] { next.forward(x, y, second, one_thread); });
  return {static_cast<double>(kept), static_cast<double>(all - kept)};
}

// Rows of 48 and 80 floats are not padded.
TEST(TapeBytes, AreThoseThatATapeAllocates) {
  for (int bits = 0; bits < 16; ++bits) {
    MoEConfig config{.d_model = 48, .d_ff = 80, .num_experts = 6, .top_k = 2};
    config.expert = {.gated = (bits & 1) != 0, .output_gate = (bits & 2) != 0};
    if ((bits & 4) != 0) {
      config.shared = SharedExpertConfig{.d_ff = 112, .output_gate = true};
    }
    if ((bits & 8) != 0) {
      config.output_norm = OutputNormConfig{};
    }
    const TapeBytes expected = tape_bytes(config, predicted_work(config, 500), sizeof(float));
    const TapeBytes bytes = allocated_tape_bytes(config, 500);
    EXPECT_NEAR((bytes.routing - 65536) / expected.routing, 1.0, 0.02) << bits;
    const double packing = (config.shared ? 2.0 : 1.0) * kernels::GemmMemory<float>::most_bytes;
    EXPECT_NEAR((bytes.rows - packing) / expected.rows, 1.0, 0.02) << bits;
  }
}
#endif

}  // namespace
}  // namespace moe::tape_bytes_test
