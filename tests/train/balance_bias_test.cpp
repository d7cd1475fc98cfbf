// SPDX-License-Identifier: Apache-2.0
// Updates by hand, and routers that prefer few experts until their bias has followed the load.
#include "moe/train/balance_bias.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/routing/router.hpp"

namespace moe::balance_bias_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

ExpertLoad load_of(const std::vector<Index>& choices) {
  ExpertLoad load(static_cast<Index>(choices.size()));
  for (std::size_t e = 0; e < choices.size(); ++e) {
    RoutingTable<float> table;
    table.expert.resize(choices[e], 1);
    table.weight.resize(choices[e], 1);
    table.expert.matrix().setConstant(static_cast<ExpertId>(e));
    load.add(table);
  }
  return load;
}

Matrix<double> row(std::initializer_list<double> values) {
  Matrix<double> made(1, static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), made.data());
  return made;
}

TEST(SelectionBias, GoesUpForExpertsBelowTheMeanAndDownForThoseAbove) {
  const ExpertLoad load = load_of({6, 3, 0, 3});
  Matrix<double> bias = row({0.5, 0, 0, 0});
  update_selection_bias(bias, load, {.rate = 0.1});
  EXPECT_TRUE(matrix_near(bias, row({0.4, 0, 0.1, 0}), 1e-15));
  update_selection_bias(bias, load, {.rate = 0.1, .rule = BiasRule::proportional});
  EXPECT_TRUE(matrix_near(bias, row({0.3, 0, 0.2, 0}), 1e-15));
  update_selection_bias(bias, load, {.rate = 0.1, .limit = 0.15});
  EXPECT_TRUE(matrix_near(bias, row({0.15, 0, 0.15, 0}), 1e-15));
  update_selection_bias(bias, load, {.rate = 0.1, .centre = true});
  EXPECT_TRUE(matrix_near(bias, row({-0.025, -0.075, 0.175, -0.075}), 1e-15));
}

TEST(SelectionBias, StaysWithoutChoices) {
  Matrix<double> bias = row({0.5, 0.25});
  update_selection_bias(bias, ExpertLoad(2));
  EXPECT_TRUE(matrix_near(bias, row({0.5, 0.25}), 0.0));
}

/// A router that gives most tokens the same few of its experts.
Router<float> uneven_router() {
  RouterConfig config{.score = Score::sigmoid, .selection = {.bias = true}};
  Router<float> router(16, 8, 2, config, 1);
  router.params().weight = random_matrix<float>(8, 16, 2) * 0.3F;
  router.params().weight.row(0).setConstant(0.4F);
  router.params().weight.row(5).setConstant(0.3F);
  return router;
}

const Matrix<float> tokens = (random_matrix<float>(512, 16, 3).array() * 0.5F + 0.3F).matrix();

double largest_over_mean(const Router<float>& router, Router<float>::Table& table) {
  router.route(tokens, {}, table);
  ExpertLoad load(8);
  load.add(table);
  return load.largest_over_mean();
}

TEST(SelectionBias, EvensTheLoadOfARouter) {
  Router<float> router = uneven_router();
  Router<float>::Table table;
  EXPECT_GT(largest_over_mean(router, table), 2.5);
  for (int step = 0; step < 800; ++step) {
    router.route(tokens, {}, table);
    ExpertLoad load(8);
    load.add(table);
    update_selection_bias(router.params().selection_bias, load, {.rate = 1e-3});
  }
  EXPECT_LT(largest_over_mean(router, table), 1.15);
}

TEST(SelectionBias, IsThereInFewStepsByQuantiles) {
  Router<float> router = uneven_router();
  Router<float>::Table table;
  router.route(tokens, {}, table);
  for (int step = 0; step < 10; ++step) {
    balance_by_quantile(table, 1.0, router.params().selection_bias);
    router.route(tokens, {}, table);
  }
  EXPECT_LT(largest_over_mean(router, table), 1.1);
  EXPECT_NEAR(router.params().selection_bias.mean(), 0.0F, 1e-6);
}

TEST(SelectionBias, OfAQuantileDoesNotSeeTokensWithANan) {
  Router<float> router = uneven_router();
  Router<float>::Table table;
  router.route(tokens, {}, table);
  Matrix<float> bias = router.params().selection_bias, want = bias;
  table.padding.assign(static_cast<std::size_t>(tokens.rows()), 0);
  table.padding[7] = 1;
  balance_by_quantile(table, 1.0, want);
  table.padding.clear();
  table.probs(7, 3) = std::nanf("");
  balance_by_quantile(table, 1.0, bias);
  EXPECT_TRUE(matrix_near(bias, want, 0.0));
}

