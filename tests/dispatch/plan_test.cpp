// SPDX-License-Identifier: Apache-2.0
// Tests of the layout of routed rows: small cases by hand, and properties of many random ones.
#include "moe/dispatch/plan.hpp"

#include <gtest/gtest.h>

#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"

namespace moe {
namespace {

using Ints = std::vector<Index>;
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// A table (N, K) from rows of choices; probs (N, E) of zeros.
RoutingTable<float> table_of(Index top_k, const std::vector<ExpertId>& expert, Index num_experts) {
  RoutingTable<float> table;
  table.expert = Eigen::Map<const Matrix<ExpertId>>(
      expert.data(), static_cast<Index>(expert.size()) / top_k, top_k);
  table.weight.setOnes(table.expert.rows(), top_k);
  table.probs.setZero(table.expert.rows(), num_experts);
  return table;
}

DispatchPlan plan_of(const RoutingTable<float>& table, Index num_experts,
                     const Capacity& capacity = {}, Index sequence_length = 0) {
  DispatchPlan plan;
  plan.build(table, num_experts, capacity, sequence_length);
  return plan;
}

Ints ints(std::span<const Index> values) { return {values.begin(), values.end()}; }
Ints slots(const DispatchPlan& plan) {
  return {plan.slot().data(), plan.slot().data() + plan.slot().size()};
}

TEST(DispatchPlan, GroupsAHandMadeTable) {
  const DispatchPlan plan = plan_of(table_of(2, {2, 0, 0, 1, 2, 1}, 4), 4);
  EXPECT_EQ(plan.num_experts(), 4);
  EXPECT_EQ(plan.num_rows(), 6);
  EXPECT_EQ(ints(plan.offset()), (Ints{0, 2, 4, 6, 6}));
  EXPECT_EQ(ints(plan.token()), (Ints{0, 1, 1, 2, 0, 2}));
  EXPECT_EQ(ints(plan.choice()), (Ints{1, 0, 1, 1, 0, 0}));
  EXPECT_EQ(slots(plan), (Ints{4, 0, 1, 2, 5, 3}));
  EXPECT_EQ(ints(plan.slots_of(1)), (Ints{1, 2}));
  EXPECT_EQ(plan.num_active(), 3);
  EXPECT_EQ(plan.num_dropped(), 0);
}

TEST(DispatchPlan, KeepsTokenOrderWithinAnExpert) {
  const DispatchPlan plan = plan_of(table_of(1, {1, 0, 1, 0, 1, 1}, 2), 2);
  EXPECT_EQ(ints(plan.token()), (Ints{1, 3, 0, 2, 4, 5}));
}

TEST(DispatchPlan, GivesAnUnusedChoiceNoRow) {
  const DispatchPlan plan = plan_of(table_of(2, {1, none, none, none, 0, 1}, 2), 2);
  EXPECT_EQ(slots(plan), (Ints{1, dropped, dropped, dropped, 0, 2}));
  EXPECT_EQ(ints(plan.token()), (Ints{2, 0, 2}));
  EXPECT_EQ(plan.num_dropped(), 0) << "unused is not dropped over capacity";
}

TEST(DispatchPlan, GivesAnExpertChosenTwiceTwoRows) {
  const DispatchPlan plan = plan_of(table_of(2, {0, 0, 0, 0}, 1), 1);
  EXPECT_EQ(slots(plan), (Ints{0, 1, 2, 3}));
  EXPECT_EQ(ints(plan.token()), (Ints{0, 0, 1, 1}));
}

TEST(DispatchPlan, IsEmptyWithoutTokens) {
  RoutingTable<float> table;
  table.expert.resize(0, 2);
  table.weight.resize(0, 2);
  table.probs.resize(0, 3);
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    const DispatchPlan plan = plan_of(table, 3, {.factor = 1.0, .policy = policy});
    EXPECT_EQ(plan.num_rows(), 0);
    EXPECT_EQ(plan.slot().rows(), 0);
    EXPECT_EQ(ints(plan.offset()), (Ints{0, 0, 0, 0}));
    EXPECT_TRUE(plan.tiles().empty());
    EXPECT_EQ(plan.num_active(), 0);
  }
}

TEST(DispatchPlan, CutsEachExpertIntoTilesOfEvenSize) {
  const Index full = DispatchPlan::tile_rows;
  std::vector<ExpertId> expert(static_cast<std::size_t>(2 * full + 1), 1);
  expert.insert(expert.end(), static_cast<std::size_t>(full), 3);
  const DispatchPlan plan = plan_of(table_of(1, expert, 5), 5);
  ASSERT_EQ(plan.tiles().size(), 4u);
  const auto is = [&](std::size_t tile, ExpertId e, Index begin, Index end) {
    const Tile& t = plan.tiles()[tile];
    return t.expert == e && t.begin == begin && t.end == end && t.rows() == end - begin;
  };
  const Index third = (2 * full + 1) / 3, two_thirds = 2 * (2 * full + 1) / 3;
  EXPECT_TRUE(is(0, 1, 0, third));
  EXPECT_TRUE(is(1, 1, third, two_thirds));
  EXPECT_TRUE(is(2, 1, two_thirds, 2 * full + 1));
  EXPECT_TRUE(is(3, 3, 2 * full + 1, 3 * full + 1));
  const auto range = [&](Index e) { return plan.tiles_of(e); };
  EXPECT_EQ(range(0), (std::pair<std::size_t, std::size_t>{0, 0}));
  EXPECT_EQ(range(1), (std::pair<std::size_t, std::size_t>{0, 3}));
  EXPECT_EQ(range(2), (std::pair<std::size_t, std::size_t>{3, 3}));
  EXPECT_EQ(range(3), (std::pair<std::size_t, std::size_t>{3, 4}));
  EXPECT_EQ(range(4), (std::pair<std::size_t, std::size_t>{4, 4}));
}

TEST(DispatchPlan, DropsTheLastByPosition) {
  const DispatchPlan plan = plan_of(table_of(1, {0, 1, 0, 0, 1}, 2), 2, {.rows = 2});
  EXPECT_EQ(slots(plan), (Ints{0, 2, 1, dropped, 3}));
  EXPECT_EQ(plan.dropped_of(0), 1);
  EXPECT_EQ(plan.dropped_of(1), 0);
  EXPECT_EQ(plan.kept(0), 2);
  EXPECT_EQ(plan.num_dropped(), 1);
}

TEST(DispatchPlan, DropsTheLeastProbable) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.2f, 0.9f, 0.1f, 0.8f;
  const DispatchPlan plan = plan_of(table, 1, {.rows = 2, .policy = DropPolicy::probability});
  EXPECT_EQ(slots(plan), (Ints{dropped, 0, dropped, 1})) << "the rest keep token order";
}

