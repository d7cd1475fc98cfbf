// SPDX-License-Identifier: Apache-2.0
// Tests of the layout of routed rows: small cases by hand, and properties of many random ones.
#include "moe/dispatch/plan.hpp"

#include <gtest/gtest.h>

#include "support/laid_rows.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe::plan_test {
namespace {

using testing::Ints;
using testing::ints;
using testing::LaidRows;
using testing::no_row;
using testing::table_of;

TEST(DispatchPlan, GroupsAHandMadeTable) {
  const LaidRows rows(table_of(2, {2, 0, 0, 1, 2, 1}, 4), 4);
  EXPECT_EQ(rows.plan.num_experts(), 4);
  EXPECT_EQ(rows.plan.num_rows(), 6);
  EXPECT_EQ(ints(rows.plan.offset()), (Ints{0, 2, 4, 6, 6}));
  EXPECT_EQ(ints(rows.plan.token()), (Ints{0, 1, 1, 2, 0, 2}));
  EXPECT_EQ(ints(rows.plan.choice()), (Ints{1, 0, 1, 1, 0, 0}));
  EXPECT_EQ(rows.slots(), (Ints{4, 0, 1, 2, 5, 3}));
  EXPECT_EQ(ints(rows.plan.slots_of(1)), (Ints{1, 2}));
  EXPECT_EQ(rows.plan.num_active(), 3);
  EXPECT_EQ(rows.kept.num_dropped(), 0);
}

TEST(DispatchPlan, KeepsTokenOrderWithinAnExpert) {
  const LaidRows rows(table_of(1, {1, 0, 1, 0, 1, 1}, 2), 2);
  EXPECT_EQ(ints(rows.plan.token()), (Ints{1, 3, 0, 2, 4, 5}));
}

TEST(DispatchPlan, GivesAnUnusedChoiceNoRow) {
  const LaidRows rows(table_of(2, {1, none, none, none, 0, 1}, 2), 2);
  EXPECT_EQ(rows.slots(), (Ints{1, no_row, no_row, no_row, 0, 2}));
  EXPECT_EQ(ints(rows.plan.token()), (Ints{2, 0, 2}));
  EXPECT_EQ(rows.kept.num_dropped(), 0) << "unused is not dropped over capacity";
}

TEST(DispatchPlan, GivesAnExpertChosenTwiceTwoRows) {
  const LaidRows rows(table_of(2, {0, 0, 0, 0}, 1), 1);
  EXPECT_EQ(rows.slots(), (Ints{0, 1, 2, 3}));
  EXPECT_EQ(ints(rows.plan.token()), (Ints{0, 0, 1, 1}));
}

TEST(DispatchPlan, RefusesKeptChoicesOfAnotherTable) {
  LaidRows rows(table_of(2, {0, 1, 1, 0}, 2), 2);
  EXPECT_EQ(testing::message_of([&] {
              rows.plan.build(table_of(1, {0, 1, 1}, 2), rows.kept, 2);
            }),
            "DispatchPlan: kept are choices of 4 to 2 experts, expected of 3 to 2");
  EXPECT_EQ(rows.slots(), (Ints{0, 2, 3, 1})) << "and stays as it was";
}

TEST(DispatchPlan, IsEmptyWithoutTokens) {
  RoutingTable<float> table;
  table.expert.resize(0, 2);
  table.weight.resize(0, 2);
  table.probs.resize(0, 3);
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    const LaidRows rows(table, 3, {.factor = 1.0, .policy = policy});
    EXPECT_EQ(rows.plan.num_rows(), 0);
    EXPECT_EQ(rows.plan.num_tokens(), 0);
    EXPECT_EQ(ints(rows.plan.offset()), (Ints{0, 0, 0, 0}));
    EXPECT_EQ(rows.plan.num_active(), 0);
  }
}

TEST(DispatchPlan, TakesMemoryForTheRowsThatExistAndNotForTheChoicesThatCouldBe) {
  // Each of 50 tokens may choose all of 64 experts, and chooses two.
  std::vector<ExpertId> expert;
  for (Index token = 0; token < 50; ++token) {
    for (Index k = 0; k < 64; ++k) {
      expert.push_back(k == 3 || k == 60 ? static_cast<ExpertId>((token + k) % 64) : none);
    }
  }
  const LaidRows rows(table_of(64, expert, 64), 64);
  EXPECT_EQ(rows.plan.num_rows(), 100);
  EXPECT_EQ(rows.plan.token().size(), 100u);
  for (Index token = 0; token < 50; ++token) {
    ASSERT_EQ(rows.plan.slots_of(token).size(), 2u);
  }
}

/// Everything that holds for any table, against the obvious way of counting.
void expect_consistent(const RoutingTable<float>& table, Index num_experts, const LaidRows& rows,
                       Index limit_per_expert) {
  const DispatchPlan& plan = rows.plan;
  const Ints slots = rows.slots();
  Ints requested(static_cast<std::size_t>(num_experts));
  Index used = 0;
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; k < table.top_k(); ++k) {
      const Index slot = slots[static_cast<std::size_t>(t * table.top_k() + k)];
      const ExpertId e = table.expert(t, k);
      if (e != none) {
        ++requested[static_cast<std::size_t>(e)];
      }
      if (slot == no_row) {
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
  for (Index e = 0; e < num_experts; ++e) {
    ASSERT_EQ(plan.kept(e) + rows.kept.dropped_of(e), requested[static_cast<std::size_t>(e)]);
    ASSERT_LE(plan.kept(e), limit_per_expert);
    const Index begin = plan.offset()[static_cast<std::size_t>(e)];
    for (Index i = begin + 1; i < begin + plan.kept(e); ++i) {
      ASSERT_LE(plan.token()[static_cast<std::size_t>(i - 1)],
                plan.token()[static_cast<std::size_t>(i)]);
    }
  }
}

TEST(DispatchPlan, KnowsExpertsBeyondWhatAByteHolds) {
  const LaidRows rows(table_of(2, {511, 255, 256, 511}, 512), 512);
  EXPECT_EQ(rows.slots(), (Ints{2, 0, 1, 3}));
  EXPECT_EQ(rows.plan.kept(511), 2);
  EXPECT_EQ(rows.plan.num_active(), 3);
}

TEST(DispatchPlan, IsConsistentForRandomTables) {
  LaidRows laid;  // reused, so that nothing of an earlier table may remain
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
      laid.lay(table, num_experts, {.rows = rows, .policy = policy}, {.sequence_length = length});
      expect_consistent(table, num_experts, laid, rows * num_sequences);
    }
    laid.lay(table, num_experts);
    expect_consistent(table, num_experts, laid, table.expert.size());
    ASSERT_EQ(laid.kept.num_dropped(), 0);
  }
}

}  // namespace
}  // namespace moe::plan_test
