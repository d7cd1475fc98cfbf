// SPDX-License-Identifier: Apache-2.0
// Each loss by hand on a tiny table, at its balanced value, with masks, and its gradient: by
// central differences of the table, and end to end through Router::backward.
#include "moe/losses/loss.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/routing/router.hpp"

namespace moe {
namespace {

using testing::gradient_error;
using testing::matrix_near;
using testing::random_matrix;
using Table = RoutingTable<double>;
using Loss = RoutingLoss<double>;
using LossFunction = Loss (*)(const Table&, TokenMask);

struct Named {
  const char* name;
  LossFunction loss;
};
const Named all_losses[] = {{"load_balancing", load_balancing_loss<double>},
                            {"hugging_face", hugging_face_load_balancing_loss<double>},
                            {"gshard", gshard_loss<double>},
                            {"importance", importance_loss<double>},
                            {"load", load_loss<double>},
                            {"z", z_loss<double>}};

/// Three tokens, three experts, two choices each.
Table tiny_table() {
  Table table;
  table.expert.resize(3, 2);
  table.expert << 0, 1, 0, 2, 2, none;
  table.weight.resize(3, 2);
  table.weight << 0.6, 0.4, 0.7, 0.3, 1.0, 0.0;
  table.probs.resize(3, 3);
  table.probs << 0.5, 0.3, 0.2, 0.6, 0.1, 0.3, 0.2, 0.2, 0.6;
  table.logits.resize(3, 3);
  table.logits << 0.0, 0.0, 0.0, std::log(2.0), 0.0, 0.0, 1.0, 1.0, 1.0;
  return table;
}

/// Tokens and experts in a circle: token t chooses t, t + 1, ... t + k - 1.
Table balanced_table(Index num_experts, Index top_k) {
  const Index tokens = 2 * num_experts;
  Table table;
  table.expert.resize(tokens, top_k);
  for (Index t = 0; t < tokens; ++t) {
    for (Index k = 0; k < top_k; ++k) {
      table.expert(t, k) = static_cast<ExpertId>((t + k) % num_experts);
    }
  }
  const double share = 1.0 / static_cast<double>(num_experts);
  table.weight.setConstant(tokens, top_k, 1.0 / static_cast<double>(top_k));
  table.probs.setConstant(tokens, num_experts, share);
  table.logits.setConstant(tokens, num_experts, 0.75);
  table.clean_logits = table.logits;
  table.noise_scale.setConstant(tokens, num_experts, 0.5);
  return table;
}

/// The rows of a table that a mask keeps.
Table kept_rows(const Table& table, const std::vector<std::uint8_t>& mask) {
  std::vector<Index> rows;
  for (std::size_t t = 0; t < mask.size(); ++t) {
    if (mask[t] != 0) {
      rows.push_back(static_cast<Index>(t));
    }
  }
  Table kept;
  kept.expert = table.expert(rows, Eigen::all);
  kept.weight = table.weight(rows, Eigen::all);
  kept.probs = table.probs(rows, Eigen::all);
  kept.logits = table.logits(rows, Eigen::all);
  kept.clean_logits = table.clean_logits(rows, Eigen::all);
  kept.noise_scale = table.noise_scale(rows, Eigen::all);
  return kept;
}

Router<double> noisy_router(Score score = Score::softmax) {
  Router<double> router(3, 5, 2, {.bias = true, .noisy = true, .score = score}, 1);
  testing::randomise(router.params(), 2, 0.8);
  return router;
}

Table random_table(Index tokens) {
  Router<double>::Table table;
  noisy_router().route(random_matrix<double>(tokens, 3, 3), {.noise_seed = 4}, table);
  return table;
}

/// In place of every value that a loss may read, what it could be differentiated by.
std::pair<Matrix<double>*, const Matrix<double>*> tensors_of(Table& table, const Loss& loss,
                                                             int which) {
  switch (which) {
    case 0:
      return {&table.weight, &loss.gradient.weight};
    case 1:
      return {&table.probs, &loss.gradient.probs};
    default:
      return {&table.logits, &loss.gradient.logits};
  }
}

TEST(Loss, LoadBalancingIsExpertsTimesSumOfFractionTimesMeanProbability) {
  // f = (2, 1, 2) / 6 (an unused choice counts for nobody), P = (1.3, 0.6, 1.1) / 3
  const double sum = (2 * 1.3 + 1 * 0.6 + 2 * 1.1) / 6 / 3;
  EXPECT_NEAR(load_balancing_loss(tiny_table()).value, 3 * sum, 1e-15);
  EXPECT_NEAR(hugging_face_load_balancing_loss(tiny_table()).value, 2 * 3 * sum, 1e-15);
}

TEST(Loss, GShardCountsFirstChoicesOnly) {
  EXPECT_NEAR(gshard_loss(tiny_table()).value, (2.0 / 3 * 1.3 / 3 + 1.0 / 3 * 1.1 / 3) / 3, 1e-15);
}

TEST(Loss, ImportanceIsTheSquaredVariationOfSummedWeights) {
  // importance = (1.3, 0.4, 1.3): mean 1, sample variance (0.09 + 0.36 + 0.09) / 2
  EXPECT_NEAR(importance_loss(tiny_table()).value, 0.27, 1e-15);
}

TEST(Loss, ZIsTheMeanSquareOfTheLogSumExp) {
  const double a = std::log(3.0), b = std::log(4.0), c = 1.0 + std::log(3.0);
  EXPECT_NEAR(z_loss(tiny_table()).value, (a * a + b * b + c * c) / 3, 1e-15);
}

TEST(Loss, LoadIsTheSquaredVariationOfTheProbabilitiesToBeChosenAgain) {
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

TEST(Loss, HasItsKnownValueWhenBalanced) {
  for (const Index top_k : {1, 2, 4}) {
    const Table table = balanced_table(4, top_k);
    EXPECT_NEAR(load_balancing_loss(table).value, 1.0, 1e-15);
    EXPECT_NEAR(hugging_face_load_balancing_loss(table).value, static_cast<double>(top_k), 1e-14);
    EXPECT_NEAR(gshard_loss(table).value, 1.0 / 16, 1e-15);
    EXPECT_NEAR(importance_loss(table).value, 0.0, 1e-15);
    EXPECT_NEAR(load_loss(table).value, 0.0, 1e-15);
    EXPECT_NEAR(z_loss(table).value, std::pow(std::log(4.0) + 0.75, 2), 1e-14);
  }
}

TEST(Loss, GrowsWhenOneExpertTakesAll) {
  Table table = balanced_table(4, 1);
  table.expert.setZero();
  table.probs.setZero();
  table.probs.col(0).setOnes();
  EXPECT_NEAR(load_balancing_loss(table).value, 4.0, 1e-14) << "the number of experts";
  EXPECT_NEAR(importance_loss(table).value, 4.0, 1e-14);
}

TEST(Loss, WithAMaskIsThatOfTheOtherTokensAndGivesMaskedOnesNoGradient) {
  const Table table = random_table(9);
  const std::vector<std::uint8_t> mask = {1, 0, 1, 1, 0, 0, 1, 1, 0};
  const Table kept = kept_rows(table, mask);
  for (const Named& named : all_losses) {
    const Loss masked = named.loss(table, mask), expected = named.loss(kept, {});
    EXPECT_NEAR(masked.value, expected.value, 1e-14) << named.name;
    const auto compare = [&](const Matrix<double>& got, const Matrix<double>& want) {
      Index row = 0;
      for (Index t = 0; got.size() > 0 && t < got.rows(); ++t) {
        if (mask[static_cast<std::size_t>(t)] == 0) {
          EXPECT_TRUE(got.row(t).isZero(0)) << named.name;
        } else {
          EXPECT_TRUE(matrix_near(got.row(t), want.row(row++), 1e-13)) << named.name;
        }
      }
    };
    compare(masked.gradient.weight, expected.gradient.weight);
    compare(masked.gradient.probs, expected.gradient.probs);
    compare(masked.gradient.logits, expected.gradient.logits);
    compare(masked.gradient.noise_scale, expected.gradient.noise_scale);
  }
}

TEST(Loss, OverNoTokensIsZero) {
  const Table table = random_table(4), empty = random_table(0);
  const std::vector<std::uint8_t> nobody(4, 0);
  for (const auto& [name, function] : all_losses) {
    EXPECT_EQ(function(empty, {}).value, 0.0) << name;
    const Loss loss = function(table, nobody);
    EXPECT_EQ(loss.value, 0.0) << name;
    for (const Matrix<double>* m : {&loss.gradient.weight, &loss.gradient.probs,
                                    &loss.gradient.logits, &loss.gradient.noise_scale}) {
      EXPECT_TRUE(m->isZero(0)) << name;
    }
  }
}

TEST(Loss, ThrowsOnAMaskOfAnotherLength) {
  const std::vector<std::uint8_t> mask(3, 1);
  for (const auto& [name, function] : all_losses) {
    EXPECT_THROW(function(random_table(4), mask), std::invalid_argument) << name;
  }
}

TEST(Loss, ThrowsWhereTheTableLacksWhatItReads) {
  for (const auto& [name, function] : all_losses) {
    Table table = random_table(4);
    table.probs.resize(0, 0);
    table.logits.resize(0, 0);
    EXPECT_THROW(function(table, {}), std::invalid_argument) << name;
  }
  Table table = random_table(4);
  table.expert(1, 0) = static_cast<ExpertId>(table.probs.cols());
  EXPECT_THROW(importance_loss(table), std::invalid_argument);
  EXPECT_THROW(load_balancing_loss(table), std::invalid_argument);
}

TEST(Loss, IsNotAddedToThatOfATableOfAnotherShape) {
  Loss sum = z_loss(random_table(4));
  const double value = sum.value;
  EXPECT_THROW(sum += z_loss(random_table(5)), std::invalid_argument);
  EXPECT_EQ(sum.value, value);
}

TEST(Loss, IsNotLostInTheRoundingOfManyTokensAndExperts) {
  RoutingTable<float> table;
  table.expert.setZero(4096, 1);
  table.probs.setConstant(4096, 4096, 1.0f / 4096);  // each of 2^24 terms is 2^-24
  EXPECT_EQ(load_balancing_loss(table).value, 1.0f);
}

TEST(Loss, OfLoadIsFiniteWhereTheNoiseHasNoWidth) {
  Table table = random_table(4);
  table.clean_logits = table.logits;
  table.noise_scale.setZero();
  const Loss loss = load_loss(table);
  EXPECT_TRUE(std::isfinite(loss.value));
  EXPECT_TRUE(loss.gradient.logits.isZero(0));
  EXPECT_TRUE(loss.gradient.noise_scale.isZero(0));
}

TEST(Loss, OfLoadNeedsNoise) {
  Router<double>::Table table;
  noisy_router().route(random_matrix<double>(4, 3, 3), {}, table);
  EXPECT_THROW(load_loss<double>(table), std::invalid_argument);
}

TEST(Loss, HasTheDerivativesOfItsTable) {
  Table table = random_table(7);
  for (const Named& named : all_losses) {
    if (named.loss == all_losses[4].loss) {
      continue;  // its logits and its scale are not independent: see the test through the router
    }
    const Loss loss = named.loss(table, {});
    for (int which = 0; which < 3; ++which) {
      const auto [tensor, gradient] = tensors_of(table, loss, which);
      const auto f = [&] { return named.loss(table, {}).value; };
      EXPECT_LT(gradient_error(f, *tensor,
                               gradient->size() > 0
                                   ? *gradient
                                   : Matrix<double>::Zero(tensor->rows(), tensor->cols())),
                1e-7)
          << named.name << " " << which;
    }
  }
}

/// The worst error of x and the router's parameters, for a loss taken of its table.
double end_to_end_error(LossFunction function, Router<double> router, const CallOptions& call,
                        const std::vector<std::uint8_t>& token_mask) {
  Matrix<double> x = random_matrix<double>(6, 3, 21), dx(6, 3);
  Router<double>::Table table;
  router.route(x, call, table);
  Loss loss = function(table, token_mask);
  auto grads = zeros_like(router.params());
  router.backward(x, table, loss.gradient, dx, grads);
  const auto f = [&] {
    router.route(x, call, table);
    return function(table, token_mask).value;
  };
  return std::max(gradient_error(f, x, dx),
                  testing::gradient_error_of_list(f, router.params(), grads));
}

TEST(Loss, HasTheRightGradientThroughTheRouter) {
  ExpertMask layer_mask = ExpertMask::Ones(1, 5), token_mask = ExpertMask::Ones(6, 5);
  layer_mask(0, 3) = 0;
  token_mask.row(1).setZero();
  token_mask.row(2) << 0, 0, 1, 0, 0;  // fewer than top_k
  token_mask.row(4) << 1, 0, 1, 0, 0;  // as many
  const ExpertMask* masks[] = {nullptr, &layer_mask, &token_mask};
  for (const auto& [name, function] : all_losses) {
    for (const Score score : {Score::softmax, Score::sigmoid}) {
      for (const ExpertMask* mask : masks) {
        for (const auto& padding :
             {std::vector<std::uint8_t>{}, std::vector<std::uint8_t>{1, 1, 1, 0, 1, 1}}) {
          const CallOptions call{.num_threads = 1, .expert_mask = mask, .noise_seed = 8};
          EXPECT_LT(end_to_end_error(function, noisy_router(score), call, padding), 1e-7) << name;
        }
      }
    }
  }
}

TEST(Loss, OfLoadIsZeroWithAllExpertsChosen) {
  Router<double> all(3, 4, 4, {.noisy = true}, 9);
  Router<double>::Table table;
  all.route(random_matrix<double>(5, 3, 10), {.noise_seed = 11}, table);
  const Loss loss = load_loss<double>(table);
  EXPECT_EQ(loss.value, 0.0);
  EXPECT_TRUE(loss.gradient.logits.isZero(0));
}

TEST(Loss, IsScaledAndAddedLikeANumber) {
  const Table table = random_table(6);
  const Loss a = load_balancing_loss(table), b = z_loss(table), c = importance_loss(table);
  const Loss sum = 0.5 * a + 0.25 * b + c + 2.0 * a;
  EXPECT_NEAR(sum.value, 2.5 * a.value + 0.25 * b.value + c.value, 1e-14);
  EXPECT_TRUE(matrix_near(sum.gradient.probs, 2.5 * a.gradient.probs, 1e-14));
  EXPECT_TRUE(matrix_near(sum.gradient.logits, 0.25 * b.gradient.logits, 1e-14));
  EXPECT_TRUE(matrix_near(sum.gradient.weight, c.gradient.weight, 1e-14));
  EXPECT_EQ(sum.gradient.noise_scale.size(), 0);
  const Loss nothing = Loss{} + b;
  EXPECT_EQ(nothing.value, b.value);
  EXPECT_EQ(nothing.gradient.logits, b.gradient.logits);
}

TEST(Loss, IsNaNWhereTheRoutingIs) {
  Table table = random_table(4);
  table.probs(2, 1) = table.logits(2, 1) = table.weight(2, 0) = std::nan("");
  for (const auto& [name, function] : all_losses) {
    if (function != all_losses[4].loss) {
      EXPECT_TRUE(std::isnan(function(table, {}).value)) << name;
    }
  }
}

}  // namespace
}  // namespace moe
