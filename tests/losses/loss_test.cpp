// SPDX-License-Identifier: Apache-2.0
// What holds of every loss: masks, padding, no tokens, and its gradient, by central differences of
// the table and end to end through Router::backward. And losses as numbers.
#include "moe/losses/loss.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/losses.hpp"
#include "moe/routing/router.hpp"
#include "tables.hpp"

namespace moe::loss_test {
namespace {

using testing::gradient_error;
using testing::Loss;
using testing::matrix_near;
using testing::noisy_router;
using testing::random_matrix;
using testing::random_table;
using testing::Table;
using LossFunction = Loss (*)(const Table&, TokenMask);

struct Named {
  const char* name;
  LossFunction loss;
};
const Named all_losses[] = {
    {"load_balancing",
     [](const Table& table, TokenMask mask) { return load_balancing_loss(table, mask); }},
    {"hugging_face", [](const Table& table,
                        TokenMask mask) { return hugging_face_load_balancing_loss(table, mask); }},
    {"gshard", [](const Table& table, TokenMask mask) { return gshard_loss(table, mask); }},
    {"importance", [](const Table& table, TokenMask mask) { return importance_loss(table, mask); }},
    {"load", [](const Table& table, TokenMask mask) { return load_loss(table, mask); }},
    {"z", [](const Table& table, TokenMask mask) { return z_loss(table, mask); }}};

/// All losses in the form that writes into a result, in the same order.
using WriteLoss = void (*)(const Table&, Loss&, int num_threads);
const WriteLoss all_writes[] = {
    [](const Table& table, Loss& loss, int n) { load_balancing_loss(table, {}, loss, n); },
    [](const Table& table, Loss& loss, int n) {
      hugging_face_load_balancing_loss(table, {}, loss, n);
    },
    [](const Table& table, Loss& loss, int n) { gshard_loss(table, {}, loss, n); },
    [](const Table& table, Loss& loss, int) { importance_loss(table, {}, loss); },
    [](const Table& table, Loss& loss, int n) { load_loss(table, {}, loss, n); },
    [](const Table& table, Loss& loss, int n) { z_loss(table, {}, loss, n); }};

void expect_same_loss(const Loss& got, const Loss& want, const char* name) {
  EXPECT_TRUE(got.value >= want.value && got.value <= want.value) << name;
  RoutingGradient<double>::for_each(
      [&](std::string_view tensor, const auto& a, const auto& b) {
        EXPECT_TRUE(testing::same_bits(a, b)) << name << ", " << tensor;
      },
      got.gradient, want.gradient);
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
  kept.probs_sum_to_one = table.probs_sum_to_one;
  return kept;
}

/// In place of every value that a loss may read, what it could be differentiated by.
std::pair<GrowingMatrix<double>*, const GrowingMatrix<double>*> tensors_of(Table& table,
                                                                           const Loss& loss,
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

/// Holds every loss of the table against that of the rows which `counted` keeps, and to no gradient
/// at all of the others.
void expect_loss_of_counted(const Table& table, const std::vector<std::uint8_t>& mask,
                            const std::vector<std::uint8_t>& counted) {
  const Table kept = kept_rows(table, counted);
  for (const Named& named : all_losses) {
    const Loss masked = named.loss(table, mask), expected = named.loss(kept, {});
    EXPECT_NEAR(masked.value, expected.value, 1e-14) << named.name;
    const auto compare = [&](const Matrix<double>& got, const Matrix<double>& want) {
      Index row = 0;
      for (Index t = 0; got.size() > 0 && t < got.rows(); ++t) {
        if (counted[static_cast<std::size_t>(t)] == 0) {
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

TEST(Loss, WithAMaskIsThatOfTheOtherTokensAndGivesMaskedOnesNoGradient) {
  const std::vector<std::uint8_t> mask = {1, 0, 1, 1, 0, 0, 1, 1, 0};
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    expect_loss_of_counted(random_table(9, score), mask, mask);
  }
}

TEST(Loss, LeavesOutThePaddingOfItsTableAndWhatAMaskLeavesOut) {
  Table table = random_table(9);
  table.padding = {0, 1, 0, 0, 7, 0, 0, 0, 1};
  expect_loss_of_counted(table, {}, {1, 0, 1, 1, 0, 1, 1, 1, 0});
  const std::vector<std::uint8_t> all(9, 1), mask = {1, 1, 0, 1, 0, 1, 1, 0, 1};
  expect_loss_of_counted(table, all, {1, 0, 1, 1, 0, 1, 1, 1, 0});
  expect_loss_of_counted(table, mask, {1, 0, 0, 1, 0, 1, 1, 0, 0});
}

TEST(Loss, DoesNotReadWhatItLeavesOut) {
  const std::vector<std::uint8_t> counted = {1, 0, 1, 1, 0, 0, 1, 1, 0};
  Table table = random_table(9);
  for (GrowingMatrix<double>* m :
       {&table.weight, &table.probs, &table.logits, &table.clean_logits, &table.noise_scale}) {
    for (const Index t : {1, 4, 5, 8}) {
      m->row(t).setConstant(std::nan(""));
    }
  }
  expect_loss_of_counted(table, counted, counted);
  for (const std::uint8_t token : counted) {
    table.padding.push_back(token == 0 ? 1 : 0);
  }
  expect_loss_of_counted(table, {}, counted);
}

TEST(Loss, OfATableOfPaddingIsZero) {
  Table table = random_table(4);
  table.padding.assign(4, 1);
  expect_loss_of_counted(table, {}, {0, 0, 0, 0});
}

TEST(Loss, OverNoTokensIsZero) {
  const Table table = random_table(4), empty = random_table(0);
  const std::vector<std::uint8_t> nobody(4, 0);
  for (const auto& [name, function] : all_losses) {
    EXPECT_EQ(function(empty, {}).value, 0.0) << name;
    const Loss loss = function(table, nobody);
    EXPECT_EQ(loss.value, 0.0) << name;
    for (const GrowingMatrix<double>* m : {&loss.gradient.weight, &loss.gradient.probs,
                                           &loss.gradient.logits, &loss.gradient.noise_scale}) {
      EXPECT_TRUE(m->isZero(0)) << name;
    }
  }
}

TEST(Loss, OfChoicesOverATableWithNoneIsZeroAndDoesNotReadIt) {
  Table table = random_table(4);
  table.expert.resize(4, 0);
  table.weight.resize(4, 0);
  table.probs.setConstant(std::nan(""));
  table.clean_logits.setConstant(std::nan(""));
  table.noise_scale.setConstant(std::nan(""));
  for (const auto& [name, function] : all_losses) {
    const Loss loss = function(table, {});
    EXPECT_EQ(loss.value, function == all_losses[5].loss ? z_loss(random_table(4)).value : 0.0)
        << name;
    for (const GrowingMatrix<double>* m :
         {&loss.gradient.weight, &loss.gradient.probs, &loss.gradient.noise_scale}) {
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

TEST(Loss, ThrowsOnPaddingOfAnotherLength) {
  Table table = random_table(4);
  table.padding.assign(3, 0);
  for (const auto& [name, function] : all_losses) {
    EXPECT_THROW(function(table, {}), std::invalid_argument) << name;
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

void expect_derivatives(Table table) {
  for (const Named& named : all_losses) {
    if (named.loss == all_losses[4].loss) {
      continue;  // its logits and its scale are not independent: see the test through the router
    }
    const Loss loss = named.loss(table, {});
    for (int which = 0; which < 3; ++which) {
      const auto [tensor, gradient] = tensors_of(table, loss, which);
      const auto f = [&] { return named.loss(table, {}).value; };
      Matrix<double> want = Matrix<double>::Zero(tensor->rows(), tensor->cols());
      if (gradient->size() > 0) {
        want = *gradient;
      }
      EXPECT_LT(gradient_error(f, *tensor, want), 1e-7) << named.name << " " << which;
    }
  }
}

TEST(Loss, HasTheDerivativesOfItsTable) {
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    expect_derivatives(random_table(7, score));
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
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
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

TEST(Loss, WrittenIntoAResultReplacesWhatAnyLossLeftThere) {
  const Table large = random_table(9), small = random_table(4);
  for (const WriteLoss before : all_writes) {
    for (std::size_t i = 0; i < std::size(all_writes); ++i) {
      Loss loss;
      before(large, loss, 1);
      all_writes[i](small, loss, 1);
      expect_same_loss(loss, all_losses[i].loss(small, {}), all_losses[i].name);
    }
  }
}

TEST(Loss, HasTheSameBitsForAnyThreadCount) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    Table table = random_table(700, score);
    table.padding.assign(700, 0);
    table.padding[3] = table.padding[640] = 1;
    for (std::size_t i = 0; i < std::size(all_writes); ++i) {
      Loss one, many;
      all_writes[i](table, one, 1);
      for (const int threads : {2, 3, 8}) {
        detail::with_team(threads, [&] { all_writes[i](table, many, threads); });
        expect_same_loss(many, one, all_losses[i].name);
      }
    }
  }
}

TEST(Loss, ThatThrowsLeavesTheResultAsItWas) {
  Table broken = random_table(4);
  broken.padding.assign(3, 0);
  for (std::size_t i = 0; i < std::size(all_writes); ++i) {
    Loss loss = all_losses[i].loss(random_table(5), {});
    const Loss before = loss;
    EXPECT_THROW(all_writes[i](broken, loss, 1), std::invalid_argument);
    expect_same_loss(loss, before, all_losses[i].name);
  }
}

TEST(Loss, RefusesANegativeNumberOfThreads) {
  Loss loss;
  for (const std::size_t i : {0U, 1U, 2U, 4U, 5U}) {
    EXPECT_THROW(all_writes[i](random_table(4), loss, -1), std::invalid_argument);
  }
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
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    Table table = random_table(4, score);
    table.probs(2, 1) = table.logits(2, 1) = table.weight(2, 0) = std::nan("");
    for (const auto& [name, function] : all_losses) {
      if (function != all_losses[4].loss) {
        EXPECT_TRUE(std::isnan(function(table, {}).value)) << name;
      }
    }
  }
}

}  // namespace
}  // namespace moe::loss_test
