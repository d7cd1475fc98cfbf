// SPDX-License-Identifier: Apache-2.0
// Tests of who keeps its place: capacities of experts and sequences, and padding.
#include "moe/dispatch/capacity.hpp"

#include <gtest/gtest.h>

#include "support/laid_rows.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe::capacity_test {
namespace {

using testing::Ints;
using testing::ints;
using testing::LaidRows;
using testing::no_row;
using testing::table_of;
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

TEST(KeptChoices, DropsTheLastByPosition) {
  const LaidRows rows(table_of(1, {0, 1, 0, 0, 1}, 2), 2, {.rows = 2});
  EXPECT_EQ(rows.slots(), (Ints{0, 2, 1, no_row, 3}));
  EXPECT_EQ(rows.kept.dropped_of(0), 1);
  EXPECT_EQ(rows.kept.dropped_of(1), 0);
  EXPECT_EQ(rows.plan.kept(0), 2);
  EXPECT_EQ(rows.kept.num_dropped(), 1);
}

TEST(KeptChoices, DropsTheLeastProbable) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.2f, 0.9f, 0.1f, 0.8f;
  const LaidRows rows(table, 1, {.rows = 2, .policy = DropPolicy::probability});
  EXPECT_EQ(rows.slots(), (Ints{no_row, 0, no_row, 1})) << "the rest keep token order";
}

TEST(KeptChoices, DropsTheLastAmongEqualProbabilities) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.5f, 0.2f, 0.5f, 0.5f;
  const LaidRows rows(table, 1, {.rows = 2, .policy = DropPolicy::probability});
  EXPECT_EQ(rows.slots(), (Ints{0, no_row, 1, no_row}));
}

TEST(KeptChoices, DropsSecondChoicesBeforeFirstOnes) {
  const RoutingTable<float> table = table_of(2, {1, 0, 0, 1, 0, 1, 1, 0}, 2);
  const Capacity capacity{.rows = 3, .policy = DropPolicy::second_choices};
  const LaidRows rows(table, 2, capacity);
  // Expert 0 has the first choices of tokens 1 and 2, and then the second one of token 0.
  EXPECT_EQ(rows.slots(), (Ints{3, 0, 1, 4, 2, no_row, 5, no_row}));
}

TEST(KeptChoices, DropsByPriorityTheTokensWhoseFirstChoiceIsTheLeastProbable) {
  RoutingTable<float> table = table_of(2, {0, 1, 0, 1, 0, 1, 1, 0}, 2);
  table.probs << 0.6f, 0.4f, 0.9f, 0.1f, 0.7f, 0.3f, 0.2f, 0.8f;
  const Capacity capacity{.rows = 2, .policy = DropPolicy::second_choices_by_priority};
  const LaidRows rows(table, 2, capacity);
  // Expert 0: tokens 1 and 2. Expert 1: token 3, and of the second choices that of token 1.
  EXPECT_EQ(rows.slots(), (Ints{no_row, no_row, 0, 2, 1, no_row, 3, no_row}));
}

TEST(KeptChoices, DropsNanBeforeAnyNumber) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0}, 1);
  table.probs.col(0) << nan, 0.0f, nan, 0.1f;
  const Capacity capacity{.rows = 3, .policy = DropPolicy::probability};
  EXPECT_EQ(LaidRows(table, 1, capacity).slots(), (Ints{0, 1, no_row, 2}));
}

TEST(KeptChoices, CountsCapacityForEachSequence) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.1f, 0.2f, 0.3f, 0.9f, 0.8f, 0.7f;
  EXPECT_EQ(LaidRows(table, 1, {.rows = 1}, {.sequence_length = 3}).slots(),
            (Ints{0, no_row, no_row, 1, no_row, no_row}));
  const Capacity by_probability{.rows = 1, .policy = DropPolicy::probability};
  EXPECT_EQ(LaidRows(table, 1, by_probability, {.sequence_length = 3}).slots(),
            (Ints{no_row, no_row, 0, 1, no_row, no_row}));
  EXPECT_EQ(LaidRows(table, 1, {.rows = 1}, {.sequence_length = 2}).plan.num_rows(), 3);
  EXPECT_EQ(LaidRows(table, 1, {.rows = 1}, {.sequence_length = 6}).plan.num_rows(), 1);
  EXPECT_EQ(LaidRows(table, 1, {.rows = 1}, {.sequence_length = 1}).plan.num_rows(), 6);
}

TEST(KeptChoices, TakesTheFactorOfTheSequenceLength) {
  // ceil(1.25 * 4 tokens * 1 choice / 2 experts) = 3 of each sequence.
  const LaidRows rows(table_of(1, {0, 0, 0, 0, 0, 0, 0, 0}, 2), 2, {.factor = 1.25},
                      {.sequence_length = 4});
  EXPECT_EQ(rows.plan.kept(0), 6);
}

TEST(KeptChoices, DropsEverythingAtCapacityZero) {
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    const LaidRows rows(table_of(2, {0, 1, 1, 0}, 2), 2, {.rows = 0, .policy = policy});
    EXPECT_EQ(rows.plan.num_rows(), 0);
    EXPECT_EQ(rows.kept.num_dropped(), 4);
  }
}

