// SPDX-License-Identifier: Apache-2.0
// The weights of a single token and their gradient, by themselves; among them a token that fewer
// than K experts were chosen for. In a router they are tested in router_test.
#include "moe/routing/weights.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"

namespace moe::weights_test {
namespace {

using testing::random_matrix;

constexpr Index E = 6, K = 4;

/// A token whose logits and probs are independent of each other.
struct Token {
  Matrix<double> logits = random_matrix<double>(1, E, 1);
  Matrix<double> probs = random_matrix<double>(1, E, 2).cwiseAbs();
  ExpertId expert[K] = {4, 0, 3, none};
  Index chosen = 3;

  Matrix<double> bias = random_matrix<double>(1, E, 4).cwiseAbs();
  Matrix<double> scales = random_matrix<double>(1, E, 5);

  WeightTensors<double> tensors(const WeightConfig& config) const {
    return {bias.data(), config.expert_scale == ExpertScale::off ? nullptr : scales.data(),
            config.expert_scale == ExpertScale::learned_for_all};
  }

  Matrix<double> weights(const WeightConfig& config) {
    Matrix<double> weight(1, K);
    write_weights<double>(config, chosen,
                          {.num_experts = E,
                           .top_k = K,
                           .logits = logits.data(),
                           .probs = probs.data(),
                           .expert = expert,
                           .weight = weight.data()},
                          tensors(config));
    return weight;
  }
};

std::vector<WeightConfig> configs() {
  std::vector<WeightConfig> all;
  for (const auto source : {WeightSource::score, WeightSource::biased_score,
                            WeightSource::softmax_of_chosen, WeightSource::one}) {
    for (const bool renormalise : {false, true}) {
      all.push_back({.source = source, .renormalise = renormalise, .scale = 2.5});
    }
  }
  return all;
}

/// The same with every rule of epsilon, whose 5 is more than any sum here, and scales of experts.
std::vector<WeightConfig> more_configs() {
  std::vector<WeightConfig> all;
  for (WeightConfig config : configs()) {
    for (const auto rule : {EpsilonRule::added, EpsilonRule::least}) {
      for (const double epsilon : {0.0, 0.5, 1e-20, 5.0}) {
        for (const auto scale : {ExpertScale::off, ExpertScale::fixed, ExpertScale::learned,
                                 ExpertScale::learned_for_all}) {
          config.epsilon = epsilon;
          config.epsilon_rule = rule;
          config.expert_scale = scale;
          all.push_back(config);
        }
      }
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

/// What these scores become of two choices, divided by their sum.
Matrix<double> divided(double first, double second, WeightConfig config) {
  config.renormalise = true;
  const double probs[] = {first, second}, logits[] = {0.0, 0.0};
  ExpertId expert[] = {0, 1};
  Matrix<double> weight(1, 2);
  write_weights<double>(config, 2,
                        {.num_experts = 2,
                         .top_k = 2,
                         .logits = logits,
                         .probs = const_cast<double*>(probs),
                         .expert = expert,
                         .weight = weight.data()});
  return weight;
}

TEST(Weights, AreDividedByTheSumByTheRuleOfEpsilon) {
  const auto pair = [](double a, double b) { return (Matrix<double>(1, 2) << a, b).finished(); };
  const WeightConfig added{.epsilon = 0.5},
      least{.epsilon = 0.5, .epsilon_rule = EpsilonRule::least};
  EXPECT_EQ(divided(0.25, 0.25, added), pair(0.25, 0.25));
  EXPECT_EQ(divided(0.125, 0.25, least), pair(0.25, 0.5)) << "0.375 is less than 0.5";
  EXPECT_EQ(divided(0.75, 0.25, least), pair(0.75, 0.25));
  EXPECT_EQ(divided(0.0, 0.0, {}), pair(0.0, 0.0));
  EXPECT_TRUE(divided(0.0, 0.0, {.epsilon = 0.0}).array().isNaN().all()) << "as Hugging Face";
  EXPECT_TRUE(divided(std::nan(""), 0.1, least).array().isNaN().all());
}

TEST(Weights, OfScorePlusBiasAreThoseOfTheirSum) {
  Token t;
  t.chosen = 2;
  t.probs.leftCols(1).setConstant(0.25);
  t.bias.leftCols(1).setConstant(0.5);
  t.probs(0, 4) = 0.5;
  t.bias(0, 4) = -0.25;
  const WeightConfig config{.source = WeightSource::biased_score, .epsilon = 0.0};
  EXPECT_EQ(t.weights(config), (Matrix<double>(1, K) << 0.25, 0.75, 0.0, 0.0).finished());
}

TEST(Weights, AreMultipliedByTheScaleOfTheirExpertOrOfAll) {
  Token t;
  const Matrix<double> plain = t.weights({}),
                       scaled = t.weights({.expert_scale = ExpertScale::learned}),
                       as_one = t.weights({.expert_scale = ExpertScale::learned_for_all});
  for (Index k = 0; k < 3; ++k) {
    EXPECT_EQ(scaled(0, k), plain(0, k) * t.scales(0, t.expert[k]));
    EXPECT_EQ(as_one(0, k), plain(0, k) * t.scales(0, 0));
  }
  EXPECT_EQ(scaled(0, 3), 0.0);
}

TEST(WeightGradient, IsAddedToThoseOfLogitsAndProbsAndScales) {
  for (const WeightConfig& config : more_configs()) {
    Token t;
    const Matrix<double> slope = random_matrix<double>(1, K, 3), weight = t.weights(config);
    Matrix<double> dprobs = Matrix<double>::Ones(1, E), dlogits = dprobs;
    add_weight_gradient<double>(config,
                                {.num_experts = E,
                                 .top_k = K,
                                 .logits = t.logits.data(),
                                 .probs = t.probs.data(),
                                 .expert = t.expert,
                                 .weight = weight.data(),
                                 .dweight = slope.data(),
                                 .dprobs = dprobs.data(),
                                 .dlogits = dlogits.data()},
                                t.tensors(config));
    const auto f = [&] {
      return (t.weights(config).array() * slope.array()).sum() + t.probs.sum() + t.logits.sum();
    };
    EXPECT_LT(testing::gradient_error(f, t.probs, dprobs), 1e-9);
    EXPECT_LT(testing::gradient_error(f, t.logits, dlogits), 1e-9);
    if (is_learned(config.expert_scale)) {
      Matrix<double> dscales = Matrix<double>::Zero(1, E);
      add_expert_scale_gradient<double>(config,
                                        {.num_experts = E,
                                         .top_k = K,
                                         .logits = t.logits.data(),
                                         .probs = t.probs.data(),
                                         .expert = t.expert,
                                         .weight = weight.data(),
                                         .dweight = slope.data()},
                                        t.tensors(config), dscales.data());
      EXPECT_LT(testing::gradient_error(f, t.scales, dscales), 1e-9);
    }
  }
}

}  // namespace
}  // namespace moe::weights_test
