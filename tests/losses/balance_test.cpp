// SPDX-License-Identifier: Apache-2.0
// The balancing losses by hand on a tiny table, at their balanced and their worst value, and of
// scores that do not sum to 1.
#include "moe/losses/balance.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "moe/routing/router.hpp"
#include "tables.hpp"

namespace moe::balance_test {
namespace {

using testing::balanced_table;
using testing::Loss;
using testing::Table;
using testing::tiny_table;

TEST(LoadBalancingLoss, IsExpertsTimesSumOfFractionTimesMeanProbability) {
  // f = (2, 1, 2) / 6 (an unused choice counts for nobody), P = (1.3, 0.6, 1.1) / 3
  const double sum = (2 * 1.3 + 1 * 0.6 + 2 * 1.1) / 6 / 3;
  EXPECT_NEAR(load_balancing_loss(tiny_table()).value, 3 * sum, 1e-15);
  EXPECT_NEAR(hugging_face_load_balancing_loss(tiny_table()).value, 2 * 3 * sum, 1e-15);
}

TEST(GroupBalancingLoss, IsTheLoadBalancingLossOfGroups) {
  EXPECT_EQ(group_balancing_loss(tiny_table(), 3).value, load_balancing_loss(tiny_table()).value);
  const Loss one = group_balancing_loss(tiny_table(), 1);
  EXPECT_NEAR(one.value, 5.0 / 6.0, 1e-15);  // f = 5 of 6 choices are used, P = 1
  Table groups = balanced_table(6, 2), pairs = groups;
  EXPECT_NEAR(group_balancing_loss(groups, 3).value, 1.0, 1e-15);
  groups.probs.row(1) << 0.5, 0.1, 0.1, 0.1, 0.15, 0.05;
  groups.expert(2, 0) = 5;
  pairs.expert = groups.expert.unaryExpr([](ExpertId e) { return static_cast<ExpertId>(e / 2); });
  pairs.probs.resize(groups.probs.rows(), 3);
  for (Index g = 0; g < 3; ++g) {
    pairs.probs.col(g) = groups.probs.col(2 * g) + groups.probs.col(2 * g + 1);
  }
  const Loss got = group_balancing_loss(groups, 3), want = load_balancing_loss(pairs);
  EXPECT_NEAR(got.value, want.value, 1e-14);
  EXPECT_NEAR(got.gradient.probs(0, 5), want.gradient.probs(0, 2), 1e-14);
  EXPECT_THROW(group_balancing_loss(groups, 4), std::invalid_argument);
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

TEST(LoadBalancingLoss, IsNotLostInTheRoundingOfManyTokens) {
  constexpr Index tokens = (Index{1} << 14) + 1;
  RoutingTable<float> table;
  table.expert.setZero(tokens, 1);
  table.probs.setOnes(tokens, 1);
  table.probs(0, 0) = 0x1p24F;  // as if of the first 2^24 tokens
  const auto want = static_cast<float>((0x1p24 + 0x1p14) / tokens);
  EXPECT_FLOAT_EQ(load_balancing_loss(table).value, want);
  EXPECT_FLOAT_EQ(hugging_face_load_balancing_loss(table).value, want);
  EXPECT_FLOAT_EQ(gshard_loss(table).value, want);
}

TEST(LoadBalancingLoss, CountsChoicesBeyondWhatAFloatCounts) {
  constexpr Index tokens = Index{1} << 13, top_k = 2560;  // 1.25 * 2^24 choices, all of one expert
  RoutingTable<float> table;
  table.expert.setZero(tokens, top_k);
  table.probs.setOnes(tokens, 1);
  const auto loss = load_balancing_loss(table);
  EXPECT_FLOAT_EQ(loss.value, 1.0f);
  EXPECT_FLOAT_EQ(loss.gradient.probs(0, 0), 1.0f / tokens);
}

/// Token t of four scores 2 at expert t and 0 elsewhere, and `shift` more at all of them.
struct Shifted {
  explicit Shifted(Score score, double shift)
      : router(
            {{2.0 * Matrix<double>::Identity(4, 4), Matrix<double>::Constant(1, 4, shift), {}}, {}},
            1, {.logits = {.bias = true}, .score = score}) {
    router.route(x, {.num_threads = 1}, table);
  }

  /// The derivative of a loss by the shift.
  double pull(Loss loss) const {
    Matrix<double> dx(4, 4);
    auto grads = zeros_like(router.params());
    router.backward(x, table, loss.gradient, dx, grads);
    return grads.bias.sum();
  }

  Matrix<double> x = Matrix<double>::Identity(4, 4);
  Router<double> router;
  Router<double>::Table table;
};

TEST(LoadBalancingLoss, IsOneWhenBalancedAndDrawsNoLogitsDownWhateverTheScore) {
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    for (const double shift : {0.0, 3.0, -10.0, -30.0, -60.0, -600.0}) {
      const Shifted balanced(score, shift);
      EXPECT_EQ(balanced.table.expert, (Matrix<ExpertId>(4, 1) << 0, 1, 2, 3).finished());
      const Loss loss = load_balancing_loss<double>(balanced.table);
      EXPECT_NEAR(loss.value, 1.0, 1e-6);
      EXPECT_NEAR(balanced.pull(loss), 0.0, 1e-6);
      EXPECT_NEAR(hugging_face_load_balancing_loss<double>(balanced.table).value, 1.0, 1e-6);
      EXPECT_NEAR(gshard_loss<double>(balanced.table).value, 1.0 / 16, 1e-6);
    }
  }
}

/// The loss and the gradient of the logits where sigmoids are as good as exponentials.
template <class T>
struct FarBelow {
  explicit FarBelow(double shift) {
    RouterParams<T> params{{Matrix<T>(3, 1), Matrix<T>::Constant(1, 3, T(shift)), {}}, {}};
    params.weight << T(0.5), T(-1), T(2);
    const Router<T> router(params, 1, {.logits = {.bias = true}, .score = Score::sigmoid});
    const Matrix<T> x = (Matrix<T>(3, 1) << T(1), T(-2), T(0.5)).finished();
    typename Router<T>::Table table;
    router.route(x, {}, table);
    RoutingLoss<T> loss = load_balancing_loss<T>(table);
    value = loss.value;
    Matrix<T> dx(3, 1);
    auto grads = zeros_like(router.params());
    router.backward(x, table, loss.gradient, dx, grads);
    gradient = loss.gradient.logits;
  }

