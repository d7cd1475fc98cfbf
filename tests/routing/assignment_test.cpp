// SPDX-License-Identifier: Apache-2.0
// Assignment compared without tolerance: logits are integers times a power of two, so that their
// sums are exact in integers, with outliers counted apart. Small cases by trying all ways, larger
// ones by the Hungarian method.
#include "moe/routing/assignment.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "moe/detail/random.hpp"
#include "moe/routing/balanced_assignment.hpp"

namespace moe::assignment_test {
namespace {

/// A logit as outliers * 1e30 + small, whatever unit small has. All outliers weigh more than all
/// small ones together.
struct Exact {
  std::int64_t outliers = 0, small = 0;
  friend auto operator<=>(const Exact&, const Exact&) = default;
  Exact operator+(const Exact& o) const { return {outliers + o.outliers, small + o.small}; }
};

struct Case {
  Index tokens = 0, experts = 0;
  std::vector<Exact> value;           ///< (tokens, experts)
  std::vector<std::uint8_t> allowed;  ///< (tokens, experts)
  const Exact& at(Index t, Index e) const {
    return value[static_cast<std::size_t>(t * experts + e)];
  }
  bool may(Index t, Index e) const {
    return allowed[static_cast<std::size_t>(t * experts + e)] != 0;
  }
};

constexpr std::int64_t nan_logit = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t minus_infinity = nan_logit + 1, plus_infinity = nan_logit + 2;

template <class W>
W logit_of(const Exact& value, double unit) {
  if (value.small == nan_logit) {
    return std::numeric_limits<W>::quiet_NaN();
  }
  if (value.small <= plus_infinity) {
    const W infinity = std::numeric_limits<W>::infinity();
    return value.small == plus_infinity ? infinity : -infinity;
  }
  const double outlier = static_cast<double>(W(1e30)), units = static_cast<double>(value.small);
  return W(value.outliers != 0 ? static_cast<double>(value.outliers) * outlier : units * unit);
}

/// The expert of each token, by the rule itself.
template <class W>
std::vector<Index> assign(const Case& c, double unit) {
  GatedTable<W> table;
  table.logits.resize(c.tokens, c.experts);
  table.mask.resize(c.tokens, c.experts);
  for (Index t = 0; t < c.tokens; ++t) {
    for (Index e = 0; e < c.experts; ++e) {
      table.mask(t, e) = c.may(t, e) ? 1 : 0;
      table.logits(t, e) =
          c.may(t, e) ? logit_of<W>(c.at(t, e), unit) : -std::numeric_limits<W>::infinity();
    }
  }
  BalancedAssignment<W>({}).route({}, {.noise_seed = 1}, table);
  std::vector<Index> expert;
  for (Index t = 0; t < c.tokens; ++t) {
    expert.push_back(table.expert(t, 0));
  }
  return expert;
}

/// Puts what the rule takes them for in the place of infinities and NaN, of unit 1.
Case with_finite(Case c) {
  std::int64_t low = 0, high = 0;
  bool any = false;
  for (std::size_t i = 0; i < c.value.size(); ++i) {
    const std::int64_t v = c.value[i].small;
    if (c.allowed[i] != 0 && v > plus_infinity) {
      low = any ? (std::min)(low, v) : v;
      high = any ? (std::max)(high, v) : v;
      any = true;
    }
  }
  for (Exact& v : c.value) {
    v.small = v.small == nan_logit        ? 2 * low - high - 3
              : v.small == minus_infinity ? low - 1
              : v.small == plus_infinity  ? high + 1
                                          : v.small;
  }
  return c;
}

bool is_even(const Case& c, const std::vector<Index>& expert) {
  std::vector<Index> size(static_cast<std::size_t>(c.experts), 0);
  Index more = 0;
  for (const Index e : expert) {
    more += e != none && ++size[static_cast<std::size_t>(e)] == c.tokens / c.experts + 1 ? 1 : 0;
  }
  return more <= c.tokens % c.experts && std::all_of(size.begin(), size.end(), [&](Index s) {
           return s <= c.tokens / c.experts + 1;
         });
}

Exact sum_of(const Case& c, const std::vector<Index>& expert) {
  Exact sum;
  for (Index t = 0; t < c.tokens; ++t) {
    const Index e = expert[static_cast<std::size_t>(t)];
    sum = e == none ? sum : sum + c.at(t, e);
  }
  return sum;
}

/// The largest sum of all ways to give the same tokens an expert each.
Exact best_sum(const Case& c, const std::vector<Index>& like) {
  std::vector<Index> expert = like;
  for (Index& e : expert) {
    e = e == none ? e : 0;
  }
  Exact best{std::numeric_limits<std::int64_t>::min(), 0};
  for (bool more = true; more;) {
    bool valid = is_even(c, expert);
    for (Index t = 0; valid && t < c.tokens; ++t) {
      const Index e = expert[static_cast<std::size_t>(t)];
      valid = e == none || c.may(t, e);
    }
    if (valid) {
      best = (std::max)(best, sum_of(c, expert));
    }
    more = false;
    for (std::size_t t = 0; t < expert.size() && !more; ++t) {
      if (expert[t] != none) {
        expert[t] = (expert[t] + 1) % c.experts;
        more = expert[t] != 0;
      }
    }
  }
  return best;
}

/// Logits by draw(number in [0, 1)).
template <class Draw>
Case random_case(std::uint64_t seed, const Draw& draw, double masked = 0.0) {
  const detail::CounterRandom random(seed, 5);
  Case c;
  c.experts = 2 + static_cast<Index>(random.uniform(0) * 3.0);
  c.tokens = 1 + static_cast<Index>(random.uniform(1) * (c.experts == 4 ? 6.0 : 7.0));
  for (Index i = 0; i < c.tokens * c.experts; ++i) {
    const auto at = static_cast<std::uint64_t>(2 * i + 2);
    c.value.push_back(draw(random.uniform(at)));
    c.allowed.push_back(random.uniform(at + 1) < masked ? 0 : 1);
  }
  return c;
}

template <class W>
void expect_best(const Case& c, double unit, std::uint64_t seed) {
  const std::vector<Index> expert = assign<W>(c, unit);
  const Case finite = with_finite(c);
  EXPECT_TRUE(is_even(c, expert)) << "seed " << seed;
  EXPECT_TRUE(sum_of(finite, expert) == best_sum(finite, expert)) << "seed " << seed;
  EXPECT_EQ(assign<W>(c, unit), expert) << "seed " << seed;
}

Exact few_integers(double u) { return {0, static_cast<std::int64_t>(u * 8.0)}; }

TEST(Assignment, ReturnsForLogitsThatDifferByLittle) {
  const Matrix<float> z =
      (Matrix<float>(6, 3) << 5, 0, 2, 0, 4, 4, 3, 6, 6, 6, 6, 4, 7, 6, 1, 2, 4, 6).finished();
  GatedTable<float> table;
  table.logits = 1e-5F * z;
  BalancedAssignment<float>({}).route({}, {.noise_seed = 1}, table);
  float sum = 0.0F;
  for (Index t = 0; t < 6; ++t) {
    sum += z(t, table.expert(t, 0));
  }
  EXPECT_EQ(sum, 34.0F) << "each token has its best";
}

TEST(Assignment, IsTheBestWithTiesOfAnyUnit) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const Case c = random_case(seed, few_integers);
    for (const double unit : {1.0, 0x1p-17, 0x1p-60, 0x1p-149, 0x1p+120}) {
      expect_best<float>(c, unit, seed);
      expect_best<double>(c, unit, seed);
    }
    expect_best<double>(c, 0x1p-1074, seed);
    expect_best<double>(c, 0x1p+1019, seed);
  }
}

