// SPDX-License-Identifier: Apache-2.0
// Tests of the specification itself, against arithmetic written out here. L = log 3 makes the
// softmax of (L, 0) come to (3/4, 1/4).
#include "moe/reference.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"

namespace moe::layer_test {
namespace {

using reference::Row;
using testing::matrix_near;

const double L = std::log(3.0);
constexpr double inf = std::numeric_limits<double>::infinity();

Matrix<double> matrix(Index rows, std::initializer_list<double> values) {
  const Index cols = static_cast<Index>(values.size()) / rows;
  return Eigen::Map<const Matrix<double>>(values.begin(), rows, cols);
}

void expect_near(const Row& got, const Row& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 1e-14) << i;
  }
}

/// Choices as (expert, weight) pairs.
void expect_choices(const std::vector<reference::Choice>& got,
                    const std::vector<std::pair<Index, double>>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t k = 0; k < got.size(); ++k) {
    EXPECT_EQ(got[k].expert, want[k].first) << k;
    EXPECT_NEAR(got[k].weight, want[k].second, 1e-14) << k;
    EXPECT_TRUE(got[k].kept);
  }
}

TEST(Reference, LinearIsAMatrixTimesAVector) {
  const Matrix<double> w = matrix(2, {1, 2, 3, 4, 5, 6});
  expect_near(reference::linear(w, Matrix<double>(), {1, 0, -1}), {1 - 3, 4 - 6});
  expect_near(reference::linear(w, matrix(1, {10, 20}), {1, 0, -1}), {8, 18});
}

TEST(Reference, SoftmaxHasKnownValues) {
  expect_near(reference::softmax({L, 0, -inf}), {0.75, 0.25, 0});
  expect_near(reference::softmax({1000, 1000}), {0.5, 0.5});
}

TEST(Reference, ActivationsHaveKnownValues) {
  EXPECT_EQ(reference::activate({.activation = Activation::relu}, -2), 0);
  EXPECT_EQ(reference::activate({.activation = Activation::relu}, 2), 2);
  EXPECT_EQ(reference::activate({.activation = Activation::relu_squared}, 3), 9);
  EXPECT_NEAR(reference::activate({.activation = Activation::gelu_erf}, 1), 0.841344746068543,
              1e-14);
  EXPECT_NEAR(reference::activate({.activation = Activation::gelu_tanh}, 1), 0.841191990608276,
              1e-14);
  EXPECT_NEAR(reference::activate({.activation = Activation::silu}, L), 0.75 * L, 1e-14);
}

ExpertParams<double> two_by_two() {
  ExpertParams<double> p;
  p.up = matrix(2, {1, 1, 0, -1});
  p.down = matrix(2, {1, 2, 3, 4});
  return p;
}

TEST(Reference, PlainExpertIsDownOfActivatedUp) {
  ExpertParams<double> p = two_by_two();
  const ExpertConfig config{.activation = Activation::relu, .gated = false};
  // x = (2, 3): up = (5, -3), hidden = (5, 0)
  expect_near(reference::expert(p, config, {2, 3}), {5, 15});
  p.up_bias = matrix(1, {0, 4});  // hidden = (5, 1)
  p.down_bias = matrix(1, {100, 200});
  expect_near(reference::expert(p, config, {2, 3}), {107, 219});
}

TEST(Reference, GatedExpertMultipliesUpByTheActivatedGate) {
  ExpertParams<double> p = two_by_two();
  p.gate = matrix(2, {1, 0, 0, 1});
  const ExpertConfig config{.activation = Activation::silu, .gated = true};
  // x = (L, 0): gate = (L, 0), silu = (3/4 L, 0), up = (L, 0), hidden = (3/4 L^2, 0)
  expect_near(reference::expert(p, config, {L, 0}), {0.75 * L * L, 2.25 * L * L});
}

TEST(Reference, OutputGateMultipliesByASigmoid) {
  ExpertParams<double> p = two_by_two();
  p.output_gate = matrix(1, {L, 0});
  const ExpertConfig config{.activation = Activation::relu, .gated = false, .output_gate = true};
  // x = (1, 0): up = (1, 0), down = (1, 3), sigmoid(L) = 3/4
  expect_near(reference::expert(p, config, {1, 0}), {0.75, 2.25});
}

/// Routes x with identity weights: the logits are x.
std::vector<reference::Choice> route(const Row& x, Index top_k, const RouterConfig& config,
                                     Row& probs, const std::vector<std::uint8_t>& allowed = {}) {
  RouterParams<double> p;
  p.weight = Matrix<double>::Identity(static_cast<Index>(x.size()), static_cast<Index>(x.size()));
  return reference::route(p, config, {top_k, allowed}, x, probs);
}

