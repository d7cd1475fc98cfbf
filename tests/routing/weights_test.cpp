// SPDX-License-Identifier: Apache-2.0
// The weights of a single token and their gradient, by themselves; among them a token that fewer
// than K experts were chosen for. In a router they are tested in router_test.
#include "moe/routing/weights.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"

namespace moe {
namespace {

using testing::random_matrix;

constexpr Index E = 6, K = 4;

/// A token whose logits and probs are independent of each other.
struct Token {
  Matrix<double> logits = random_matrix<double>(1, E, 1);
  Matrix<double> probs = random_matrix<double>(1, E, 2).cwiseAbs();
  ExpertId expert[K] = {4, 0, 3, none};
  Index chosen = 3;

  Matrix<double> weights(const WeightConfig& config) {
    Matrix<double> weight(1, K);
    write_weights<double>(config, chosen,
                          {.num_experts = E,
                           .top_k = K,
                           .logits = logits.data(),
                           .probs = probs.data(),
                           .expert = expert,
                           .weight = weight.data()});
    return weight;
  }
};

std::vector<WeightConfig> configs() {
  std::vector<WeightConfig> all;
  for (const auto source :
       {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
    for (const bool renormalise : {false, true}) {
      all.push_back({source, renormalise, 2.5});
    }
  }
  return all;
}

TEST(Weights, OfAnUnusedChoiceAreZeroAndTheOthersAddUpToTheScaleIfRenormalised) {
  for (const WeightConfig& config : configs()) {
    const Matrix<double> weight = Token().weights(config);
    EXPECT_EQ(weight(0, 3), 0.0);
    EXPECT_TRUE((weight.leftCols(3).array() > 0.0).all());
    if (config.renormalises(K) || config.source == WeightSource::softmax_of_chosen) {
      EXPECT_NEAR(weight.sum(), 2.5, 1e-14);
    }
  }
}

TEST(Weights, OfAGapAmongTheChoicesAreZeroAndTheOthersAreThoseWithoutIt) {
  for (const WeightConfig& config : configs()) {
    const Matrix<double> want = Token().weights(config);
    const Matrix<double> gap = Token{.expert = {4, none, 0, 3}, .chosen = K}.weights(config);
    EXPECT_EQ(gap(0, 1), 0.0);
    EXPECT_NEAR(gap(0, 0), want(0, 0), 1e-15);
    EXPECT_NEAR(gap(0, 2), want(0, 1), 1e-15);
    EXPECT_NEAR(gap(0, 3), want(0, 2), 1e-15);
    const Matrix<double> nothing =
        Token{.expert = {none, none, none, none}, .chosen = K}.weights(config);
    EXPECT_TRUE(nothing.isZero(0));
  }
}

TEST(WeightGradient, IsAddedToThoseOfLogitsAndProbs) {
  for (const WeightConfig& config : configs()) {
    Token t;
    const Matrix<double> slope = random_matrix<double>(1, K, 3), weight = t.weights(config);
    Matrix<double> dprobs = Matrix<double>::Ones(1, E), dlogits = dprobs;
    add_weight_gradient<double>(config, {.num_experts = E,
                                         .top_k = K,
                                         .logits = t.logits.data(),
                                         .probs = t.probs.data(),
                                         .expert = t.expert,
                                         .weight = weight.data(),
                                         .dweight = slope.data(),
                                         .dprobs = dprobs.data(),
                                         .dlogits = dlogits.data()});
    const auto f = [&] {
      return (t.weights(config).array() * slope.array()).sum() + t.probs.sum() + t.logits.sum();
    };
    EXPECT_LT(testing::gradient_error(f, t.probs, dprobs), 1e-9);
    EXPECT_LT(testing::gradient_error(f, t.logits, dlogits), 1e-9);
  }
}

}  // namespace
}  // namespace moe