TEST(Assignment, IsTheBestByTheLastDigit) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const auto last_digits = [](std::int64_t most) {
      return [most](double u) { return Exact{0, most - 5 + static_cast<std::int64_t>(u * 11.0)}; };
    };
    expect_best<float>(random_case(seed, last_digits((1 << 24) - 6)), 0x1p-24, seed);
    expect_best<double>(random_case(seed, last_digits((1LL << 53) - 6)), 0x1p-53, seed);
    const auto all_digits = [](double u) {
      return Exact{0, static_cast<std::int64_t>(u * 0x1p+53) - (1LL << 52)};
    };
    expect_best<double>(random_case(seed, all_digits), 0x1p-52, seed);
  }
}

TEST(Assignment, IsTheBestOfTheRestBesideOutliers) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const auto some_outliers = [](double u) {
      return u < 0.1   ? Exact{1, 0}
             : u < 0.2 ? Exact{-1, 0}
                       : Exact{0, static_cast<std::int64_t>((u - 0.6) * 20.0)};
    };
    for (const double unit : {1.0, 0x1p-10, 0x1p-100, 0x1p-149}) {
      expect_best<float>(random_case(seed, some_outliers), unit, seed);
      expect_best<double>(random_case(seed, some_outliers), unit, seed);
    }
    expect_best<double>(random_case(seed, some_outliers), 0x1p-1074, seed);
  }
}

