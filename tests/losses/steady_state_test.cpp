// SPDX-License-Identifier: Apache-2.0
// Losses that are written into the caller's result: batches that grow and shrink allocate nothing
// once the largest was seen, for any number of threads.
#include <gtest/gtest.h>

#include <vector>

#include "moe/losses.hpp"
#include "support/count_allocations.hpp"
#include "tables.hpp"

#if MOE_COUNTS_ALLOCATIONS
namespace moe::steady_state_test {
namespace {

using testing::Loss;
using testing::random_table;
using testing::Table;

constexpr Index most_tokens = 200;
constexpr Index batches[] = {most_tokens, 7, 8, 0, 64, 1, 199, most_tokens};

/// Allocations of calls for a table of each batch, after a first round of the same.
template <class Call>
long allocations_of_varying_batches(int threads, const Call& call) {
  std::vector<Table> tables;
  for (const Index tokens : batches) {
    tables.push_back(random_table(tokens));
    tables.back().padding.assign(static_cast<std::size_t>(tokens), 0);
  }
  const auto round = [&] {
    for (const Table& table : tables) {
      detail::with_team(threads, [&] { call(table); });
    }
  };
  round();
  return testing::count_allocations(round);
}

TEST(LossSteadyState, ALossWrittenIntoItsLastResultAllocatesNothing) {
  const std::vector<std::uint8_t> all(most_tokens, 1);
  const std::vector<Index> choices(static_cast<std::size_t>(random_table(1).probs.cols()), 3);
  for (const int threads : {1, 2}) {
    Loss balance, global, hugging_face, gshard, importance, load, z;
    EXPECT_EQ(allocations_of_varying_batches(
                  threads,
                  [&](const Table& table) {
                    const auto mask = TokenMask(all).first(std::size_t(table.num_tokens()));
                    load_balancing_loss(table, mask, balance);
                    global_balancing_loss(table, choices, mask, global);
                    hugging_face_load_balancing_loss(table, mask, hugging_face);
                    gshard_loss(table, mask, gshard);
                    importance_loss(table, mask, importance);
                    load_loss(table, mask, load);
                    z_loss(table, mask, z);
                  }),
              0)
        << threads;
  }
}

TEST(LossSteadyState, ASumOfLossesInOneOfThemAllocatesNothing) {
  Loss sum, z, load;
  EXPECT_EQ(allocations_of_varying_batches(1,
                                           [&](const Table& table) {
                                             load_balancing_loss(table, {}, sum);
                                             z_loss(table, {}, z);
                                             load_loss(table, {}, load);
                                             sum *= 0.01;
                                             z *= 0.001;
                                             sum += z;
                                             sum += load;
                                           }),
            0);
}

TEST(LossSteadyState, OneResultServesLossesOfEveryKindInTurn) {
  Loss loss;
  EXPECT_EQ(allocations_of_varying_batches(1,
                                           [&](const Table& table) {
                                             load_loss(table, {}, loss);
                                             load_balancing_loss(table, {}, loss);
                                             importance_loss(table, {}, loss);
                                             z_loss(table, {}, loss);
                                           }),
            0);
}

}  // namespace
}  // namespace moe::steady_state_test
#endif