TEST(DispatchPlan, DropsTheLastAmongEqualProbabilities) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.5f, 0.2f, 0.5f, 0.5f;
  const DispatchPlan plan = plan_of(table, 1, {.rows = 2, .policy = DropPolicy::probability});
  EXPECT_EQ(slots(plan), (Ints{0, dropped, 1, dropped}));
}

TEST(DispatchPlan, DropsNanBeforeAnyNumber) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0}, 1);
  table.probs.col(0) << nan, 0.0f, nan, 0.1f;
  const Capacity capacity{.rows = 3, .policy = DropPolicy::probability};
  EXPECT_EQ(slots(plan_of(table, 1, capacity)), (Ints{0, 1, dropped, 2}));
}

TEST(DispatchPlan, CountsCapacityForEachSequence) {
  RoutingTable<float> table = table_of(1, {0, 0, 0, 0, 0, 0}, 1);
  table.probs.col(0) << 0.1f, 0.2f, 0.3f, 0.9f, 0.8f, 0.7f;
  EXPECT_EQ(slots(plan_of(table, 1, {.rows = 1}, 3)),
            (Ints{0, dropped, dropped, 1, dropped, dropped}));
  const Capacity by_probability{.rows = 1, .policy = DropPolicy::probability};
  EXPECT_EQ(slots(plan_of(table, 1, by_probability, 3)),
            (Ints{dropped, dropped, 0, 1, dropped, dropped}));
  EXPECT_EQ(plan_of(table, 1, {.rows = 1}, 2).num_rows(), 3);
  EXPECT_EQ(plan_of(table, 1, {.rows = 1}, 6).num_rows(), 1);
  EXPECT_EQ(plan_of(table, 1, {.rows = 1}, 1).num_rows(), 6);
}