TEST(CapacityRows, FollowsItsFormula) {
  EXPECT_EQ(capacity_rows({.factor = 1.0}, 8, 4, 2), 4);
  EXPECT_EQ(capacity_rows({.factor = 1.0}, 9, 4, 1), 3) << "rounded up";
  EXPECT_EQ(capacity_rows({.factor = 100.0}, 8, 4, 2), 8) << "never more than tokens";
  for (const double factor : {1e12, 1e30, 1e300}) {
    EXPECT_EQ(capacity_rows({.factor = factor}, 8, 4, 2), 8) << "nor more than an Index holds";
  }
  EXPECT_EQ(capacity_rows({.rows = 7}, 3, 4, 2), 7);
  EXPECT_EQ(capacity_rows({}, 3, 4, 2), 3);
}

TEST(KeptChoices, CountsTheCapacityOfSequencesOfAnyLengths) {
  const RoutingTable<float> table = table_of(1, {0, 0, 0, 0, 0, 0, 0}, 1);
  const Index offset[] = {0, 4, 4, 5, 7};
  const Tokens ragged{.sequence_offset = offset};
  EXPECT_EQ(LaidRows(table, 1, {.rows = 2}, ragged).slots(), (Ints{0, 1, no_row, no_row, 2, 3, 4}));
  // ceil(0.5 * tokens) of each: 2, 0, 1 and 1.
  EXPECT_EQ(LaidRows(table, 1, {.factor = 0.5}, ragged).slots(),
            (Ints{0, 1, no_row, no_row, 2, 3, no_row}));
}

TEST(KeptChoices, DropsNothingAtAHugeFactor) {
  const LaidRows rows(table_of(2, {0, 1, 1, 0, 1, 0}, 2), 2, {.factor = 1e12});
  EXPECT_EQ(rows.kept.num_dropped(), 0);
  EXPECT_EQ(rows.plan.num_rows(), 6);
}

TEST(KeptChoices, GivesPaddingNoRowAndNoCapacity) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.1f, nan, 0.3f, 0.2f, 9.0f, 0.4f;
  const std::uint8_t padding[] = {0, 1, 0, 0, 1, 0};
  const Tokens tokens{.padding = padding};
  EXPECT_EQ(LaidRows(table, 1, {}, tokens).slots(), (Ints{0, no_row, 1, 2, no_row, 3}));
  const LaidRows by_position(table, 1, {.rows = 3}, tokens);
  EXPECT_EQ(by_position.slots(), (Ints{0, no_row, 1, 2, no_row, no_row}));
  EXPECT_EQ(by_position.kept.num_dropped(), 1) << "padding is not dropped";
  const LaidRows by_probability(table, 1, {.rows = 2, .policy = DropPolicy::probability}, tokens);
  EXPECT_EQ(by_probability.slots(), (Ints{no_row, no_row, 0, no_row, no_row, 1}));
  // ceil(0.5 * 4 tokens): the batch without its padding has as much.
  EXPECT_EQ(LaidRows(table, 1, {.factor = 0.5}, tokens).plan.num_rows(), 2);
}

TEST(KeptChoices, RejectsAnExpertOutOfRangeAndStaysAsItWas) {
  LaidRows rows(table_of(2, {0, 1, 1, 0}, 2), 2, {.rows = 1});
  const Ints before = rows.slots();
  for (const ExpertId wrong : {2, -2}) {
    EXPECT_EQ(testing::message_of([&] {
                rows.kept.select(table_of(2, {0, 1, wrong, 0}, 2), 2, {}, {});
              }),
              "RoutingTable: expert of token 1 is " + std::to_string(wrong) +
                  ", expected in [0, num_experts = 2)");
  }
  EXPECT_EQ(rows.kept.num_dropped(), 2);
  EXPECT_EQ(rows.slots(), before);
  rows.lay(table_of(1, {1, 0}, 2), 2);
  EXPECT_EQ(rows.slots(), (Ints{1, 0})) << "and may be used again";
}

TEST(KeptChoices, RejectsTablesAndTokensThatDoNotFit) {
  KeptChoices kept;
  RoutingTable<float> table = table_of(1, {0, 1, 1, 0}, 2);
  const auto message = [&](const Capacity& capacity, const Tokens& tokens = {}) {
    return testing::message_of([&] { kept.select(table, 2, capacity, tokens); });
  };
  EXPECT_EQ(message({}, {.sequence_length = 3}),
            "Tokens: sequence_length = 3, expected to divide the number of tokens = 4");
  EXPECT_EQ(message({.rows = -1}), "Capacity: rows = -1, expected at least 0");
  table.probs.resize(4, 3);
  EXPECT_EQ(message({.rows = 1, .policy = DropPolicy::probability}),
            "RoutingTable: probs is (4, 3), expected (4, 2)");
  EXPECT_NO_THROW(kept.select(table, 2, {.rows = 1}, {})) << "by position needs no probs";
  table.weight.resize(4, 2);
  EXPECT_EQ(message({}), "RoutingTable: weight is (4, 2), expected (4, 1)");
}

}  // namespace
}  // namespace moe::capacity_test