TEST(Assignment, IsTheBestWithMasks) {
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    const Case c = random_case(seed, few_integers, 0.4);
    expect_best<float>(c, 0x1p-17, seed);
    expect_best<double>(c, 0x1p-50, seed);
  }
}

TEST(Assignment, TakesInfinitiesForOneMoreAndNaNForLessThanAll) {
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    const auto special = [](double u) {
      return Exact{0, u < 0.1   ? nan_logit
                      : u < 0.2 ? minus_infinity
                      : u < 0.3 ? plus_infinity
                                : static_cast<std::int64_t>((u - 0.6) * 20.0)};
    };
    expect_best<float>(random_case(seed, special), 1.0, seed);
    expect_best<double>(random_case(seed, special, 0.2), 1.0, seed);
    expect_best<float>(random_case(seed,
                                   [](double u) {
                                     return Exact{0, u < 0.5 ? nan_logit : plus_infinity};
                                   }),
                       1.0, seed);
  }
}

/// The largest sum by the Hungarian method (Kuhn 1955, with potentials): N tokens, N places.
std::int64_t hungarian(const Case& c) {
  const auto n = static_cast<std::size_t>(c.tokens);
  const Index own = c.tokens / c.experts;
  const auto cost = [&](std::size_t row, std::size_t col) {
    return -c.at(static_cast<Index>(row) - 1, (static_cast<Index>(col) - 1) / own).small;
  };
  std::vector<std::int64_t> u(n + 1, 0), v(n + 1, 0);
  std::vector<std::size_t> row_of(n + 1, 0), way(n + 1, 0);
  for (std::size_t row = 1; row <= n; ++row) {
    std::vector<std::int64_t> least(n + 1, std::numeric_limits<std::int64_t>::max());
    std::vector<std::uint8_t> used(n + 1, 0);
    std::size_t col = 0;
    for (row_of[0] = row; row_of[col] != 0;) {
      used[col] = 1;
      std::int64_t delta = std::numeric_limits<std::int64_t>::max();
      std::size_t next = 0;
      for (std::size_t j = 1; j <= n; ++j) {
        if (used[j] == 0) {
          const std::int64_t reduced = cost(row_of[col], j) - u[row_of[col]] - v[j];
          if (reduced < least[j]) {
            least[j] = reduced;
            way[j] = col;
          }
          if (least[j] < delta) {
            delta = least[j];
            next = j;
          }
        }
      }
      for (std::size_t j = 0; j <= n; ++j) {
        if (used[j] != 0) {
          u[row_of[j]] += delta;
          v[j] -= delta;
        } else {
          least[j] -= delta;
        }
      }
      col = next;
    }
    for (; col != 0; col = way[col]) {
      row_of[col] = row_of[way[col]];
    }
  }
  std::int64_t sum = 0;
  for (std::size_t col = 1; col <= n; ++col) {
    sum -= cost(row_of[col], col);
  }
  return sum;
}

TEST(Assignment, IsWhatTheHungarianMethodFindsForLargerBatches) {
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    const detail::CounterRandom random(seed, 6);
    Case c;
    c.tokens = 64;
    c.experts = 8;
    const double range = seed % 3 == 0 ? 8.0 : seed % 3 == 1 ? 1000.0 : 0x1p+23;
    for (std::uint64_t i = 0; i < 64 * 8; ++i) {
      const double outlier = seed % 2 == 0 && i < 8 ? 0x1p+30 : 1.0;
      c.value.push_back({0, static_cast<std::int64_t>(range * random.uniform(i)) *
                                static_cast<std::int64_t>(outlier)});
      c.allowed.push_back(1);
    }
    const std::int64_t want = hungarian(c);
    for (const double unit : {1.0, 0x1p-40, 0x1p-100}) {
      EXPECT_EQ(sum_of(c, assign<float>(c, unit)).small, want) << seed;
      EXPECT_EQ(sum_of(c, assign<double>(c, unit)).small, want) << seed;
    }
  }
}

TEST(Assignment, AllocatesNothingMoreForLogitsOfAnotherRange) {
  GatedTable<double> table;
  table.logits.resize(6, 3);
  table.logits.setOnes();
  BalancedAssignment<double>({}).route({}, {.noise_seed = 1}, table);
  const std::size_t capacity = table.order.capacity();
  table.logits.setRandom();
  table.logits(2, 1) = 0x1p-1074;
  table.logits(4, 0) = 1e308;
  BalancedAssignment<double>({}).route({}, {.noise_seed = 1}, table);
  EXPECT_EQ(table.order.capacity(), capacity);
}

}  // namespace
}  // namespace moe::assignment_test
