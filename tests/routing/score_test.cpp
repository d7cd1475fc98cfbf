// SPDX-License-Identifier: Apache-2.0
// Scores of a single token and their gradient, by themselves. In a router they are tested with
// every other option in router_test and router_gradient_test.
#include "moe/routing/score.hpp"

#include <gtest/gtest.h>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"

namespace moe::score_test {
namespace {

using testing::matrix_near;
using testing::random_matrix;

constexpr Index E = 7;

Matrix<double> scores(Score score, const Matrix<double>& logits,
                      const std::uint8_t* allowed = nullptr) {
  Matrix<double> probs(1, E);
  TokenRoute<double> token{
      .num_experts = E, .allowed = allowed, .logits = logits.data(), .probs = probs.data()};
  write_scores(score, token);
  return probs;
}

TEST(Score, OfAMaskedLogitIsExactlyZeroAndTheOthersAreThoseOfTheRest) {
  Matrix<double> logits = random_matrix<double>(1, E, 1);
  logits(0, 2) = -std::numeric_limits<double>::infinity();
  const std::uint8_t allowed[E] = {1, 1, 0, 1, 1, 1, 1};
  const Matrix<double> powers = logits.array().exp();
  EXPECT_TRUE(matrix_near(scores(Score::softmax, logits, allowed), powers / powers.sum(), 1e-15));
  EXPECT_TRUE(matrix_near(scores(Score::sigmoid, logits, allowed),
                          powers.array() / (1.0 + powers.array()), 1e-15));
  EXPECT_TRUE(matrix_near(scores(Score::sqrt_softplus, logits, allowed),
                          Matrix<double>((1.0 + powers.array()).log().sqrt()), 1e-15));
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    EXPECT_EQ(scores(score, logits, allowed)(0, 2), 0.0);
  }
  EXPECT_TRUE(testing::same_bits(scores(Score::identity, logits, allowed), logits));
}

TEST(Score, OfAnInfiniteLogitIsNoPlausibleNumberButWhereItIsMasked) {
  const double inf = std::numeric_limits<double>::infinity();
  Matrix<double> logits(1, E);
  logits << inf, -inf, -inf, inf, 2.0, std::nan(""), -900.0;
  const std::uint8_t allowed[E] = {1, 1, 0, 1, 1, 1, 1};
  for (const Score score : {Score::sigmoid, Score::sqrt_softplus, Score::identity}) {
    const Matrix<double> s = scores(score, logits, allowed), all = scores(score, logits);
    for (const Index e : {0, 1, 3, 5}) {
      EXPECT_FALSE(std::isfinite(s(0, e))) << static_cast<int>(score) << ' ' << e;
    }
    EXPECT_FALSE(std::isfinite(all(0, 2))) << static_cast<int>(score);
    EXPECT_TRUE(std::isfinite(s(0, 4)) && std::isfinite(s(0, 6)));
  }
  EXPECT_EQ(scores(Score::sigmoid, logits, allowed)(0, 2), 0.0);
  EXPECT_EQ(scores(Score::sqrt_softplus, logits, allowed)(0, 2), 0.0);
}

TEST(Score, SumsToOneOverTheExpertsForASoftmaxOnly) {
  for (const Score score : all_scores) {
    EXPECT_EQ(sums_to_one(score), score == Score::softmax);
  }
}

TEST(SqrtSoftplus, HasItsLimitsAndNoPlausibleNumberForNaN) {
  const double inf = std::numeric_limits<double>::infinity();
  Matrix<double> logits(1, E);
  logits << 0.0, 900.0, -20.0, -900.0, inf, std::nan(""), std::log(std::exp(4.0) - 1.0);
  const Matrix<double> s = scores(Score::sqrt_softplus, logits);
  EXPECT_NEAR(s(0, 0), std::sqrt(std::log(2.0)), 1e-16);
  EXPECT_EQ(s(0, 1), 30.0) << "exp(900) overflows";
  EXPECT_NEAR(s(0, 2), std::exp(-10.0), 1e-13) << "sqrt(exp(z)) far down";
  EXPECT_EQ(s(0, 3), 0.0) << "exp(-900) underflows";
  EXPECT_EQ(s(0, 4), inf);
  EXPECT_TRUE(std::isnan(s(0, 5)));
  EXPECT_NEAR(s(0, 6), 2.0, 1e-15);

  Matrix<double> dprobs = Matrix<double>::Ones(1, E), dlogits = Matrix<double>::Zero(1, E);
  add_score_gradient<double>(Score::sqrt_softplus, {.num_experts = E,
                                                    .logits = logits.data(),
                                                    .probs = s.data(),
                                                    .dprobs = dprobs.data(),
                                                    .dlogits = dlogits.data()});
  EXPECT_NEAR(dlogits(0, 0), 0.25 / std::sqrt(std::log(2.0)), 1e-16);
  EXPECT_NEAR(dlogits(0, 1), 1.0 / 60.0, 1e-16);
  EXPECT_NEAR(dlogits(0, 2), 0.5 * std::exp(-10.0), 1e-13);
  EXPECT_EQ(dlogits(0, 3), 0.0) << "where 0 / 0 would stand";
  EXPECT_TRUE(std::isnan(dlogits(0, 5)));
  EXPECT_NEAR(dlogits(0, 6), (1.0 - std::exp(-4.0)) / 4.0, 1e-15);
}

TEST(ScoreGradient, IsAddedToThatOfTheLogits) {
  for (const Score score : all_scores) {
    Matrix<double> logits = random_matrix<double>(1, E, 2);
    const Matrix<double> slope = random_matrix<double>(1, E, 3), probs = scores(score, logits);
    Matrix<double> dprobs = slope, dlogits = Matrix<double>::Ones(1, E);
    TokenGradient<double> token{.num_experts = E,
                                .logits = logits.data(),
                                .probs = probs.data(),
                                .dprobs = dprobs.data(),
                                .dlogits = dlogits.data()};
    add_score_gradient(score, token);
    const auto f = [&] {
      return (scores(score, logits).array() * slope.array()).sum() + logits.sum();
    };
    EXPECT_LT(testing::gradient_error(f, logits, dlogits), 1e-9);
  }
}

}  // namespace
}  // namespace moe::score_test
