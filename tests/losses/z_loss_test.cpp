// SPDX-License-Identifier: Apache-2.0
// The z loss by hand on a tiny table.
#include "moe/losses/z_loss.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "tables.hpp"

namespace moe::z_loss_test {
namespace {

using testing::balanced_table;
using testing::tiny_table;

TEST(ZLoss, IsTheMeanSquareOfTheLogSumExp) {
  const double a = std::log(3.0), b = std::log(4.0), c = 1.0 + std::log(3.0);
  EXPECT_NEAR(z_loss(tiny_table()).value, (a * a + b * b + c * c) / 3, 1e-15);
}

TEST(ZLoss, DoesNotDependOnTheChoices) {
  for (const Index top_k : {1, 2, 4}) {
    EXPECT_NEAR(z_loss(balanced_table(4, top_k)).value, std::pow(std::log(4.0) + 0.75, 2), 1e-14);
  }
}

TEST(ZLoss, IsNotLostInTheRoundingOfManyTokens) {
  constexpr Index tokens = (Index{1} << 14) + 1;
  RoutingTable<float> table;
  table.expert.setZero(tokens, 1);
  table.logits.setOnes(tokens, 1);
  table.logits(0, 0) = 0x1p12F;  // its square is that of 2^24 others
  EXPECT_FLOAT_EQ(z_loss(table).value, static_cast<float>((0x1p24 + 0x1p14) / tokens));
}

}  // namespace
}  // namespace moe::z_loss_test
