// SPDX-License-Identifier: Apache-2.0
// Tests of the selection: the order, its ties, NaN, and masks, by hand and against a stable sort.
#include "moe/kernels/topk.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "moe/detail/random.hpp"

namespace moe::kernels {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float inf = std::numeric_limits<float>::infinity();

using Experts = std::vector<ExpertId>;

Experts best(const std::vector<float>& value, Index k,
             const std::vector<std::uint8_t>& allowed = {}) {
  Experts chosen(static_cast<std::size_t>(k), 99);
  const Index count = top_k(value.data(), allowed.empty() ? nullptr : allowed.data(),
                            static_cast<Index>(value.size()), k, chosen.data());
  EXPECT_EQ(count, k - std::count(chosen.begin(), chosen.end(), none));
  return chosen;
}

TEST(TopK, PutsTheBestFirst) {
  EXPECT_EQ(best({0.1f, 0.7f, -3.0f, 0.5f}, 1), (Experts{1}));
  EXPECT_EQ(best({0.1f, 0.7f, -3.0f, 0.5f}, 2), (Experts{1, 3}));
  EXPECT_EQ(best({0.1f, 0.7f, -3.0f, 0.5f}, 4), (Experts{1, 3, 0, 2}));
}

TEST(TopK, BreaksTiesTowardsTheLowerExpert) {
  EXPECT_EQ(best({2, 2, 2, 2}, 3), (Experts{0, 1, 2}));
  EXPECT_EQ(best({1, 2, 1, 2}, 3), (Experts{1, 3, 0}));
  EXPECT_EQ(best({0.0f, -0.0f}, 2), (Experts{0, 1}));
  EXPECT_EQ(best({-0.0f, 0.0f}, 2), (Experts{0, 1})) << "zeros of both signs are one number";
}

TEST(TopK, RanksNanBelowEveryNumber) {
  EXPECT_EQ(best({nan, -inf, nan, 1.0f}, 2), (Experts{3, 1}));
  EXPECT_EQ(best({nan, -inf, nan, 1.0f}, 4), (Experts{3, 1, 0, 2}));
  EXPECT_EQ(best({nan, nan, nan}, 2), (Experts{0, 1})) << "NaNs tie";
}

TEST(TopK, RanksInfinitiesAsNumbers) {
  EXPECT_EQ(best({-inf, 0, inf, inf}, 4), (Experts{2, 3, 1, 0}));
}

TEST(TopK, NeverChoosesAMaskedExpert) {
  EXPECT_EQ(best({9, 8, 7, 6}, 2, {0, 1, 0, 1}), (Experts{1, 3}));
  EXPECT_EQ(best({9, nan, 7, 6}, 3, {0, 1, 0, 1}), (Experts{3, 1, none}));
  EXPECT_EQ(best({9, 8}, 2, {0, 0}), (Experts{none, none}));
}

TEST(TopK, AllowsAnyNonZeroMask) { EXPECT_EQ(best({1, 2}, 1, {255, 0}), (Experts{0})); }

TEST(TopK, AgreesWithAStableSortOnManyTies) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const detail::CounterRandom random(seed, 1);
    const auto num_experts = static_cast<std::size_t>(1 + seed % 70);
    std::vector<float> value;
    std::vector<std::uint8_t> allowed;
    Experts order;
    for (std::size_t e = 0; e < num_experts; ++e) {
      const double u = random.uniform(e);
      value.push_back(u < 0.1 ? nan : u < 0.15 ? -inf : static_cast<float>(random.bits(e) % 7));
      allowed.push_back(random.uniform(1000 + e) < 0.8);
      if (allowed.back() != 0) {
        order.push_back(static_cast<ExpertId>(e));
      }
    }
    const auto at = [&](ExpertId e) { return value[static_cast<std::size_t>(e)]; };
    std::stable_sort(order.begin(), order.end(), [&](ExpertId a, ExpertId b) {
      return std::isnan(at(b)) ? !std::isnan(at(a)) : at(a) > at(b);
    });
    order.resize(num_experts, none);
    for (std::size_t k = 1; k <= num_experts; ++k) {
      ASSERT_EQ(best(value, static_cast<Index>(k), allowed),
                Experts(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k)))
          << "seed " << seed;
    }
  }
}

TEST(RanksAbove, IsAStrictWeakOrder) {
  const std::vector<float> values{-inf, -1, -0.0f, 0, 1, inf, nan, -nan};
  const auto same = [](float a, float b) { return !ranks_above(a, b) && !ranks_above(b, a); };
  for (const float a : values) {
    EXPECT_FALSE(ranks_above(a, a));
    for (const float b : values) {
      EXPECT_FALSE(ranks_above(a, b) && ranks_above(b, a));
      for (const float c : values) {
        EXPECT_TRUE(!(ranks_above(a, b) && ranks_above(b, c)) || ranks_above(a, c));
        EXPECT_TRUE(!(same(a, b) && same(b, c)) || same(a, c));
      }
    }
  }
}

}  // namespace
}  // namespace moe::kernels
