// SPDX-License-Identifier: Apache-2.0
// Tests of the selection: the order, its ties, NaN, and masks, by hand and against a stable sort,
// in rows short and long.
#include "moe/kernels/topk.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moe/detail/random.hpp"

namespace moe::kernels::topk_test {
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

/// A row and its experts in order, best first, by a stable sort.
template <class T>
struct Row {
  std::vector<T> value;
  std::vector<std::uint8_t> allowed;  // empty: all
  Experts order() const {
    Experts experts;
    for (std::size_t e = 0; e < value.size(); ++e) {
      if (allowed.empty() || allowed[e] != 0) {
        experts.push_back(static_cast<ExpertId>(e));
      }
    }
    const auto at = [&](ExpertId e) { return value[static_cast<std::size_t>(e)]; };
    std::stable_sort(experts.begin(), experts.end(), [&](ExpertId a, ExpertId b) {
      return std::isnan(at(b)) ? !std::isnan(at(a)) : at(a) > at(b);
    });
    return experts;
  }
};

template <class T>
void expect_sorted(const Row<T>& row, std::initializer_list<std::size_t> ks) {
  const std::size_t num_experts = row.value.size();
  Experts order = row.order();
  const auto allowed = static_cast<Index>(order.size());
  order.resize(num_experts, none);
  for (const std::size_t k : ks) {
    if (k == 0 || k > num_experts) {
      continue;
    }
    Experts chosen(k + 1, 99);
    const Index count =
        top_k(row.value.data(), row.allowed.empty() ? nullptr : row.allowed.data(),
              static_cast<Index>(num_experts), static_cast<Index>(k), chosen.data());
    ASSERT_EQ(count, std::min(static_cast<Index>(k), allowed));
    ASSERT_EQ(chosen.back(), 99) << "written behind the end";
    chosen.pop_back();
    ASSERT_EQ(chosen, Experts(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k)))
        << k << " of " << num_experts;
  }
}

template <class T>
class TopKOf : public ::testing::Test {
 public:
  static constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  static constexpr T inf = std::numeric_limits<T>::infinity();
};
using Scalars = ::testing::Types<float, double, long double>;  // the last has no lanes
TYPED_TEST_SUITE(TopKOf, Scalars);

TYPED_TEST(TopKOf, AgreesWithAStableSortOnManyTies) {
  using T = TypeParam;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const detail::CounterRandom random(seed, 1);
    const auto num_experts = static_cast<std::size_t>(1 + seed % 199);
    const double rare = seed % 3 == 0 ? 0.0 : 0.1;
    Row<T> row;
    for (std::size_t e = 0; e < num_experts; ++e) {
      const double u = random.uniform(e);
      row.value.push_back(u < rare         ? this->nan
                          : u < 1.5 * rare ? -this->inf
                          : u < 1.6 * rare ? this->inf
                                           : static_cast<T>(random.bits(e) % 7));
      if (seed % 2 == 0) {
        row.allowed.push_back(random.uniform(1000 + e) < 0.8);
      }
    }
    expect_sorted(row, {1, 2, 3, 8, 17, 64, num_experts / 2, num_experts});
  }
}

TYPED_TEST(TopKOf, AgreesWithAStableSortInLongRows) {
  using T = TypeParam;
  for (const std::size_t num_experts :
       std::vector<std::size_t>{33, 63, 64, 65, 128, 256, 1000, 1025, 4095, 4096, 4097}) {
    const detail::CounterRandom random(num_experts, 2);
    Row<T> row, ascending, descending, levels, same;
    for (std::size_t e = 0; e < num_experts; ++e) {
      row.value.push_back(static_cast<T>(random.normal(e)));
      ascending.value.push_back(static_cast<T>(e));
      descending.value.push_back(-static_cast<T>(e));
      levels.value.push_back(static_cast<T>(random.bits(e) % 40));
      same.value.push_back(T(-1));
    }
    for (const Row<T>& r : {row, ascending, descending, levels, same}) {
      expect_sorted(r, {1, 2, 8, 64});
    }
    expect_sorted(levels, {num_experts});
    row.value[num_experts / 3] = row.value[num_experts / 2] = this->nan;
    row.allowed.assign(num_experts, 1);
    for (std::size_t e = 0; e < num_experts; e += 3) {
      row.allowed[e] = 0;  // whatever its value: masked rows need not hold -inf
    }
    expect_sorted(row, {1, 8, 64, num_experts});
  }
}

TYPED_TEST(TopKOf, ChoosesMinusInfinityBeforeNanWhenNothingElseIsLeft) {
  using T = TypeParam;
  for (const std::size_t num_experts : std::vector<std::size_t>{3, 40, 100}) {
    Row<T> row{std::vector<T>(num_experts, this->nan), {}};
    expect_sorted(row, {1, 8, num_experts});
    row.value[num_experts - 1] = row.value[1] = -this->inf;
    expect_sorted(row, {1, 2, 8, num_experts});
    row.value[2] = std::numeric_limits<T>::lowest();
    expect_sorted(row, {1, 2, 8, num_experts});
    row.allowed.assign(num_experts, 0);
    expect_sorted(row, {1, num_experts});
  }
}

TEST(TopK, ChoosesTheSameWhereverTheRowStands) {
  std::vector<float> memory(4096 + 16);
  for (const std::size_t num_experts : std::vector<std::size_t>{8, 40, 64, 100, 4096}) {
    const detail::CounterRandom random(num_experts, 3);
    std::vector<float> value;
    for (std::size_t e = 0; e < num_experts; ++e) {
      value.push_back(static_cast<float>(random.bits(e) % 1000));
    }
    const Experts want = best(value, 8);
    for (std::size_t shift = 0; shift < 16; ++shift) {
      std::fill(memory.begin(), memory.end(), inf);
      std::copy(value.begin(), value.end(), memory.begin() + static_cast<std::ptrdiff_t>(shift));
      Experts chosen(8);
      top_k(memory.data() + shift, nullptr, static_cast<Index>(num_experts), 8, chosen.data());
      EXPECT_EQ(chosen, want) << num_experts << " at " << shift;
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
}  // namespace moe::kernels::topk_test