TEST(DispatchPlan, TakesTheFactorOfTheSequenceLength) {
  // ceil(1.25 * 4 tokens * 1 choice / 2 experts) = 3 of each sequence.
  const DispatchPlan plan =
      plan_of(table_of(1, {0, 0, 0, 0, 0, 0, 0, 0}, 2), 2, {.factor = 1.25}, 4);
  EXPECT_EQ(plan.kept(0), 6);
}

TEST(DispatchPlan, DropsEverythingAtCapacityZero) {
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    const auto plan = plan_of(table_of(2, {0, 1, 1, 0}, 2), 2, {.rows = 0, .policy = policy});
    EXPECT_EQ(plan.num_rows(), 0);
    EXPECT_EQ(plan.num_dropped(), 4);
    EXPECT_TRUE(plan.tiles().empty());
  }
}

TEST(CapacityRows, FollowsItsFormula) {
  EXPECT_EQ(capacity_rows({.factor = 1.0}, 8, 4, 2), 4);
  EXPECT_EQ(capacity_rows({.factor = 1.0}, 9, 4, 1), 3) << "rounded up";
  EXPECT_EQ(capacity_rows({.factor = 100.0}, 8, 4, 2), 8) << "never more than tokens";
  EXPECT_EQ(capacity_rows({.rows = 7}, 3, 4, 2), 7);
  EXPECT_EQ(capacity_rows({}, 3, 4, 2), 3);
}

TEST(DispatchPlan, RejectsAnExpertOutOfRangeAndStaysAsItWas) {
  DispatchPlan plan = plan_of(table_of(2, {0, 1, 1, 0}, 2), 2);
  EXPECT_EQ(testing::message_of([&] {
              plan.build(table_of(2, {0, 1, 2, 0}, 2), 2);
            }),
            "DispatchPlan: expert of token 1 is 2, expected in [0, num_experts = 2)");
  EXPECT_EQ(plan.num_rows(), 4);
  EXPECT_EQ(slots(plan), slots(plan_of(table_of(2, {0, 1, 1, 0}, 2), 2)));
  EXPECT_EQ(testing::message_of([&] {
              plan.build(table_of(1, {0, -2}, 2), 2);
            }),
            "DispatchPlan: expert of token 1 is -2, expected in [0, num_experts = 2)");
  plan.build(table_of(1, {1, 0}, 2), 2);
  EXPECT_EQ(slots(plan), (Ints{1, 0})) << "and may be used again";
}

TEST(DispatchPlan, RejectsTablesAndLengthsThatDoNotFit) {
  DispatchPlan plan;
  RoutingTable<float> table = table_of(1, {0, 1, 1, 0}, 2);
  EXPECT_EQ(testing::message_of([&] { plan.build(table, 2, {}, 3); }),
            "DispatchPlan: sequence_length = 3, expected to divide the number of tokens = 4");
  EXPECT_EQ(testing::message_of([&] { plan.build(table, 2, {}, -1); }),
            "DispatchPlan: sequence_length = -1, expected to divide the number of tokens = 4");
  EXPECT_EQ(testing::message_of([&] { plan.build(table, 2, {.rows = -1}); }),
            "Capacity: rows = -1, expected at least 0");
  table.probs.resize(4, 3);
  const Capacity by_probability{.rows = 1, .policy = DropPolicy::probability};
  EXPECT_EQ(testing::message_of([&] { plan.build(table, 2, by_probability); }),
            "DispatchPlan: probs is (4, 3), expected (4, 2)");
  EXPECT_NO_THROW(plan.build(table, 2, {.rows = 1})) << "by position needs no probs";
  table.weight.resize(4, 2);
  EXPECT_EQ(testing::message_of([&] { plan.build(table, 2); }),
            "DispatchPlan: weight is (4, 2), expected (4, 1)");
}

