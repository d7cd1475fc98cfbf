// SPDX-License-Identifier: Apache-2.0
// The L1 loss of ReLU routing and its coefficient: by hand, against differences, in a training.
#include "moe/losses/sparsity.hpp"

#include <gtest/gtest.h>

#include "../support/finite_difference.hpp"
#include "../support/throws.hpp"
#include "moe/routing/linear_router.hpp"
#include "moe/routing/relu_routing.hpp"
#include "tables.hpp"

namespace moe::sparsity_test {
namespace {

using testing::Loss;
using testing::message_of;
using testing::Table;
using testing::tiny_table;

TEST(Sparsity, IsThePartOfPairsThatAreNotChosen) {
  Table table = tiny_table();
  EXPECT_NEAR(sparsity(table), 1.0 - 5.0 / 9.0, 1e-15);
  table.padding = {0, 0, 1};
  EXPECT_NEAR(sparsity(table), 1.0 - 4.0 / 6.0, 1e-15);
  table.padding = {1, 1, 1};
  EXPECT_EQ(sparsity(table), 1.0);
}

TEST(BalancedL1Loss, IsThatOfThePaper) {
  const Table table = tiny_table();
  // Experts 0, 1, 2 have 2, 1, 2 tokens; f = E / (k N) * those = 1.5 / 3 * those.
  const Loss loss = balanced_l1_loss(table, 2.0);
  const double sums[] = {0.5 + 0.6 + 0.2, 0.3 + 0.1 + 0.2, 0.2 + 0.3 + 0.6};
  EXPECT_NEAR(loss.value, (1.0 * sums[0] + 0.5 * sums[1] + 1.0 * sums[2]) / 3.0, 1e-15);
  EXPECT_NEAR(loss.gradient.probs(1, 1), 0.5 / 3.0, 1e-15);
}

TEST(BalancedL1Loss, OfABalancedTableIsTheMeanL1Norm) {
  const Table table = testing::balanced_table(6, 2);
  EXPECT_NEAR(balanced_l1_loss(table, 2.0).value, 1.0, 1e-14);
}

TEST(BalancedL1Loss, LeavesOutPaddingAndWhatTheMaskLeavesOut) {
  Table table = tiny_table();
  table.padding = {0, 1, 0};
  const std::vector<std::uint8_t> mask = {1, 0, 1};
  const Loss masked = balanced_l1_loss(tiny_table(), 2.0, mask),
             padded = balanced_l1_loss(table, 2.0);
  EXPECT_EQ(masked.value, padded.value);
  EXPECT_EQ(masked.gradient.probs, padded.gradient.probs);
  EXPECT_TRUE(padded.gradient.probs.row(1).isZero(0));
  table.padding = {1, 1, 1};
  EXPECT_EQ(balanced_l1_loss(table, 2.0).value, 0.0);
  Table empty;
  empty.probs.resize(0, 3);
  EXPECT_EQ(balanced_l1_loss(empty, 2.0).value, 0.0);
}

TEST(BalancedL1Loss, MatchesCentralDifferencesWithTheChoicesHeldFixed) {
  Table table = tiny_table();
  const auto f = [&] { return balanced_l1_loss(table, 1.3).value; };
  EXPECT_LT(testing::gradient_error(f, table.probs, balanced_l1_loss(table, 1.3).gradient.probs),
            1e-9);
}

TEST(SparsityControl, RaisesTheLossUntilAReluRouterHasFewEnoughExperts) {
  constexpr Index N = 64, D = 8, E = 16;
  LinearRouter<double, ReluRouting<double>> router =
      linear_router<double>(D, E, ReluRouting<double>(E), 1, {.bias = true});
  SparsityControl control(E, 2.0, 1e-3);
  const Matrix<double> x = testing::random_matrix<double>(N, D, 5);
  Matrix<double> dx(N, D);
  LinearRouter<double, ReluRouting<double>>::Table table;
  router.route(x, {}, table);
  EXPECT_LT(sparsity(table), 0.6);
  for (int step = 0; step < 100 && sparsity(table) < control.target(); ++step) {
    Loss loss = control.coefficient() * balanced_l1_loss(table, 2.0);
    auto grads = zeros_like(router.params());
    router.backward(x, table, loss.gradient, dx, grads);
    router.params().weight -= 0.1 * grads.weight;
    router.params().bias -= 0.1 * grads.bias;
    control.update(sparsity(table));
    router.route(x, {}, table);
  }
  EXPECT_GE(sparsity(table), control.target());
}

TEST(SparsityControl, GrowsAndShrinksByItsFactor) {
  SparsityControl control(8, 2.0);
  EXPECT_EQ(control.target(), 0.75);
  control.update(0.5);
  EXPECT_DOUBLE_EQ(control.coefficient(), 1.2e-8);
  control.update(0.75);
  control.update(std::nan(""));
  EXPECT_DOUBLE_EQ(control.coefficient(), 1.2e-8);
  control.update(0.9);
  EXPECT_DOUBLE_EQ(control.coefficient(), 1e-8);
}

TEST(SparsityControl, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { SparsityControl(8, 9.0); }),
            "SparsityControl: experts_per_token = 9, expected in (0, num_experts = 8]");
  EXPECT_EQ(message_of([] { SparsityControl(8, 2.0, 0.0); }),
            "SparsityControl: coefficient = 0, expected positive and finite");
  EXPECT_EQ(message_of([] { SparsityControl(8, 2.0, 1.0, 1.0); }),
            "SparsityControl: factor = 1, expected above 1 and finite");
  EXPECT_EQ(message_of([] { balanced_l1_loss(tiny_table(), 0.0); }),
            "balanced_l1_loss: experts_per_token = 0, expected in (0, num_experts = 3]");
}

}  // namespace
}  // namespace moe::sparsity_test
