// SPDX-License-Identifier: Apache-2.0
// Counts by hand on tables of two choices.
#include "moe/train/expert_load.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "../support/throws.hpp"

namespace moe::expert_load_test {
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

TEST(ExpertLoad, LeavesOutWhatAMaskLeavesOut) {
  ExpertLoad load(3);
  const std::vector<std::uint8_t> mask = {0, 1};
  load.add(table_of({0, 1, 2, 1}), mask);
  EXPECT_EQ(load.choices(), (std::vector<Index>{0, 1, 1}));
  EXPECT_EQ(testing::message_of([&] {
              load.add(table_of({0, 1}), mask);
            }),
            "ExpertLoad: the mask has 2 elements, expected 1");
}

TEST(ExpertLoad, AddsWhatOthersCounted) {
  ExpertLoad load(3);
  load.add(table_of({0, 1, 2, 1}));
  load.add(std::vector<Index>{5, 0, 2});
  EXPECT_EQ(load.choices(), (std::vector<Index>{6, 2, 3}));
  EXPECT_EQ(testing::message_of([&] {
              load.add(std::vector<Index>{1, 2});
            }),
            "ExpertLoad: there are 2 numbers to add, expected one for each of 3 experts");
  EXPECT_EQ(testing::message_of([&] {
              load.add(std::vector<Index>{1, 2, -1});
            }),
            "ExpertLoad: choices = -1, expected in [0, 4611686018427387903]");
  EXPECT_EQ(load.total(), 11);
}

TEST(ExpertLoad, RefusesATotalThatItCouldNotCountUpFrom) {
  constexpr Index most = std::numeric_limits<Index>::max() / 2;
  ExpertLoad load(3);
  load.add(std::vector<Index>{0, most - 2, 1});
  EXPECT_EQ(testing::message_of([&] {
              load.add(std::vector<Index>{1, 0, 1});
            }),
            "ExpertLoad: 1 choices beside 4611686018427387903, expected at most "
            "4611686018427387903 together");
  EXPECT_EQ(testing::message_of([&] {
              load.add(std::vector<Index>{0, 0, std::numeric_limits<Index>::max()});
            }),
            "ExpertLoad: choices = 9223372036854775807, expected in [0, 4611686018427387903]");
  EXPECT_EQ(load.total(), most - 1);
  load.add(table_of({0, 1, 2, 2}));
  EXPECT_EQ(load.choices(), (std::vector<Index>{1, most - 1, 3}));
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
}  // namespace moe::expert_load_test
