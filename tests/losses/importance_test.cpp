// SPDX-License-Identifier: Apache-2.0
// The importance loss by hand on a tiny table, and at its balanced and its worst value.
#include "moe/losses/importance.hpp"

#include <gtest/gtest.h>

#include "tables.hpp"

namespace moe {
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

}  // namespace
}  // namespace moe
