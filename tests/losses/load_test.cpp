// SPDX-License-Identifier: Apache-2.0
// The load loss by hand on one token, where it is balanced, and where the noise decides nothing.
#include "moe/losses/load.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "tables.hpp"

namespace moe::load_test {
namespace {

using testing::balanced_table;
using testing::Loss;
using testing::noisy_router;
using testing::random_matrix;
using testing::random_table;
using testing::Table;

TEST(LoadLoss, IsTheSquaredVariationOfTheProbabilitiesToBeChosenAgain) {
  Table table;
  table.expert.resize(1, 1);
  table.weight.setOnes(1, 1);
  table.expert << 1;
  table.probs.setConstant(1, 2, 0.5);
  table.clean_logits.resize(1, 2);
  table.clean_logits << 1.0, 2.0;
  table.noise_scale.resize(1, 2);
  table.noise_scale << 0.5, 2.0;
  table.logits.resize(1, 2);
  table.logits << 0.5, 3.0;
  // Expert 0 must pass 3.0, expert 1 must pass 0.5.
  const auto phi = [](double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); };
  const double p = phi((1.0 - 3.0) / 0.5), q = phi((2.0 - 0.5) / 2.0), mean = (p + q) / 2;
  const double variance = (p - mean) * (p - mean) + (q - mean) * (q - mean);
  EXPECT_NEAR(load_loss(table).value, variance / (mean * mean), 1e-14);
}

TEST(LoadLoss, IsZeroWhenBalanced) {
  for (const Index top_k : {1, 2, 4}) {
    EXPECT_NEAR(load_loss(balanced_table(4, top_k)).value, 0.0, 1e-15);
  }
}

TEST(LoadLoss, IsNotLostInTheRoundingOfManyTokens) {
  constexpr Index half = 1024;  // tokens that choose expert 0 for sure, and as many that nearly
  RoutingTable<float> table;    // surely choose expert 1: terms that a float of 1024 rounds away
  table.expert.setZero(2 * half, 1);
  table.expert.bottomRows(half).setOnes();
  table.weight.setOnes(2 * half, 1);
  table.probs.setConstant(2 * half, 2, 0.5F);
  table.logits.setZero(2 * half, 2);
  table.logits.col(0).head(half).setConstant(10.0F);
  table.logits.col(1).tail(half).setConstant(4.0F);
  table.clean_logits = table.logits;
  table.noise_scale.setOnes(2 * half, 2);
  const double rest = half * 0.5 * std::erfc(4.0 / std::sqrt(2.0));
  const double first = half + rest, second = half - rest, mean = half;
  const double want = (first - second) * (first - second) / 2 / (mean * mean);
  EXPECT_NEAR(load_loss(table).value / want, 1.0, 0.01);
}

TEST(LoadLoss, IsFiniteWhereTheNoiseHasNoWidth) {
  Table table = random_table(4);
  table.clean_logits = table.logits;
  table.noise_scale.setZero();
  const Loss loss = load_loss(table);
  EXPECT_TRUE(std::isfinite(loss.value));
  EXPECT_TRUE(loss.gradient.logits.isZero(0));
  EXPECT_TRUE(loss.gradient.noise_scale.isZero(0));
}

TEST(LoadLoss, CountsTheChosenOfATieWhereTheNoiseHasNoWidth) {
  Table table;
  table.expert.setZero(1, 1);
  table.weight.setOnes(1, 1);
  table.probs.setConstant(1, 2, 0.5);
  table.logits.setOnes(1, 2);
  table.clean_logits = table.logits;
  table.noise_scale.setZero(1, 2);
  const Loss loss = load_loss(table);
  EXPECT_EQ(loss.value, 2.0);  // loads 1 and 0, whose mean is 0.5
  EXPECT_TRUE(loss.gradient.logits.isZero(0.0));
  EXPECT_TRUE(loss.gradient.noise_scale.isZero(0.0));
}

TEST(LoadLoss, NeedsNoise) {
  Router<double>::Table table;
  noisy_router().route(random_matrix<double>(4, 3, 3), {}, table);
  EXPECT_THROW(load_loss<double>(table), std::invalid_argument);
}

TEST(LoadLoss, IsZeroWithAllExpertsChosen) {
  Router<double> all(3, 4, 4, {.logits = {.noisy = true}}, 9);
  Router<double>::Table table;
  all.route(random_matrix<double>(5, 3, 10), {.noise_seed = 11}, table);
  const Loss loss = load_loss<double>(table);
  EXPECT_EQ(loss.value, 0.0);
  EXPECT_TRUE(loss.gradient.logits.isZero(0));
}

}  // namespace
}  // namespace moe::load_test