TEST(Reference, RoutesBySoftmaxOfAllLogits) {
  Row probs;
  const RouterConfig plain{.weight = {.renormalise = false}};
  // exp = (1, 3, 1, 3): probs = (1, 3, 1, 3) / 8
  expect_choices(route({0, L, 0, L}, 3, plain, probs), {{1, 0.375}, {3, 0.375}, {0, 0.125}});
  expect_near(probs, {0.125, 0.375, 0.125, 0.375});
  expect_choices(route({0, L, 0, L}, 3, {}, probs), {{1, 3.0 / 7}, {3, 3.0 / 7}, {0, 1.0 / 7}});
  expect_choices(route({0, L, 0, L}, 1, {.weight = {.renormalise = false, .scale = 4.0}}, probs),
                 {{1, 1.5}});
  expect_choices(route({0, L, 0, L}, 1, {}, probs), {{1, 0.375}});
}

TEST(Reference, RoutesBySigmoidScores) {
  Row probs;
  const RouterConfig config{.score = Score::sigmoid};
  expect_choices(route({0, L, -L}, 2, config, probs), {{1, 0.75 / 1.25}, {0, 0.5 / 1.25}});
  expect_near(probs, {0.5, 0.75, 0.25});
}

TEST(Reference, TakesWeightsOfTheChosenOrOnes) {
  Row probs;
  const auto chosen = WeightSource::softmax_of_chosen;
  for (const bool renormalise : {false, true}) {
    expect_choices(
        route({0, L, 5}, 2, {.weight = {.source = chosen, .renormalise = renormalise}}, probs),
        {{2, std::exp(5) / (std::exp(5) + 3)}, {1, 3 / (std::exp(5) + 3)}});
  }
  const auto one = WeightSource::one;
  expect_choices(route({0, L}, 2, {.weight = {.source = one, .renormalise = false}}, probs),
                 {{1, 1}, {0, 1}});
  expect_choices(route({0, L}, 2, {.weight = {.source = one}}, probs), {{1, 0.5}, {0, 0.5}});
}

TEST(Reference, ChoosesByScorePlusBiasAndWeighsByTheScore) {
  RouterParams<double> p;
  p.weight = Matrix<double>::Identity(3, 3);
  p.selection_bias = matrix(1, {0.5, 0, 0.125});
  const RouterConfig config{
      .score = Score::sigmoid, .selection = {.bias = true}, .weight = {.renormalise = false}};
  Row probs;
  // sigmoids 0.25, 0.75, 0.5; with the bias 0.75, 0.75, 0.625: the tie goes to the first
  expect_choices(reference::route(p, config, {2}, {-L, L, 0}, probs), {{0, 0.25}, {1, 0.75}});
  expect_near(probs, {0.25, 0.75, 0.5});
  expect_choices(reference::route(p, config, {2, {0, 1, 1}}, {-L, L, 0}, probs),
                 {{1, 0.75}, {2, 0.5}});
}

TEST(Reference, RoutesAroundMaskedExperts) {
  Row probs;
  expect_choices(route({0, L, 9}, 2, {}, probs, {1, 1, 0}), {{1, 0.75}, {0, 0.25}});
  expect_near(probs, {0.25, 0.75, 0});
  expect_choices(route({0, L, 9}, 2, {}, probs, {1, 0, 0}), {{0, 1}});
  expect_choices(route({0, L, 9}, 2, {}, probs, {0, 0, 0}), {});
  expect_near(probs, {0, 0, 0});
}

std::vector<int> kept_after(const Capacity& capacity, Index sequence_length) {
  const Tokens tokens{.sequence_length = sequence_length};
  reference::Routing routing(4, {{.expert = 0, .weight = 1.0}});
  const std::vector<Row> probs{{0.1}, {0.4}, {0.3}, {0.4}};
  reference::drop(capacity, tokens, 1, 1, probs, routing);
  std::vector<int> kept;
  for (const auto& choices : routing) {
    kept.push_back(choices[0].kept);
  }
  return kept;
}

TEST(Reference, DropsWhatIsOverCapacity) {
  EXPECT_EQ(kept_after({}, 0), (std::vector{1, 1, 1, 1}));
  EXPECT_EQ(kept_after({.rows = 3}, 0), (std::vector{1, 1, 1, 0}));
  EXPECT_EQ(kept_after({.rows = 1}, 2), (std::vector{1, 0, 1, 0}));
  EXPECT_EQ(kept_after({.factor = 0.5}, 0), (std::vector{1, 1, 0, 0}));
  EXPECT_EQ(kept_after({.rows = 1, .policy = DropPolicy::probability}, 0),
            (std::vector{0, 1, 0, 0}))
      << "of equals the last is dropped";
  EXPECT_EQ(kept_after({.rows = 1, .policy = DropPolicy::probability}, 2),
            (std::vector{0, 1, 0, 1}));
}

/// Logits are x. Expert 0 is (a, b) -> relu (a, b) -> (a + b, 2 b), expert 1 turns it to (2 a, a).
MoELayer<double> layer_by_hand(Index top_k, const RouterConfig& config, const LayerOptions& options,
                               bool shared = false) {
  RouterParams<double> router;
  router.weight = matrix(2, {1, 0, 0, 1});
  const ExpertConfig kind{.activation = Activation::relu, .gated = false};
  ExpertParams<double> zero, one;
  zero.up = one.up = matrix(2, {1, 0, 0, 1});
  zero.down = matrix(2, {1, 1, 0, 2});
  one.down = matrix(2, {2, 0, 1, 0});
  std::optional<DenseFfn<double>> dense;
  if (shared) {
    dense.emplace(Expert<double>(one, kind));
  }
  return {Router<double>(router, top_k, config), {{zero, kind}, {one, kind}}, options, dense};
}

