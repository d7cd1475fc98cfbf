// SPDX-License-Identifier: Apache-2.0
// Counts by hand on tables of two choices.
#include "moe/train/expert_load.hpp"

#include <gtest/gtest.h>

#include "../support/throws.hpp"

namespace moe {
namespace {

RoutingTable<float> table_of(std::initializer_list<ExpertId> choices) {
  RoutingTable<float> table;
  table.expert.resize(static_cast<Index>(choices.size()) / 2, 2);
  table.weight.resize(table.expert.rows(), 2);
  std::copy(choices.begin(), choices.end(), table.expert.data());
  return table;
}

TEST(ExpertLoad, AddsUpTheChoicesOfTables) {
  ExpertLoad load(4);
  load.add(table_of({0, 1, 0, 2}));
  load.add(table_of({0, none}));
  EXPECT_EQ(load.choices(), (std::vector<Index>{3, 1, 1, 0}));
  EXPECT_EQ(load.total(), 5);
  EXPECT_DOUBLE_EQ(load.mean(), 1.25);
  EXPECT_DOUBLE_EQ(load.largest_over_mean(), 3 / 1.25);
  EXPECT_EQ(load.num_idle(), 1);
  EXPECT_NEAR(load.entropy(), -0.6 * std::log(0.6) - 0.4 * std::log(0.2), 1e-15);
  load.clear();
  EXPECT_EQ(load.total(), 0);
}

TEST(ExpertLoad, GoesOnFromItsChoices) {
  ExpertLoad load(std::vector<Index>{3, 0, 1});
  load.add(table_of({0, 1}));
  EXPECT_EQ(load.choices(), (std::vector<Index>{4, 1, 1}));
  EXPECT_EQ(testing::message_of([] {
              ExpertLoad(std::vector<Index>{1, -2});
            }),
            "ExpertLoad: -2 choices, expected at least 0");
  EXPECT_EQ(testing::message_of([] { ExpertLoad(std::vector<Index>()); }),
            "ExpertLoad: num_experts = 0, expected at least 1");
}

TEST(ExpertLoad, IsThatOfBalanceWhereAllHaveAsMuch) {
  ExpertLoad load(2);
  load.add(table_of({0, 1, 1, 0}));
  EXPECT_DOUBLE_EQ(load.largest_over_mean(), 1.0);
  EXPECT_DOUBLE_EQ(load.entropy(), std::log(2.0));
}

TEST(ExpertLoad, OfNothingIsNothing) {
  const ExpertLoad load(3);
  EXPECT_EQ(load.largest_over_mean(), 0.0);
  EXPECT_EQ(load.entropy(), 0.0);
  EXPECT_EQ(load.num_idle(), 3);
}

TEST(ExpertLoad, LeavesPaddingOut) {
  RoutingTable<float> table = table_of({0, 1, 2, 1});
  table.padding = {0, 1};
  ExpertLoad load(3);
  load.add(table);
  EXPECT_EQ(load.choices(), (std::vector<Index>{1, 1, 0}));
}

TEST(ExpertLoad, RefusesExpertsThatThereAreNotAndCountsNothingOfTheirTable) {
  ExpertLoad load(2);
  EXPECT_EQ(testing::message_of([&] {
              load.add(table_of({0, 1, 0, 2}));
            }),
            "ExpertLoad: expert 2, expected in [0, 2)");
  EXPECT_EQ(load.total(), 0);
  EXPECT_EQ(testing::message_of([] { ExpertLoad(0); }),
            "ExpertLoad: num_experts = 0, expected at least 1");
}

}  // namespace
}  // namespace moe
