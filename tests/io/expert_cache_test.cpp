// SPDX-License-Identifier: Apache-2.0
// The cache of experts: resident bits with any number of slots, the hits of a simulated LRU, and
// faults that leave a layer that can be used.
#include "moe/io/expert_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <list>
#include <numeric>
#include <optional>
#include <system_error>
#include <thread>

#include "moe/layers/packed_layer.hpp"
#include "support/count_allocations.hpp"
#include "support/shelf.hpp"
#include "support/throws.hpp"

namespace moe::io::expert_cache_test {
namespace {

using moe::testing::Extents;
using moe::testing::make_layer;
using moe::testing::message_of;
using moe::testing::offloaded_config;
using moe::testing::random_matrix;
using moe::testing::same_bits;

using Layer = MoELayer<float, Router<float>, OffloadedExperts<q8>>;

/// A layer, its experts as a file would have them, and what they compute.
struct Case {
  PackedLayer<q8> packed = pack<q8>(make_layer<float>(offloaded_config(), 7));
  Extents<q8> extents{packed.experts()};

  static Matrix<float> x(Index tokens, std::uint64_t seed) {
    return random_matrix<float>(tokens, 37, seed);
  }
  Matrix<float> want(const Matrix<float>& input) const {
    Matrix<float> y(input.rows(), packed.d_out());
    PackedLayer<q8>::Scratch scratch;
    packed.forward(input, y, scratch);
    return y;
  }
  OffloadedExperts<q8> cached(const CacheOptions& options, ReadExpert read = {}) const {
    if (!read) {
      read = [this](ExpertId expert, std::span<std::byte> to) { extents.read(expert, to); };
    }
    return {extents.extent,
            std::make_unique<ExpertCache>(7, extents.bytes, std::move(read), options)};
  }
  /// Who gets rows.
  std::vector<ExpertId> experts_of(const Matrix<float>& input) const {
    Routed<float, Router<float>> routed;
    packed.route(input, {}, routed);
    return moe::testing::experts_with_rows(routed.plan.groups());
  }
};

/// Least recently used, in a list. Of a call first come the experts that are in memory.
class SimulatedLru {
 public:
  explicit SimulatedLru(std::size_t slots) : slots_(slots) {}

  void call(const std::vector<ExpertId>& experts) {
    std::vector<ExpertId> order = experts;
    std::stable_partition(order.begin(), order.end(), [&](ExpertId e) { return holds(e); });
    for (const ExpertId expert : order) {
      holds(expert) ? ++hits : ++misses;
      newest_first_.remove(expert);
      newest_first_.push_front(expert);
      if (newest_first_.size() > slots_) {
        newest_first_.pop_back();
      }
    }
  }
  bool holds(ExpertId expert) const {
    return std::find(newest_first_.begin(), newest_first_.end(), expert) != newest_first_.end();
  }

  std::uint64_t hits = 0, misses = 0;

