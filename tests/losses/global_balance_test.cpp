// SPDX-License-Identifier: Apache-2.0
// Micro-batches against the one batch that they are: the mean of their losses is its loss, with its
// gradient, where each knows the choices of all.
#include "moe/losses/global_balance.hpp"

#include <gtest/gtest.h>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/throws.hpp"
#include "moe/losses/balance.hpp"
#include "tables.hpp"

namespace moe::global_balance_test {
namespace {

using testing::Loss;
using testing::matrix_near;
using testing::message_of;
using testing::noisy_router;
using testing::random_matrix;
using testing::random_table;
using testing::Table;

std::vector<Index> choices_of(const Table& table, const std::vector<std::uint8_t>& mask = {}) {
  std::vector<Index> choices(static_cast<std::size_t>(table.probs.cols()), 0);
  for (Index t = 0; t < table.num_tokens(); ++t) {
    const bool counts = mask.empty() || mask[static_cast<std::size_t>(t)] != 0;
    for (Index k = 0; counts && k < table.top_k(); ++k) {
      if (table.expert(t, k) != none) {
        ++choices[static_cast<std::size_t>(table.expert(t, k))];
      }
    }
  }
  return choices;
}

/// Tokens [begin, begin + size) of a table.
Table part_of(const Table& table, Index begin, Index size) {
  Table part;
  part.expert = table.expert.middleRows(begin, size);
  part.weight = table.weight.middleRows(begin, size);
  part.probs = table.probs.middleRows(begin, size);
  part.probs_sum_to_one = table.probs_sum_to_one;
  return part;
}

TEST(GlobalBalancingLoss, OfABatchWithItsOwnChoicesIsItsLoadBalancingLoss) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const Table table = random_table(12, score);
    const Loss want = load_balancing_loss(table);
    const Loss got = global_balancing_loss<double>(table, choices_of(table));
    EXPECT_NEAR(got.value, want.value, 1e-14);
    EXPECT_TRUE(matrix_near(got.gradient.probs, want.gradient.probs, 1e-14));
  }
}

TEST(GlobalBalancingLoss, ItsMeanOverMicroBatchesIsTheLossOfTheGlobalBatch) {
  const Table all = random_table(12, Score::sigmoid);
  const std::vector<Index> choices = choices_of(all);
  const Loss want = load_balancing_loss(all);
  double mean = 0.0, local = 0.0;
  Matrix<double> gradient(12, 5);
  for (Index begin = 0; begin < 12; begin += 4) {
    const Table part = part_of(all, begin, 4);
    const Loss loss = global_balancing_loss<double>(part, choices);
    mean += loss.value / 3;
    gradient.middleRows(begin, 4) = loss.gradient.probs / 3;
    local += load_balancing_loss(part).value / 3;
  }
  EXPECT_NEAR(mean, want.value, 1e-14);
  EXPECT_TRUE(matrix_near(gradient, want.gradient.probs, 1e-14));
  EXPECT_GT(std::abs(local - want.value), 1e-3) << "each by itself is not linear in the batch";
}

TEST(GlobalBalancingLoss, LetsEachMicroBatchHaveItsOwnExperts) {
  Table table = testing::balanced_table(4, 1);
  table.expert.setZero();
  table.probs.setZero();
  table.probs.col(0).setOnes();  // as the others have theirs
  EXPECT_NEAR(global_balancing_loss<double>(table, std::vector<Index>{8, 8, 8, 8}).value, 1.0,
              1e-15);
  EXPECT_NEAR(load_balancing_loss(table).value, 4.0, 1e-14);
}

