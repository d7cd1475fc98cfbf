// SPDX-License-Identifier: Apache-2.0
// Tests of the work sharing: each item once, exceptions come out, nesting is serial, and no setting
// of OpenMP or Eigen is touched. Without OpenMP the same claims hold for one thread.
#include "moe/detail/parallel.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/types.hpp"

namespace moe::detail::parallel_test {
namespace {

TEST(ParallelFor, DoesEachItemOnceForAnyNumberOfThreads) {
  for (const int threads : {0, 1, 2, 3, 4, 5, 6, 7, 8, 70}) {
    for (const int items : {0, 1, 2, 7, 8, 9, 100}) {
      std::vector<int> done(static_cast<std::size_t>(items));
      std::atomic<bool> worker_in_range = true;
      parallel_for(items, threads, [&](std::ptrdiff_t item, int worker) {
        ++done[static_cast<std::size_t>(item)];
        if (worker < 0 || worker >= std::max(threads, 1)) {
          worker_in_range = false;
        }
      });
      EXPECT_EQ(done, std::vector<int>(static_cast<std::size_t>(items), 1)) << threads;
      EXPECT_TRUE(worker_in_range) << threads;
    }
  }
}

TEST(ParallelFor, GivesOneWorkerNumberToOneThreadAtATime) {
  std::vector<std::atomic<int>> inside(8);
  std::atomic<bool> alone = true;
  parallel_for(200, 8, [&](std::ptrdiff_t, int worker) {
    std::atomic<int>& mine = inside[static_cast<std::size_t>(worker)];
    if (mine.fetch_add(1) != 0) {
      alone = false;
    }
    mine.fetch_sub(1);
  });
  EXPECT_TRUE(alone) << "workers index scratch memory";
}

TEST(ParallelFor, ThrowsTheExceptionOfAnItem) {
  for (int threads = 1; threads <= 8; ++threads) {
    try {
      parallel_for(50, threads, [](std::ptrdiff_t item, int) {
        if (item == 17) {
          throw std::out_of_range("item 17");
        }
      });
      ADD_FAILURE() << "nothing thrown with " << threads << " threads";
    } catch (const std::out_of_range& error) {
      EXPECT_EQ(std::string(error.what()), "item 17");
    }
  }
}

TEST(ParallelFor, ThrowsOneOfManyExceptionsOfAnyType) {
  for (int threads = 1; threads <= 8; ++threads) {
    EXPECT_THROW(parallel_for(50, threads, [](std::ptrdiff_t item, int) { throw item; }),
                 std::ptrdiff_t);
  }
}

TEST(ParallelFor, LeavesOutItemsThatHadNotBegun) {
  for (const int threads : {1, 4}) {
    std::atomic<int> begun = 0;
    EXPECT_THROW(parallel_for(1000000, threads,
                              [&](std::ptrdiff_t, int) {
                                ++begun;
                                throw 0;
                              }),
                 int);
    EXPECT_LE(begun, threads);
  }
}

TEST(ParallelFor, WorksAgainAfterAnException) {
  EXPECT_THROW(parallel_for(5, 4, [](std::ptrdiff_t, int) { throw 0; }), int);
  std::atomic<int> count = 0;
  parallel_for(5, 4, [&](std::ptrdiff_t, int) { ++count; });
  EXPECT_EQ(count, 5);
}

TEST(ParallelFor, IsSerialInsideItself) {
  std::atomic<bool> serial = true;
  parallel_for(4, 4, [&](std::ptrdiff_t, int) {
    const int threads = num_threads(8);
    if (threads != 1) {
      serial = false;
    }
    std::ptrdiff_t next = 0;
    parallel_for(10, threads, [&](std::ptrdiff_t item, int worker) {
      if (item != next++ || worker != 0) {
        serial = false;
      }
    });
  });
#ifdef _OPENMP
  EXPECT_TRUE(serial);
#endif
}

TEST(ForBlocks, CutsAllOfACountIntoBlocksOfWhichTheLastMayBeShorter) {
  for (const int threads : {1, 3}) {
    for (const int count : {0, 1, 6, 7, 8, 21}) {
      std::vector<int> size_at(static_cast<std::size_t>(count)), want = size_at;
      for_blocks(count, 7, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t size) {
        size_at[static_cast<std::size_t>(begin)] += static_cast<int>(size);
      });
      for (int begin = 0; begin < count; begin += 7) {
        want[static_cast<std::size_t>(begin)] = (std::min)(7, count - begin);
      }
      EXPECT_EQ(size_at, want);
    }
  }
}

TEST(ForRows, DoesEachRowOnceInAnyNumberOfBlocks) {
  for (const int threads : {1, 3}) {
    for (const int rows : {0, 1, 31, 32, 33, 64, 100}) {
      std::vector<int> done(static_cast<std::size_t>(rows));
      for_rows(rows, threads, [&](std::ptrdiff_t row) { ++done[static_cast<std::size_t>(row)]; });
      EXPECT_EQ(done, std::vector<int>(static_cast<std::size_t>(rows), 1));
    }
  }
}

#ifdef _OPENMP
TEST(NumThreads, IsTheRequestOrTheDefaultOfOpenMpWithinTheQuota) {
  EXPECT_EQ(num_threads(5), 5);
  EXPECT_EQ(num_threads(0), default_threads(omp_get_max_threads(), read_cpu_quota(),
                                            std::getenv("OMP_NUM_THREADS")));
}

TEST(ParallelFor, IsSerialInsideTheCallersOwnRegion) {
  std::atomic<int> count = 0, max_threads = 0;
#pragma omp parallel num_threads(3)
  {
    max_threads = num_threads(0);
    parallel_for(10, num_threads(0), [&](std::ptrdiff_t, int) { ++count; });
  }
  EXPECT_EQ(max_threads, 1);
  EXPECT_EQ(count, 30);
}

TEST(ParallelFor, UsesAsManyThreadsAsRequested) {
  for (int threads = 2; threads <= 8; ++threads) {
    std::atomic<int> team = 0;
    parallel_for(100, threads, [&](std::ptrdiff_t, int) { team = omp_get_num_threads(); });
    EXPECT_EQ(team, threads);
  }
}

TEST(ParallelFor, ChangesNoSetting) {
  const auto settings = [] {
    return std::vector<int>{omp_get_max_threads(), omp_get_dynamic(), omp_get_max_active_levels(),
                            Eigen::nbThreads()};
  };
  const std::vector<int> before = settings();
  for (int threads = 1; threads <= 8; ++threads) {
    parallel_for(10, threads, [](std::ptrdiff_t, int) {});
    EXPECT_THROW(parallel_for(10, threads, [](std::ptrdiff_t, int) { throw 0; }), int);
  }
  EXPECT_EQ(settings(), before);
}
#else
TEST(NumThreads, IsOneWithoutOpenMp) {
  EXPECT_EQ(num_threads(5), 1);
  EXPECT_EQ(num_threads(0), 1);
}
#endif

TEST(NumThreads, IsOneForACallOfFewMultiplyAddsButInATeamThatOfTheTeam) {
  const int three = num_threads(3);
  EXPECT_EQ(num_threads(3, least_work - 1), 1);
  EXPECT_EQ(num_threads(0, 0.0), 1);
  EXPECT_EQ(num_threads(3, least_work), three);
  EXPECT_EQ(num_threads(1, 1e12), 1) << "a request is the most that a call has";
  EXPECT_THROW(num_threads(-1, 0.0), std::invalid_argument);
  with_team(three, [&] { EXPECT_EQ(num_threads(0, 0.0), three) << "they are awake"; });
}

TEST(MultiplyAdds, AreInfiniteForAPartThatStatesNone) {
  struct Says {
    double multiply_adds(std::ptrdiff_t rows) const { return 2.0 * static_cast<double>(rows); }
  };
  EXPECT_EQ(multiply_adds(Says(), 21), 42.0);
  EXPECT_EQ(multiply_adds(std::string(), 1), std::numeric_limits<double>::infinity());
}

TEST(WithTeam, RunsTheCallOnceAndItsLoopsOnAllThreads) {
  for (int threads = 1; threads <= 8; ++threads) {
    int calls = 0;
    std::vector<int> first(100), second(3);
    with_team(threads, [&] {
      ++calls;
      for (int again = 0; again < 50; ++again) {
        parallel_for(100, threads, [&](std::ptrdiff_t i, int) { first[std::size_t(i)] += 1; });
        // Reads what other items of the loop before it wrote.
        parallel_for(3, threads, [&](std::ptrdiff_t i, int) {
          second[std::size_t(i)] += first[99 - std::size_t(i)];
        });
      }
    });
    EXPECT_EQ(calls, 1);
    EXPECT_EQ(first, std::vector<int>(100, 50));
    EXPECT_EQ(second, std::vector<int>(3, 50 * 51 / 2));
  }
}

TEST(WithTeam, OfOneLeavesCallsWithinItOneThread) {
  for (const bool again : {false, true}) {
    with_team(1, [&] {
      EXPECT_EQ(num_threads(0), 1) << again;
      EXPECT_EQ(num_threads(4), 1) << again;
    });
    EXPECT_THROW(with_team(1, [] { throw std::domain_error("thrown"); }), std::domain_error);
  }
#ifdef _OPENMP
  EXPECT_EQ(num_threads(4), 4) << "and is over after it";
#endif
}

TEST(WithTeam, ThrowsWhatTheCallOrAnItemOfALoopThrows) {
  for (int threads = 1; threads <= 4; ++threads) {
    const auto call = [&](std::ptrdiff_t bad_item) {
      with_team(threads, [&] {
        parallel_for(20, threads, [&](std::ptrdiff_t item, int) {
          if (item == bad_item) {
            throw std::out_of_range("item");
          }
        });
        throw std::runtime_error("call");
      });
    };
    EXPECT_THROW(call(7), std::out_of_range);
    EXPECT_THROW(call(-1), std::runtime_error);
    int done = 0;
    with_team(threads, [&] { ++done; });
    EXPECT_EQ(done, 1) << "the next call starts afresh";
  }
}

TEST(WithTeam, IsSerialInsideAnItemAndTheSameRegionInsideACall) {
  std::atomic<int> most = 0;
  std::atomic<int> items = 0;
  const int threads = num_threads(4);
  with_team(threads, [&] {
    EXPECT_EQ(num_threads(0), threads);
    with_team(threads, [&] {
      parallel_for(8, threads, [&](std::ptrdiff_t, int) {
        most = std::max(most.load(), num_threads(0));
        parallel_for(5, 4, [&](std::ptrdiff_t, int) { ++items; });
      });
    });
    EXPECT_EQ(num_threads(0), threads);
  });
  EXPECT_EQ(most, 1);
  EXPECT_EQ(items, 40);
}

}  // namespace
}  // namespace moe::detail::parallel_test
