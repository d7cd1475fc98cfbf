// SPDX-License-Identifier: Apache-2.0
// The balancing losses by hand on a tiny table, and at their balanced and their worst value.
#include "moe/losses/balance.hpp"

#include <gtest/gtest.h>

#include "tables.hpp"

namespace moe {
namespace {

using testing::balanced_table;
using testing::Table;
using testing::tiny_table;

TEST(LoadBalancingLoss, IsExpertsTimesSumOfFractionTimesMeanProbability) {
  // f = (2, 1, 2) / 6 (an unused choice counts for nobody), P = (1.3, 0.6, 1.1) / 3
  const double sum = (2 * 1.3 + 1 * 0.6 + 2 * 1.1) / 6 / 3;
  EXPECT_NEAR(load_balancing_loss(tiny_table()).value, 3 * sum, 1e-15);
  EXPECT_NEAR(hugging_face_load_balancing_loss(tiny_table()).value, 2 * 3 * sum, 1e-15);
}

TEST(GShardLoss, CountsFirstChoicesOnly) {
  EXPECT_NEAR(gshard_loss(tiny_table()).value, (2.0 / 3 * 1.3 / 3 + 1.0 / 3 * 1.1 / 3) / 3, 1e-15);
}

TEST(LoadBalancingLoss, HasItsKnownValueWhenBalanced) {
  for (const Index top_k : {1, 2, 4}) {
    const Table table = balanced_table(4, top_k);
    EXPECT_NEAR(load_balancing_loss(table).value, 1.0, 1e-15);
    EXPECT_NEAR(hugging_face_load_balancing_loss(table).value, static_cast<double>(top_k), 1e-14);
    EXPECT_NEAR(gshard_loss(table).value, 1.0 / 16, 1e-15);
  }
}

TEST(LoadBalancingLoss, GrowsToTheNumberOfExpertsWhenOneTakesAll) {
  Table table = balanced_table(4, 1);
  table.expert.setZero();
  table.probs.setZero();
  table.probs.col(0).setOnes();
  EXPECT_NEAR(load_balancing_loss(table).value, 4.0, 1e-14);
}

TEST(LoadBalancingLoss, IsNotLostInTheRoundingOfManyTokensAndExperts) {
  RoutingTable<float> table;
  table.expert.setZero(4096, 1);
  table.probs.setConstant(4096, 4096, 1.0f / 4096);  // each of 2^24 terms is 2^-24
  EXPECT_EQ(load_balancing_loss(table).value, 1.0f);
}

TEST(LoadBalancingLoss, CountsChoicesBeyondWhatAFloatCounts) {
  constexpr Index tokens = Index{1} << 13, top_k = 2560;  // 1.25 * 2^24 choices, all of one expert
  RoutingTable<float> table;
  table.expert.setZero(tokens, top_k);
  table.probs.setOnes(tokens, 1);
  EXPECT_FLOAT_EQ(load_balancing_loss(table).value, 1.0f);
  EXPECT_FLOAT_EQ(load_balancing_loss(table).gradient.probs(0, 0), 1.0f / tokens);
}

}  // namespace
}  // namespace moe
