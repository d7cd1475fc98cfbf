// SPDX-License-Identifier: Apache-2.0
// Numbers that tell objects apart, also where one stands in the place of another.
#include "moe/detail/identity.hpp"

#include <gtest/gtest.h>

#include <set>
#include <thread>
#include <vector>

namespace moe::detail::identity_test {
namespace {

TEST(Identity, IsANumberThatNoOtherObjectHas) {
  std::set<std::uint64_t> numbers;
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(numbers.insert(Identity().number()).second) << "they stand in the same place";
  }
}

TEST(Identity, OfACopyAndOfWhatIsAssignedToIsNew) {
  const Identity a;
  Identity b = a;
  EXPECT_NE(b.number(), a.number());
  const std::uint64_t before = b.number();
  b = a;
  EXPECT_NE(b.number(), a.number());
  EXPECT_NE(b.number(), before);
}

TEST(Owner, IsNobodyUntilItIsSetAndAfterItIsClearedOrMovedFrom) {
  const Identity layer, other;
  Owner a;
  EXPECT_FALSE(a.is(layer));
  a.set(layer);
  EXPECT_TRUE(a.is(layer) && !a.is(other));
  Owner b = std::move(a);
  EXPECT_TRUE(b.is(layer) && !a.is(layer));
  a = std::move(b);
  EXPECT_TRUE(a.is(layer) && !b.is(layer));
  const Owner copy = a;
  EXPECT_TRUE(a.is(layer) && copy.is(layer));
  a.clear();
  EXPECT_FALSE(a.is(layer));
}

TEST(Identity, IsDrawnByThreadsWithoutRepetition) {
  std::vector<std::vector<Identity>> drawn(4);
  std::vector<std::thread> threads;
  for (auto& own : drawn) {
    threads.emplace_back([&own] { own = std::vector<Identity>(1000); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::set<std::uint64_t> numbers;
  for (const auto& own : drawn) {
    for (const Identity& identity : own) {
      numbers.insert(identity.number());
    }
  }
  EXPECT_EQ(numbers.size(), 4000u);
}

}  // namespace
}  // namespace moe::detail::identity_test