  T value;
  Matrix<T> gradient;
};

TEST(LoadBalancingLoss, DoesNotDependOnHowSmallTheScoresAreAsLongAsTheyAreNormalNumbers) {
  const FarBelow<double> want(-40);
  EXPECT_GT(want.gradient.cwiseAbs().maxCoeff(), 0.01);
  for (const double shift : {-60.0, -100.0, -700.0}) {
    const FarBelow<double> got(shift);
    EXPECT_NEAR(got.value, want.value, 1e-12) << shift;
    EXPECT_TRUE(testing::matrix_near(got.gradient, want.gradient, 1e-12)) << shift;
  }
  const Matrix<float> gradient = want.gradient.cast<float>();
  for (const double shift : {-20.0, -40.0, -60.0, -82.0}) {
    const FarBelow<float> got(shift);
    EXPECT_NEAR(got.value, static_cast<float>(want.value), 1e-5F) << shift;
    EXPECT_TRUE(testing::matrix_near(got.gradient, gradient, 1e-5)) << shift;
  }
}

TEST(LoadBalancingLoss, OfScoresThatUnderflowIsZeroAndHasNoGradient) {
  for (const double shift : {-95.0, -150.0}) {
    const FarBelow<float> got(shift);
    EXPECT_EQ(got.value, 0.0F) << shift;
    EXPECT_TRUE(got.gradient.isZero(0)) << shift;
  }
}

TEST(LoadBalancingLoss, DividesScoresThatDoNotSumToOneByTheirSumAndNoOthers) {
  Table table = tiny_table();
  const double value = load_balancing_loss(table).value;
  table.probs.row(0) *= 2.0;
  table.probs.row(2) *= 0.25;
  table.probs_sum_to_one = false;
  EXPECT_NEAR(load_balancing_loss(table).value, value, 1e-15);
  table = tiny_table();
  table.probs *= 2.0;
  EXPECT_EQ(load_balancing_loss(table).value, 2.0 * value) << "what sums to 1 is taken as it is";
}

TEST(LoadBalancingLoss, OfATokenWhoseScoresAreAllZeroIsZeroAndHasNoGradient) {
  Table table = tiny_table();
  table.probs_sum_to_one = false;
  table.probs.row(1).setZero();
  const Loss loss = load_balancing_loss(table);
  // The other two tokens: f = (2, 1, 2) / 6, P = (0.7, 0.5, 0.8) / 3.
  EXPECT_NEAR(loss.value, 3 * (2 * 0.7 + 1 * 0.5 + 2 * 0.8) / 6 / 3, 1e-15);
  EXPECT_TRUE(loss.gradient.probs.row(1).isZero(0));
  EXPECT_TRUE(loss.gradient.probs.allFinite());
}

TEST(LoadBalancingLoss, IsFiniteAtScoresThatNearlyUnderflow) {
  RouterParams<float> params{{Matrix<float>::Zero(3, 1), Matrix<float>(1, 3), {}}, {}};
  params.bias << -90.0f, -95.0f, -103.0f;  // the last are denormals
  const Router<float> router(params, 1, {.logits = {.bias = true}, .score = Score::sigmoid});
  const Matrix<float> x = Matrix<float>::Ones(2, 1);
  Router<float>::Table table;
  router.route(x, {}, table);
  RoutingLoss<float> loss = load_balancing_loss<float>(table);
  Matrix<float> dx(2, 1);
  auto grads = zeros_like(router.params());
  router.backward(x, table, loss.gradient, dx, grads);
  EXPECT_TRUE(std::isfinite(loss.value));
  EXPECT_TRUE(grads.bias.allFinite());
  EXPECT_TRUE(dx.allFinite());
}

}  // namespace
}  // namespace moe::balance_test
