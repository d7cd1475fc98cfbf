// SPDX-License-Identifier: Apache-2.0
// Tests of the shares of work: together they are the whole, and nothing is done twice.
#include "moe/detail/part.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "moe/types.hpp"

namespace moe::detail::part_test {
namespace {

TEST(Part, SharesFollowEachOtherFromMultiplesOfTheStep) {
  for (const Index size : {0, 1, 7, 64, 65, 1000}) {
    for (const Index step : {1, 6, 64}) {
      for (const Index count : {1, 2, 3, 8, 77}) {
        Index end = 0;
        for (Index number = 0; number < count; ++number) {
          const Part part{number, count};
          ASSERT_EQ(part.begin(size, step), end) << size << ' ' << step << ' ' << count;
          ASSERT_TRUE(end % step == 0 || end == size);
          end = part.end(size, step);
        }
        ASSERT_EQ(end, size);
      }
    }
  }
}

TEST(Part, GivesEveryThreadSeveralParts) {
  EXPECT_EQ(parts_of_each(5, 1), 1) << "one thread needs no cuts";
  for (const Index pieces : {1, 2, 63, 64, 65, 5000}) {
    for (const int threads : {2, 3, 8}) {
      EXPECT_GE(pieces * parts_of_each(pieces, threads), 8 * threads) << pieces << ' ' << threads;
    }
  }
}

TEST(Part, IsLargeEnoughUnlessThatLeavesAThreadWithoutOne) {
  EXPECT_EQ(parts_of_each(1, 2, 0), 2);
  EXPECT_EQ(parts_of_each(1, 8, 3), 8);
  EXPECT_EQ(parts_of_each(1, 2, 5), 4) << "as many for each thread";
  EXPECT_EQ(parts_of_each(3, 2, 7), 7);
  EXPECT_EQ(parts_of_each(100, 2, 0), 1);
  for (const Index pieces : {1, 2, 63, 64, 65}) {
    EXPECT_EQ(parts_of_each(pieces, 2, 64), parts_of_each(pieces, 2)) << pieces;
    EXPECT_EQ(parts_of_each(pieces, 1, 64), 1) << pieces;
  }
}

TEST(ForParts, DoesEveryPartOfEveryPieceOnce) {
  for (const int threads : {1, 2, 8}) {
    for (const Index pieces : {0, 1, 3, 100}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(pieces) * 97);
      for_parts(pieces, threads, [&](Index piece, Part part, int worker) {
        ASSERT_LT(worker, threads);
        for (Index i = part.begin(97); i < part.end(97); ++i) {
          ++done[static_cast<std::size_t>(piece * 97 + i)];
        }
      });
      for (const std::atomic<int>& count : done) {
        ASSERT_EQ(count, 1);
      }
    }
  }
}

}  // namespace
}  // namespace moe::detail::part_test