TEST(Reference, LayerMixesItsExperts) {
  const Matrix<double> x = matrix(2, {L, 0, 1, 1 + L});
  // Token 0: weights 3/4, 1/4 of (L, 0) and (2 L, L). Token 1: 1/4, 3/4 of (2 + L, 2 + 2 L), (2,
  // 1).
  const Matrix<double> both = matrix(2, {1.25 * L, 0.25 * L,  //
                                         0.25 * (2 + L) + 1.5, 0.25 * (2 + 2 * L) + 0.75});
  EXPECT_TRUE(matrix_near(reference::forward(layer_by_hand(2, {}, {}), x), both, 1e-15));
  const Matrix<double> best = matrix(2, {0.75 * L, 0, 1.5, 0.75});
  const RouterConfig plain{.weight = {.renormalise = false}};
  EXPECT_TRUE(matrix_near(reference::forward(layer_by_hand(1, plain, {}), x), best, 1e-15));
  const Matrix<double> with_shared = best + matrix(2, {2 * L, L, 2, 1});
  EXPECT_TRUE(
      matrix_near(reference::forward(layer_by_hand(1, plain, {}, true), x), with_shared, 1e-15));
}

TEST(Reference, LayerScalesTheRoutedAndTheSharedOutput) {
  const Matrix<double> x = matrix(2, {L, 0, 1, 1 + L});
  const RouterConfig plain{.weight = {.renormalise = false}};
  const auto y = [&](const LayerOptions& options, bool shared) {
    return reference::forward(layer_by_hand(1, plain, options, shared), x);
  };
  const Matrix<double> routed = matrix(2, {0.75 * L, 0, 1.5, 0.75});
  const Matrix<double> shared = matrix(2, {2 * L, L, 2, 1});
  const Matrix<double> average = (routed + shared) / 2;
  EXPECT_TRUE(matrix_near(y({.routed_scale = 0.5, .shared_scale = 0.5}, true), average, 1e-15));
  EXPECT_TRUE(matrix_near(y({.routed_scale = 4.0}, true), 4 * routed + shared, 1e-15));
  EXPECT_TRUE(matrix_near(y({.routed_scale = 4.0}, false), 4 * routed, 1e-15));
}

TEST(Reference, LayerPutsTheWeightOnTheInput) {
  // An activation that is not linear tells the places apart: (3/4 L)^2 and not 3/4 L^2.
  RouterParams<double> router;
  router.weight = matrix(2, {1, 0, 0, 1});
  const ExpertConfig kind{.activation = Activation::relu_squared, .gated = false};
  ExpertParams<double> p;
  p.up = p.down = matrix(2, {1, 0, 0, 1});
  const auto layer = [&](WeightOn weight_on) {
    return MoELayer<double>(Router<double>(router, 1, {.weight = {.renormalise = false}}),
                            {{p, kind}, {p, kind}}, {.weight_on = weight_on});
  };
  const Matrix<double> x = matrix(1, {L, 0});
  EXPECT_TRUE(matrix_near(reference::forward(layer(WeightOn::output), x),
                          matrix(1, {0.75 * L * L, 0}), 1e-15));
  EXPECT_TRUE(matrix_near(reference::forward(layer(WeightOn::input), x),
                          matrix(1, {0.5625 * L * L, 0}), 1e-15));
}

/// With top_k = 1 every weight is 1.
const RouterConfig weight_of_one{.weight = {.renormalise = true}};

TEST(Reference, LayerGivesPaddingZerosAndNoCapacity) {
  const Matrix<double> x = matrix(2, {std::nan(""), 0, L, 0});
  const std::vector<std::uint8_t> padding = {1, 0};
  const auto limited = layer_by_hand(1, weight_of_one, {.capacity = {.rows = 1}}, true);
  const auto y = reference::forward(limited, x, {.tokens = {.padding = padding}});
  // Token 1: (L, 0) of expert 0, and (2 L, L) of the shared one.
  EXPECT_TRUE(matrix_near(y, matrix(2, {0, 0, 3 * L, L}), 1e-15));
}

TEST(Reference, LayerGivesADroppedOrMaskedTokenZeros) {
  const Matrix<double> x = matrix(2, {L, 0, 2 * L, 0});
  const auto limited = layer_by_hand(1, weight_of_one, {.capacity = {.rows = 1}});
  EXPECT_TRUE(matrix_near(reference::forward(limited, x), matrix(2, {L, 0, 0, 0}), 1e-15));
  ExpertMask mask(2, 2);
  mask << 0, 0, 0, 1;
  const auto y = reference::forward(layer_by_hand(1, weight_of_one, {}), x, {.expert_mask = &mask});
  EXPECT_TRUE(matrix_near(y, matrix(2, {0, 0, 4 * L, 2 * L}), 1e-15));
}

}  // namespace
}  // namespace moe::layer_test
