// SPDX-License-Identifier: Apache-2.0
// What a call has to do, predicted and as planned, and the bytes that it moves.
#include <gtest/gtest.h>

#include "../support/laid_rows.hpp"
#include "moe/cost/cost.hpp"

namespace moe::cost_work_test {
namespace {

TEST(Work, PredictsDistinctExpertsUnderUniformRouting) {
  const MoEConfig config{.d_model = 1, .d_ff = 1, .num_experts = 128, .top_k = 8};
  EXPECT_EQ(predicted_work(config, 0).distinct_experts, 0.0);
  EXPECT_DOUBLE_EQ(predicted_work(config, 1).distinct_experts, 8.0);
  EXPECT_NEAR(predicted_work(config, 16).distinct_experts, 82.4, 0.05);
  EXPECT_NEAR(predicted_work(config, 10000).distinct_experts, 128.0, 1e-9);
  EXPECT_EQ(predicted_work(config, 16).rows, 128);
  EXPECT_EQ(predicted_work(config, 16).tokens, 16);
}

TEST(Work, IsReadFromAPlan) {
  RoutingTable<float> table;
  table.expert.resize(3, 2);
  table.expert << 0, 2, 2, none, 2, 0;
  table.weight.setOnes(3, 2);
  const testing::LaidRows laid(table, 4, {.rows = 2});
  const Work work = executed_work(laid.plan);
  EXPECT_EQ(work.tokens, 3);
  EXPECT_EQ(work.rows, 4) << "five choices, one over capacity";
  EXPECT_EQ(work.distinct_experts, 2.0);
}

TEST(Bytes, AreThoseOfTheDistinctExpertsAndTheRows) {
  const MoEConfig config{.d_model = 8,
                         .d_ff = 16,
                         .num_experts = 4,
                         .top_k = 2,
                         .d_out = 6,
                         .shared = SharedExpertConfig{.d_ff = 10}};
  const LayerBytes bytes = forward_bytes(config, {3, 6, 2.5}, 4);
  const double expert = 16 * 8 * 2 + 6 * 16, shared = 10 * 8 * 2 + 6 * 10, router = 4 * 8;
  EXPECT_DOUBLE_EQ(bytes.weights, 4.0 * (router + shared + 2.5 * expert));
  // x and y of 3 tokens; of 6 rows the input is read, the output written and read.
  EXPECT_DOUBLE_EQ(bytes.activations, 4.0 * (3 * (8 + 6) + 6 * (8 + 2 * 6)));
  EXPECT_DOUBLE_EQ(bytes.total(), bytes.weights + bytes.activations);
  EXPECT_DOUBLE_EQ(forward_bytes(config, {3, 6, 2.5}, 2).total(), bytes.total() / 2.0);
}

// What goes into the experts, their sum and, if there is one, that behind its norm.
TEST(Bytes, OfLatentExpertsAreThoseOfNarrowRowsAndOfWhatStandsAroundThem) {
  MoEConfig config{.d_model = 8, .d_ff = 16, .num_experts = 4, .top_k = 2};
  for (const bool norm : {false, true}) {
    config.latent = LatentConfig{.width = 3, .norm = norm};
    const LayerBytes bytes = forward_bytes(config, {5, 10, 2.0}, 4);
    const double latent = 2 * 3 * 8 + (norm ? 3 : 0);
    EXPECT_DOUBLE_EQ(bytes.weights, 4.0 * (4 * 8 + latent + 2.0 * 3 * 16 * 3));
    EXPECT_DOUBLE_EQ(bytes.activations,
                     4.0 * (5 * 2 * 8 + 10 * (3 + 2 * 3) + 5 * (norm ? 6 : 4) * 3));
  }
}

}  // namespace
}  // namespace moe::cost_work_test