 private:
  std::size_t slots_;
  std::list<ExpertId> newest_first_;
};

TEST(ExpertCache, GivesResidentBitsAndTheHitsOfAnLruWithAnyNumberOfSlots) {
  const Case c;
  for (Index slots = 1; slots <= 7; ++slots) {
    for (const int threads : {1, 3}) {
      const Layer layer = offload(c.packed, c.cached({.slots = slots, .threads = threads}));
      SimulatedLru lru(static_cast<std::size_t>(slots));
      Layer::Scratch scratch;
      for (std::uint64_t call = 0; call < 40; ++call) {
        const Matrix<float> x = Case::x(call % 5 == 4 ? 50 : static_cast<Index>(call % 3), call);
        Matrix<float> y(x.rows(), layer.d_out());
        layer.forward(x, y, scratch, {.num_threads = threads});
        lru.call(c.experts_of(x));
        ASSERT_TRUE(same_bits(y, c.want(x))) << slots << " slots, call " << call;
        ASSERT_EQ(layer.experts().counts().hits, lru.hits) << slots << " slots, call " << call;
        ASSERT_EQ(layer.experts().counts().misses, lru.misses);
      }
      EXPECT_EQ(layer.experts().counts().bytes, lru.misses * c.extents.bytes);
      EXPECT_EQ(layer.experts().bytes(), static_cast<std::size_t>(slots) * c.extents.bytes);
    }
  }
}

TEST(ExpertCache, WithAnErrorInAnyReadThrowsItLeavesYAndGoesOn) {
  const Case c;
  const Matrix<float> x = Case::x(50, 1), want = c.want(x);
  ASSERT_EQ(c.experts_of(x).size(), 7U);
  for (const Index slots : {1, 3, 7}) {
    for (int failing = 0; failing < 7; ++failing) {
      std::atomic<int> reads = 0;
      const Layer layer = offload(
          c.packed, c.cached({.slots = slots}, [&](ExpertId expert, std::span<std::byte> to) {
            c.extents.read(expert, to);
            if (reads++ == failing) {
              std::fill(to.begin(), to.begin() + 64, std::byte{0xFF});
              throw std::system_error(EIO, std::generic_category(), "expert");
            }
          }));
      const Matrix<float> before = Matrix<float>::Constant(50, layer.d_out(), 5.0F);
      Matrix<float> y = before;
      Layer::Scratch scratch;
      EXPECT_THROW(layer.forward(x, y, scratch, {.num_threads = 2}), std::system_error);
      EXPECT_TRUE(same_bits(y, before)) << slots << " slots, read " << failing;
      for (int again = 0; again < 2; ++again) {
        layer.forward(x, y, scratch, {.num_threads = 2});
        EXPECT_TRUE(same_bits(y, want)) << slots << " slots, read " << failing;
      }
    }
  }
}

TEST(ExpertCache, WithADiskThatIsGoneThrowsInEveryCallUntilItIsBack) {
  const Case c;
  std::atomic<bool> gone = true;
  const Layer layer =
      offload(c.packed, c.cached({.slots = 4}, [&](ExpertId expert, std::span<std::byte> to) {
        if (gone) {
          throw std::system_error(EIO, std::generic_category(), "expert");
        }
        c.extents.read(expert, to);
      }));
  Layer::Scratch scratch;
  const Matrix<float> x = Case::x(50, 1);
  Matrix<float> y(50, layer.d_out());
  for (int call = 0; call < 20; ++call) {
    EXPECT_THROW(layer.forward(x, y, scratch), std::system_error);
  }
  EXPECT_EQ(layer.experts().counts().bytes, 0U);
  gone = false;
  layer.forward(x, y, scratch);
  EXPECT_TRUE(same_bits(y, c.want(x)));
}

TEST(ExpertCache, KeepsPinnedExpertsAndReadsThemOnce) {
  const Case c;
  std::atomic<int> reads_of_2 = 0;
  const Layer layer = offload(c.packed, c.cached({.slots = 3, .pinned = {5, 2}},
                                                 [&](ExpertId expert, std::span<std::byte> to) {
                                                   reads_of_2 += expert == 2 ? 1 : 0;
                                                   c.extents.read(expert, to);
                                                 }));
  EXPECT_EQ(reads_of_2, 1);
  Layer::Scratch scratch;
  for (std::uint64_t call = 0; call < 10; ++call) {
    const Matrix<float> x = Case::x(20, call);
    Matrix<float> y(20, layer.d_out());
    layer.forward(x, y, scratch);
    EXPECT_TRUE(same_bits(y, c.want(x)));
  }
  EXPECT_EQ(reads_of_2, 1);
}

TEST(ExpertCache, ThrowsWhenMadeWhereAPinnedExpertCannotBeRead) {
  const Case c;
  const auto fail = [](ExpertId, std::span<std::byte>) {
    throw std::system_error(EIO, std::generic_category(), "expert");
  };
  EXPECT_THROW(c.cached({.slots = 3, .pinned = {5, 2}}, fail), std::system_error);
}

TEST(ExpertCache, FindsWhatAHintHadRead) {
  const Case c;
  const Matrix<float> x = Case::x(1, 1);
  const std::vector<ExpertId> wanted = c.experts_of(x);
  const Layer layer = offload(c.packed, c.cached({.slots = 4}));
  const auto hint = std::vector<ExpertId>{none, wanted.front(), wanted.back(), wanted.front()};
  layer.experts().prefetch(hint);
  Matrix<float> y(1, layer.d_out());
  Layer::Scratch scratch;
  layer.forward(x, y, scratch);
  EXPECT_TRUE(same_bits(y, c.want(x)));
  const StoreCounts counts = layer.experts().counts();
  EXPECT_EQ(counts.hits, wanted.size());
  EXPECT_EQ(counts.misses, 0U);
  EXPECT_EQ(counts.prefetched, wanted.size());
}

TEST(ExpertCache, TakesHintsForMoreThanFitAndWrongOnes) {
  const Case c;
  std::vector<ExpertId> all(7);
  std::iota(all.begin(), all.end(), ExpertId{0});
  for (const Index slots : {1, 2, 5}) {
    std::atomic<int> reads = 0;
    const Layer layer =
        offload(c.packed, c.cached({.slots = slots}, [&](ExpertId expert, std::span<std::byte> to) {
          if (reads++ % 5 == 4) {  // the hint's, or the call's
            throw std::system_error(EIO, std::generic_category(), "expert");
          }
          c.extents.read(expert, to);
        }));
    Layer::Scratch scratch;
    int good = 0;
    for (std::uint64_t call = 0; call < 60; ++call) {
      const Matrix<float> x = Case::x(static_cast<Index>(call % 4), call);
      Matrix<float> y(x.rows(), layer.d_out());
      layer.experts().prefetch(all);
      std::rotate(all.begin(), all.begin() + 3, all.end());
      try {
        layer.forward(x, y, scratch);
        ASSERT_TRUE(same_bits(y, c.want(x))) << slots << " slots, call " << call;
        ++good;
      } catch (const std::system_error&) {
      }
    }
    EXPECT_GT(good, 10) << slots;
  }
}

TEST(ExpertCache, LetsCallsOfSeveralThreadsTakeTurns) {
  const Case c;
  const Layer layer = offload(c.packed, c.cached({.slots = 2}));
  std::vector<std::thread> threads;
  std::atomic<int> same = 0;
  for (std::uint64_t number = 0; number < 4; ++number) {
    threads.emplace_back([&, number] {
      Layer::Scratch scratch;
      const Matrix<float> x = Case::x(20, number), want = c.want(x);
      const std::vector<ExpertId> hint{static_cast<ExpertId>(number)};
      for (int call = 0; call < 10; ++call) {
        Matrix<float> y(20, layer.d_out());
        layer.experts().prefetch(hint);
        layer.forward(x, y, scratch, {.num_threads = 1});
        same += same_bits(y, want) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(same, 40);
}

TEST(ExpertCache, MayEndWhileItReads) {
  const Case c;
  std::vector<ExpertId> all(7);
  std::iota(all.begin(), all.end(), ExpertId{0});
  for (int i = 0; i < 50; ++i) {
    const auto experts = c.cached({.slots = 7, .threads = 3});
    experts.prefetch(all);
  }
}

TEST(ExpertCache, RefusesOptionsThatCannotBe) {
  const Case c;
  EXPECT_EQ(message_of([&] { c.cached({.slots = 0}); }),
            "CacheOptions: slots = 0, expected at least 1 with 0 pinned of 7 experts");
  EXPECT_EQ(message_of([&] {
              c.cached({.slots = 2, .pinned = {1, 2}});
            }),
            "CacheOptions: slots = 2, expected at least 3 with 2 pinned of 7 experts");
  EXPECT_EQ(message_of([&] { c.cached({.slots = 3, .pinned = {7}}); }),
            "CacheOptions: pinned has 7, expected in [0, num_experts = 7)");
  EXPECT_EQ(message_of([&] {
              c.cached({.slots = 3, .pinned = {1, 1}});
            }),
            "CacheOptions: pinned has 1 twice, expected once");
  EXPECT_EQ(message_of([&] { c.cached({.slots = 3, .threads = 0}); }),
            "CacheOptions: threads = 0, expected at least 1");
}

#if MOE_COUNTS_ALLOCATIONS
TEST(ExpertCache, AllocatesItsSlotsOnceAndNothingInSteadyState) {
  const Case c;
  for (const Index slots : {1, 3}) {
    std::optional<OffloadedExperts<q8>> experts;
    const std::size_t bytes =
        moe::testing::count_bytes([&] { experts.emplace(c.cached({.slots = slots})); });
    const auto of_slots = static_cast<std::size_t>(slots) * c.extents.bytes;
    EXPECT_GE(bytes, of_slots);
    EXPECT_LE(bytes, of_slots + 16384);
    const Layer layer = offload(c.packed, std::move(*experts));
    Layer::Scratch scratch;
    const Matrix<float> x = Case::x(50, 1), other = Case::x(50, 2);
    Matrix<float> y(50, layer.d_out());
    layer.forward(x, y, scratch, {.num_threads = 2});
    EXPECT_EQ(moe::testing::count_allocations([&] {
                for (int i = 0; i < 20; ++i) {
                  layer.forward(i % 2 == 0 ? other : x, y, scratch, {.num_threads = 2});
                }
              }),
              0);
  }
}
#endif

}  // namespace
}  // namespace moe::io::expert_cache_test
