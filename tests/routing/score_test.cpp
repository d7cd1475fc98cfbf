// SPDX-License-Identifier: Apache-2.0
// Scores of a single token and their gradient, by themselves. In a router they are tested with
// every other option in router_test and router_gradient_test.
#include "moe/routing/score.hpp"

#include <gtest/gtest.h>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"

namespace moe {
namespace {

using testing::matrix_near;
using testing::random_matrix;

constexpr Index E = 7;

Matrix<double> scores(Score score, const Matrix<double>& logits) {
  Matrix<double> probs(1, E);
  TokenRoute<double> token{.num_experts = E, .logits = logits.data(), .probs = probs.data()};
  write_scores(score, token);
  return probs;
}

TEST(Score, OfAMaskedLogitIsExactlyZeroAndTheOthersAreThoseOfTheRest) {
  Matrix<double> logits = random_matrix<double>(1, E, 1);
  logits(0, 2) = -std::numeric_limits<double>::infinity();
  const Matrix<double> powers = logits.array().exp();
  EXPECT_TRUE(matrix_near(scores(Score::softmax, logits), powers / powers.sum(), 1e-15));
  EXPECT_TRUE(
      matrix_near(scores(Score::sigmoid, logits), powers.array() / (1.0 + powers.array()), 1e-15));
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    EXPECT_EQ(scores(score, logits)(0, 2), 0.0);
  }
}

TEST(ScoreGradient, IsAddedToThatOfTheLogits) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
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
}  // namespace moe