/// Everything that holds for any table, against the obvious way of counting.
void expect_consistent(const RoutingTable<float>& table, Index num_experts,
                       const DispatchPlan& plan, Index limit_per_expert) {
  Ints requested(static_cast<std::size_t>(num_experts));
  Index used = 0;
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; k < table.top_k(); ++k) {
      const Index slot = plan.slot()(t, k);
      const ExpertId e = table.expert(t, k);
      if (e != none) {
        ++requested[static_cast<std::size_t>(e)];
      }
      if (slot == dropped) {
        continue;
      }
      ++used;
      ASSERT_EQ(plan.token()[static_cast<std::size_t>(slot)], t);
      ASSERT_EQ(plan.choice()[static_cast<std::size_t>(slot)], k);
      ASSERT_NE(e, none);
      ASSERT_GE(slot, plan.offset()[static_cast<std::size_t>(e)]);
      ASSERT_LT(slot, plan.offset()[static_cast<std::size_t>(e) + 1]);
    }
  }
  ASSERT_EQ(used, plan.num_rows());
  Index row = 0;
  for (const Tile& tile : plan.tiles()) {
    ASSERT_EQ(tile.begin, row) << "tiles follow each other";
    ASSERT_GT(tile.rows(), 0);
    ASSERT_LE(tile.rows(), DispatchPlan::tile_rows);
    row = tile.end;
  }
  ASSERT_EQ(row, plan.num_rows());
  for (Index e = 0; e < num_experts; ++e) {
    ASSERT_EQ(plan.kept(e) + plan.dropped_of(e), requested[static_cast<std::size_t>(e)]);
    ASSERT_LE(plan.kept(e), limit_per_expert);
    const auto [first, last] = plan.tiles_of(e);
    for (std::size_t i = first; i < last; ++i) {
      ASSERT_EQ(plan.tiles()[i].expert, e);
    }
    const Index begin = plan.offset()[static_cast<std::size_t>(e)];
    for (Index i = begin + 1; i < begin + plan.kept(e); ++i) {
      ASSERT_LE(plan.token()[static_cast<std::size_t>(i - 1)],
                plan.token()[static_cast<std::size_t>(i)]);
    }
  }
}

TEST(DispatchPlan, IsConsistentForRandomTables) {
  DispatchPlan plan;  // reused, so that nothing of an earlier table may remain
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const detail::CounterRandom random(seed, 2);
    std::uint64_t drawn = 0;
    const auto draw = [&](Index n) {
      return static_cast<Index>(random.bits(drawn++) % static_cast<std::uint64_t>(n));
    };
    const Index num_experts = 1 + draw(9), top_k = 1 + draw(4), length = 1 + draw(40);
    const Index num_sequences = 1 + draw(10);
    std::vector<ExpertId> expert;
    for (Index i = 0; i < length * num_sequences * top_k; ++i) {
      expert.push_back(static_cast<ExpertId>(draw(num_experts + 1) - 1));  // some are none
    }
    RoutingTable<float> table = table_of(top_k, expert, num_experts);
    table.probs = testing::random_matrix<float>(table.num_tokens(), num_experts, seed);
    for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
      const Index rows = draw(length);
      plan.build(table, num_experts, {.rows = rows, .policy = policy}, length);
      expect_consistent(table, num_experts, plan, rows * num_sequences);
    }
    plan.build(table, num_experts);
    expect_consistent(table, num_experts, plan, table.expert.size());
    ASSERT_EQ(plan.num_dropped(), 0);
  }
}

}  // namespace
}  // namespace moe
