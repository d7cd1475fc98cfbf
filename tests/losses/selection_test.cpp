// SPDX-License-Identifier: Apache-2.0
// The loss of what was chosen: by hand, its gradient, and what does not count.
#include "moe/losses/selection.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "tables.hpp"

namespace moe::selection_test {
namespace {

using testing::tiny_table;

TEST(SelectionLoss, IsTheMeanCrossEntropyOfSigmoidsAgainstTheChoices) {
  const auto of = [](double logit, bool chosen) {
    const double p = 1.0 / (1.0 + std::exp(-logit));
    return -std::log(chosen ? p : 1.0 - p);
  };
  const double first = 3.0 * of(0, true);
  const double second = of(std::log(2.0), true) + 2.0 * of(0, true);
  const double third = 2.0 * of(1, false) + of(1, true);
  EXPECT_NEAR(selection_loss(tiny_table()).value, (first + second + third) / 3.0, 1e-15);
}

TEST(SelectionLoss, HasTheGradientOfCentralDifferences) {
  auto table = testing::random_table(6);
  const auto loss = selection_loss(table);
  const auto f = [&] { return selection_loss(table).value; };
  EXPECT_LT(testing::gradient_error(f, table.logits, loss.gradient.logits), 1e-7);
}

TEST(SelectionLoss, IsFiniteForLogitsOfAnySizeAndNaNForANaN) {
  RoutingTable<float> table;
  table.expert.setConstant(2, 1, 0);
  table.expert(1, 0) = none;
  table.logits.resize(2, 1);
  for (const float logit : {3e38F, -3e38F, 200.0F}) {
    table.logits.setConstant(logit);
    const auto loss = selection_loss(table);
    EXPECT_FLOAT_EQ(loss.value, 0.5F * std::abs(logit));
    EXPECT_TRUE(loss.gradient.logits.allFinite());
  }
  table.logits.setConstant(std::nanf(""));
  EXPECT_TRUE(std::isnan(selection_loss(table).value));
}

TEST(SelectionLoss, LeavesOutPaddingMaskedTokensAndMaskedExperts) {
  auto table = tiny_table();
  const auto first = selection_loss(table, std::vector<std::uint8_t>{1, 0, 0});
  table.padding = {0, 1, 1};
  const auto padded = selection_loss(table);
  EXPECT_EQ(padded.value, first.value);
  EXPECT_TRUE(padded.gradient.logits.bottomRows(2).isZero(0));
  table.logits(0, 2) = -HUGE_VAL;
  const auto masked = selection_loss(table);
  EXPECT_NEAR(masked.value, first.value * 2.0 / 3.0, 1e-15);
  EXPECT_EQ(masked.gradient.logits(0, 2), 0.0);
}

}  // namespace
}  // namespace moe::selection_test
