// SPDX-License-Identifier: Apache-2.0
// Selection within groups, by hand: each rule, what the other groups rank as, ties, masks, NaN.
#include "moe/routing/groups.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/throws.hpp"
#include "moe/routing/router.hpp"

namespace moe::groups_test {
namespace {

using testing::message_of;
using Experts = std::vector<ExpertId>;

const double nan_value = std::nan("");

Experts select(const GroupLimit& limit, std::vector<double> rank, Index top_k,
               const std::vector<std::uint8_t>& allowed = {}) {
  std::vector<double> score(rank.size());
  Experts expert(static_cast<std::size_t>(top_k));
  const TokenRoute<double> token{.num_experts = static_cast<Index>(rank.size()),
                                 .top_k = top_k,
                                 .allowed = allowed.empty() ? nullptr : allowed.data(),
                                 .expert = expert.data()};
  const Index count = TokenGroups<double>(limit, token, rank.data(), score.data()).select();
  EXPECT_EQ(std::count(expert.begin(), expert.end(), none), top_k - count);
  return expert;
}

constexpr auto zero = OtherGroups::zero;

TEST(Groups, OfTheBestExpertOrOfTheTwoBestTogetherAreNotTheSame) {
  const std::vector<double> rank{0.9, 0.0, 0.1, 0.6, 0.5, 0.0, 0.7, 0.1, 0.2};
  EXPECT_EQ(select({.num_groups = 3, .rule = GroupRule::best, .kept = 1}, rank, 2),
            (Experts{0, 2}));
  EXPECT_EQ(select({.num_groups = 3, .kept = 1}, rank, 2), (Experts{3, 4})) << "1.1, 1.0, 0.9";
  EXPECT_EQ(select({.num_groups = 3, .kept = 2}, rank, 4), (Experts{0, 3, 4, 2}));
  EXPECT_EQ(select({.num_groups = 3, .kept = 3}, rank, 3), (Experts{0, 6, 3})) << "no limit";
}

TEST(Groups, ThatAreOutAreChosenAsZeroOverNegativeRanksAndNeverAsMinusInfinity) {
  const std::vector<double> rank{-0.5, -0.3, -0.9, -0.8, 0.0, -0.7};
  EXPECT_EQ(select({.num_groups = 3, .kept = 1}, rank, 2), (Experts{4, 5})) << "the sum is -0.7";
  EXPECT_EQ(select({.num_groups = 3, .kept = 2}, rank, 3), (Experts{4, 1, 0}));
  EXPECT_EQ(select({.num_groups = 3, .kept = 1, .others = zero}, rank, 3), (Experts{0, 1, 2}))
      << "all of the other groups are 0, as expert 4, and lower";
  EXPECT_EQ(select({.num_groups = 3, .kept = 2, .others = zero}, rank, 3), (Experts{2, 3, 4}))
      << "all but the zeros are negative";
}

TEST(Groups, GiveTheirQuotaBestFirst) {
  const GroupLimit quota{.num_groups = 2, .rule = GroupRule::equal_quota};
  const std::vector<double> rank{0.9, 0.8, 0.7, 0.1, 0.3, 0.2};
  EXPECT_EQ(select(quota, rank, 2), (Experts{0, 4}));
  EXPECT_EQ(select(quota, rank, 4), (Experts{0, 1, 4, 5}));
  EXPECT_EQ(select(quota, {0.1, 0.3, 0.2, 0.9, 0.8, 0.7}, 4), (Experts{3, 4, 1, 2}));
  EXPECT_EQ(select(quota, rank, 4, {1, 0, 0, 1, 1, 1}), (Experts{0, 4, 5, none}))
      << "none takes the place of another group";
}

TEST(Groups, GiveTheFirstATie) {
  EXPECT_EQ(select({.num_groups = 3, .kept = 1}, {1, 2, 2, 1, 0, 3}, 2), (Experts{1, 0}));
  EXPECT_EQ(select({.num_groups = 2, .kept = 1, .others = zero}, {0, 0, 0, 0}, 3),
            (Experts{0, 1, 2}));
  EXPECT_EQ(select({.num_groups = 2, .rule = GroupRule::equal_quota}, {1, 1, 1, 1}, 2),
            (Experts{0, 2}));
}

TEST(Groups, DoNotCountMaskedExperts) {
  const GroupLimit one{.num_groups = 2, .kept = 1};
  EXPECT_EQ(select(one, {9, 1, 3, 4}, 2, {0, 1, 1, 1}), (Experts{3, 2})) << "1 against 7";
  EXPECT_EQ(select(one, {9, 8, 3, 4}, 2, {0, 1, 1, 1}), (Experts{1, none})) << "8 against 7";
  EXPECT_EQ(select(one, {9, 8, -3, -4}, 2, {0, 0, 1, 1}), (Experts{2, 3}));
  EXPECT_EQ(select(one, {9, 8, 3, 4}, 2, {0, 0, 0, 0}), (Experts{none, none}));
  EXPECT_EQ(select({.num_groups = 2, .kept = 1, .others = zero}, {-1, -1, -3, -3}, 3, {1, 1, 0, 1}),
            (Experts{3, 0, 1}));
}

TEST(Groups, RankNaNBelowEveryNumber) {
  const GroupLimit one{.num_groups = 2, .kept = 1};
  EXPECT_EQ(select(one, {nan_value, 9, -1, -2}, 2), (Experts{2, 3})) << "NaN + 9 is no number";
  EXPECT_EQ(select({.num_groups = 2, .rule = GroupRule::best, .kept = 1}, {nan_value, 9, 1, 2}, 2),
            (Experts{1, 0}));
  EXPECT_EQ(select(one, std::vector<double>(4, nan_value), 2), (Experts{0, 1}));
  EXPECT_EQ(select(one, std::vector<double>(4, nan_value), 2, {0, 0, 1, 1}), (Experts{2, 3}));
  EXPECT_EQ(
      select({.num_groups = 2, .rule = GroupRule::equal_quota}, {nan_value, 1, 2, nan_value}, 4),
      (Experts{2, 1, 0, 3}));
}

/// Routes one token with these logits, for which the bias of the gate stands.
Experts route(std::vector<double> logits, std::vector<double> selection_bias, Index top_k,
              RouterConfig config) {
  const auto row = [](std::vector<double>& values) -> Matrix<double> {
    return Eigen::Map<Matrix<double>>(values.data(), 1, static_cast<Index>(values.size()));
  };
  config.logits.bias = true;
  config.selection.bias = !selection_bias.empty();
  const RouterParams<double> params{{Matrix<double>::Zero(std::ssize(logits), 1), row(logits), {}},
                                    {row(selection_bias)}};
  Router<double>::Table table;
  Router<double>(params, top_k, config).route(Matrix<double>::Zero(1, 1), {}, table);
  return {table.expert.data(), table.expert.data() + top_k};
}

TEST(Groups, OfARouterRankByScoreAndBias) {
  const double L = std::log(3.0);  // its sigmoid is 3/4
  const RouterConfig sigmoid{.score = Score::sigmoid,
                             .selection = {.groups = GroupLimit{.num_groups = 2, .kept = 1}}};
  EXPECT_EQ(route({L, -L, 0, 0.1}, {}, 2, sigmoid), (Experts{3, 2})) << "1 against 1.02";
  EXPECT_EQ(route({L, -L, 0, 0.1}, {0, 0.1, 0, 0}, 2, sigmoid), (Experts{0, 1}));
  RouterConfig as_zero = sigmoid;
  as_zero.selection.groups->others = zero;
  const std::vector<double> low{-0.8, -0.9, -2.0, -2.0};  // every score + bias is negative
  EXPECT_EQ(route({L, -L, 0, 0}, low, 2, sigmoid), (Experts{0, 1}));
  EXPECT_EQ(route({L, -L, 0, 0}, low, 2, as_zero), (Experts{2, 3}));
}

TEST(Groups, OfACallThatAsksForOtherExpertsHaveToFit) {
  const Router<double> router(
      2, 4, 2,
      {.selection = {.groups = GroupLimit{.num_groups = 2, .rule = GroupRule::equal_quota}}}, 1);
  Router<double>::Table table;
  const Matrix<double> x = Matrix<double>::Ones(3, 2);
  EXPECT_NO_THROW(router.route(x, {.top_k = 4}, table));
  EXPECT_EQ(message_of([&] { router.route(x, {.top_k = 3}, table); }),
            "RouterConfig: top_k of the call = 3, expected a multiple of "
            "selection.groups.num_groups = 2");
}

}  // namespace
}  // namespace moe::groups_test