TEST(GlobalBalancingLoss, IsTheMeanOverTokensThatAreNoPaddingAndAreNotMasked) {
  Table table = random_table(6);
  const std::vector<Index> choices = {3, 1, 4, 1, 5};
  const Loss want = global_balancing_loss<double>(part_of(table, 1, 3), choices);
  table.padding = {1, 0, 0, 0, 1, 0};
  table.probs.row(4).setConstant(std::nan(""));
  const std::vector<std::uint8_t> mask = {1, 1, 1, 1, 1, 0};
  const Loss got = global_balancing_loss<double>(table, choices, mask);
  EXPECT_NEAR(got.value, want.value, 1e-15);
  EXPECT_TRUE(matrix_near(got.gradient.probs.middleRows(1, 3), want.gradient.probs, 1e-15));
  for (const Index t : {0, 4, 5}) {
    EXPECT_TRUE(got.gradient.probs.row(t).isZero(0)) << t;
  }
}

TEST(GlobalBalancingLoss, HasTheRightGradientThroughTheRouter) {
  const std::vector<Index> choices = {30, 10, 40, 10, 50};
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    Router<double> router = noisy_router(score);
    Matrix<double> x = random_matrix<double>(6, 3, 21), dx(6, 3);
    Router<double>::Table table;
    const CallOptions call{.num_threads = 1, .noise_seed = 8};
    router.route(x, call, table);
    auto grads = zeros_like(router.params());
    Loss loss = global_balancing_loss<double>(table, choices);
    router.backward(x, table, loss.gradient, dx, grads);
    const auto f = [&] {
      router.route(x, call, table);
      return global_balancing_loss<double>(table, choices).value;
    };
    EXPECT_LT(testing::gradient_error(f, x, dx), 1e-7);
    EXPECT_LT(testing::gradient_error_of_list(f, router.params(), grads), 1e-7);
  }
}

TEST(GlobalBalancingLoss, OfNothingIsZero) {
  const Table table = random_table(3);
  EXPECT_EQ(global_balancing_loss<double>(table, std::vector<Index>(5, 0)).value, 0.0);
  const std::vector<std::uint8_t> nobody(3, 0);
  const Loss loss = global_balancing_loss<double>(table, std::vector<Index>(5, 7), nobody);
  EXPECT_EQ(loss.value, 0.0);
  EXPECT_TRUE(loss.gradient.probs.isZero(0));
  EXPECT_EQ(global_balancing_loss<double>(random_table(0), std::vector<Index>(5, 7)).value, 0.0);
}

TEST(GlobalBalancingLoss, HasTheSameBitsForAnyThreadCount) {
  const Table table = random_table(700, Score::sigmoid);
  const std::vector<Index> choices = choices_of(table);
  const Loss one = global_balancing_loss<double>(table, choices, {}, 1);
  detail::with_team(3, [&] {
    const Loss other = global_balancing_loss<double>(table, choices, {}, 3);
    EXPECT_EQ(other.value, one.value);
    EXPECT_TRUE(testing::same_bits(other.gradient.probs, one.gradient.probs));
  });
}

TEST(GlobalBalancingLoss, GoesByTheSharesOfCountsHoweverLarge) {
  const Table table = random_table(20);
  constexpr Index large = Index{1} << 62;  // three of them are no Index
  const Loss loss =
      global_balancing_loss<double>(table, std::vector<Index>{large, large, 0, large, large});
  const Loss want = global_balancing_loss<double>(table, std::vector<Index>{1, 1, 0, 1, 1});
  EXPECT_EQ(loss.value, want.value);
  EXPECT_TRUE(testing::same_bits(loss.gradient.probs, want.gradient.probs));
}

TEST(GlobalBalancingLoss, RefusesChoicesOfOtherExperts) {
  const Table table = random_table(3);
  EXPECT_EQ(message_of([&] { global_balancing_loss<double>(table, std::vector<Index>(4, 1)); }),
            "global_balancing_loss: there are 4 choices, expected one number for each of 5 "
            "experts");
  EXPECT_EQ(message_of([&] {
              global_balancing_loss<double>(table, std::vector<Index>{1, 2, 3, -4, 5});
            }),
            "global_balancing_loss: an expert has -4 choices, expected at least 0");
}

}  // namespace
}  // namespace moe::global_balance_test