TEST(SelectionBias, OfAQuantileIsThatOfTiesWhereAllScoresAreAlike) {
  RoutingTable<double> table;
  table.expert.setConstant(8, 1, 0);
  table.weight.setOnes(8, 1);
  table.probs.setConstant(8, 4, 0.5);
  Matrix<double> bias = row({0, 0, 0, 0});
  balance_by_quantile(table, 1.0, bias);
  EXPECT_TRUE(matrix_near(bias, row({0, 0, 0, 0}), 0.0));
  table.probs.col(0).setConstant(0.75);  // 0.25 above the second best, of every token alike
  balance_by_quantile(table, 1.0, bias);
  EXPECT_TRUE(matrix_near(bias, row({-0.1875, 0.0625, 0.0625, 0.0625}), 1e-15));
}

TEST(SelectionBias, OfAQuantileIsLeftWhereEveryExpertIsChosenOrNoToken) {
  RoutingTable<double> table;
  table.probs.resize(0, 3);
  table.expert.resize(0, 2);
  table.weight.resize(0, 2);
  Matrix<double> bias = row({1, 2, 3});
  balance_by_quantile(table, 1.0, bias);
  EXPECT_TRUE(matrix_near(bias, row({1, 2, 3}), 0.0));
}

TEST(SelectionBias, RefusesOtherSizesAndSettings) {
  Matrix<double> bias = row({0, 0, 0});
  EXPECT_EQ(message_of([&] { update_selection_bias(bias, ExpertLoad(2)); }),
            "selection_bias has 3 numbers, expected one for each of 2 experts");
  EXPECT_EQ(message_of([&] { update_selection_bias(bias, ExpertLoad(3), {.rate = -1.0}); }),
            "BiasUpdate: rate = -1, expected finite and at least 0");
  EXPECT_EQ(message_of([&] { update_selection_bias(bias, ExpertLoad(3), {.limit = 0.0}); }),
            "BiasUpdate: limit = 0, expected positive");
  Matrix<float> narrow = Matrix<float>::Zero(1, 3);
  ExpertLoad load(3);
  load.add(std::vector<Index>{7, 0, 0});
  for (const BiasRule rule : {BiasRule::sign, BiasRule::proportional}) {
    EXPECT_EQ(
        message_of([&] { update_selection_bias(narrow, load, {.rate = 2e38, .rule = rule}); }),
        "BiasUpdate: rate = 2e+38, expected so small that 3 times it is finite in the scalar "
        "of the bias");
    EXPECT_TRUE(narrow.isZero(0));
    update_selection_bias(narrow, load, {.rate = 1e37, .rule = rule});
    EXPECT_TRUE(narrow.allFinite());
    narrow.setZero();
  }
  RoutingTable<double> table;
  table.probs.resize(0, 3);
  EXPECT_EQ(message_of([&] { balance_by_quantile(table, 2.0, bias); }),
            "balance_by_quantile: rate = 2, expected in [0, 1]");
  table.expert.setConstant(2, 1, 0);
  EXPECT_EQ(message_of([&] { balance_by_quantile(table, 1.0, bias); }),
            "balance_by_quantile: probs is (0, 3), expected (2, 3)");
}

TEST(SelectionBias, RefusesOneThatIsNotFiniteAndLeavesIt) {
  Router<float> router = uneven_router();
  Router<float>::Table table;
  router.route(tokens, {}, table);
  ExpertLoad load(8);
  load.add(table);
  for (const char* bad : {"nan", "inf", "-inf"}) {
    Matrix<float> bias = Matrix<float>::Zero(1, 8);
    bias(0, 5) = std::strtof(bad, nullptr);
    const Matrix<float> before = bias;
    const std::string message =
        "selection_bias of expert 5 is " + std::string(bad) + ", expected finite";
    EXPECT_EQ(message_of([&] { update_selection_bias(bias, load, {.limit = 1.0}); }), message);
    EXPECT_EQ(message_of([&] { balance_by_quantile(table, 0.5, bias); }), message);
    EXPECT_TRUE(same_bits(bias, before));
  }
}

}  // namespace
}  // namespace moe::balance_bias_test
