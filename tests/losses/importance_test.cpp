// SPDX-License-Identifier: Apache-2.0
// The importance loss by hand on a tiny table, and at its balanced and its worst value.
#include "moe/losses/importance.hpp"

#include <gtest/gtest.h>

#include "tables.hpp"

namespace moe::importance_test {
namespace {

using testing::balanced_table;
using testing::Table;
using testing::tiny_table;

TEST(ImportanceLoss, IsTheSquaredVariationOfSummedWeights) {
  // importance = (1.3, 0.4, 1.3): mean 1, sample variance (0.09 + 0.36 + 0.09) / 2
  EXPECT_NEAR(importance_loss(tiny_table()).value, 0.27, 1e-15);
}

TEST(ImportanceLoss, IsZeroWhenBalanced) {
  for (const Index top_k : {1, 2, 4}) {
    EXPECT_NEAR(importance_loss(balanced_table(4, top_k)).value, 0.0, 1e-15);
  }
}

TEST(ImportanceLoss, GrowsToTheNumberOfExpertsWhenOneTakesAll) {
  Table table = balanced_table(4, 1);
  table.expert.setZero();
  EXPECT_NEAR(importance_loss(table).value, 4.0, 1e-14);
}

TEST(ImportanceLoss, IsNotLostInTheRoundingOfManyTokens) {
  constexpr Index tokens = (Index{1} << 14) + 2;
  RoutingTable<float> table;
  table.expert.setZero(tokens, 1);
  table.weight.setOnes(tokens, 1);
  table.probs.setZero(tokens, 2);
  table.weight(0, 0) = 0x1p24F;  // as if of the first 2^24 tokens: a float counts no further by 1
  table.expert(tokens - 1, 0) = 1;
  table.weight(tokens - 1, 0) = 0x1p23F;
  const RoutingLoss<float> loss = importance_loss(table);
  const double first = 0x1p24 + 0x1p14, second = 0x1p23, mean = (first + second) / 2;
  EXPECT_FLOAT_EQ(loss.value,
                  static_cast<float>((first - second) * (first - second) / 2 / (mean * mean)));
  // The derivative of 2 (a - b)^2 / (a + b)^2 by a.
  const double sum = first + second;
  EXPECT_FLOAT_EQ(loss.gradient.weight(1, 0),
                  static_cast<float>(8 * second * (first - second) / (sum * sum * sum)));
}

}  // namespace
}  // namespace moe::importance_test
