// SPDX-License-Identifier: Apache-2.0
// Tests of Lanes and for_lanes: each operation is the scalar one in every lane, and a row of any
// length is computed with the same bits, with nothing touched behind its end.
#include "moe/kernels/lanes.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "moe/experts/activation.hpp"

namespace moe::kernels::lanes_test {
namespace {

template <class T>
class LanesOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LanesOf, Scalars);

template <class T>
bool same_value(T a, T b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

/// Compares an operation of Lanes with that of scalars, on pairs of awkward values. Their products
/// are exact, so that it does not matter whether the compiler fuses the scalar ones with a sum.
template <class T, class OfLanes, class OfScalars>
void expect_same(OfLanes of_lanes, OfScalars of_scalars) {
  const T inf = std::numeric_limits<T>::infinity();
  const T values[] = {T(0),       T(-0.0), T(1.5), T(-2.25),
                      T(1 << 20), inf,     -inf,   std::numeric_limits<T>::quiet_NaN()};
  for (T a : values) {
    for (T b : values) {
      T result[Lanes<T>::size];
      of_lanes(Lanes<T>(a), Lanes<T>(b)).store(result);
      for (T lane : result) {
        EXPECT_TRUE(same_value(lane, of_scalars(a, b))) << a << ' ' << b << ": " << lane;
      }
    }
  }
}

TYPED_TEST(LanesOf, CalculateAsScalarsDo) {
  using T = TypeParam;
  const auto both = [](auto f) { expect_same<T>(f, f); };
  both([](auto a, auto b) { return a + b; });
  both([](auto a, auto b) { return a - b; });
  both([](auto a, auto b) { return a * b; });
  both([](auto a, auto b) { return a / b; });
  both([](auto a, auto) { return -a; });
  both([](auto a, auto b) { return where(a < b, a, -b); });
  both([](auto a, auto b) { return where(a <= b, a, -b); });
  both([](auto a, auto b) { return where(a > b, a, -b); });
  both([](auto a, auto b) { return where(a >= b, a, -b); });
  both([](auto a, auto b) { return where(a == b, a, -b); });
  both([](auto a, auto b) { return where((a < b) & (a == a), a, -b); });
  both([](auto a, auto b) { return madd(a, b, b); });
  expect_same<T>([](auto a, auto) { return abs(a); }, [](T a, T) { return std::abs(a); });
  expect_same<T>([](auto a, auto b) { return copysign(abs(a), b); },
                 [](T a, T b) { return std::isnan(a) ? a : std::copysign(a, b); });
}

TYPED_TEST(LanesOf, HaveALargestASmallestAndASum) {
  using T = TypeParam;
  T x[Lanes<T>::size];
  for (Index i = 0; i < Lanes<T>::size; ++i) {
    x[i] = T(-2) - static_cast<T>(i);
  }
  for (Index at = 0; at < Lanes<T>::size; ++at) {
    std::swap(x[0], x[at]);
    EXPECT_EQ(max_of(Lanes<T>::load(x)), T(-2)) << at;
    EXPECT_EQ(min_of(-Lanes<T>::load(x)), T(2)) << at;
    std::swap(x[0], x[at]);
  }
  EXPECT_EQ(sum_of(Lanes<T>::load(x)),
            T(-2 * Lanes<T>::size - Lanes<T>::size * (Lanes<T>::size - 1) / 2));
  T large[Lanes<T>::size], small[Lanes<T>::size];
  larger(Lanes<T>::load(x), Lanes<T>(-2.5)).store(large);
  smaller(Lanes<T>::load(x), Lanes<T>(-2.5)).store(small);
  for (Index i = 0; i < Lanes<T>::size; ++i) {
    EXPECT_EQ(large[i], std::max(x[i], T(-2.5)));
    EXPECT_EQ(small[i], std::min(x[i], T(-2.5)));
  }
}

TYPED_TEST(LanesOf, ArePaddedBehindTheEnd) {
  using T = TypeParam;
  const std::vector<T> row(static_cast<std::size_t>(Lanes<T>::size), T(3));
  for (Index n = 1; n < Lanes<T>::size; ++n) {
    for (const T pad : {T(0), T(-7), -std::numeric_limits<T>::infinity()}) {
      for_lanes<T>(n, [&](auto at) {
        T x[Lanes<T>::size];
        at.load(row.data(), pad).store(x);
        for (Index i = 0; i < Lanes<T>::size; ++i) {
          EXPECT_EQ(x[i], i < n ? T(3) : pad) << n;
        }
      });
    }
  }
}

TYPED_TEST(LanesOf, HaveOneValueEach) {
  using T = TypeParam;
  T x[Lanes<T>::size], result[Lanes<T>::size];
  for (Index i = 0; i < Lanes<T>::size; ++i) {
    x[i] = static_cast<T>(i) - T(1.5);
  }
  const Lanes<T> lanes = Lanes<T>::load(x);
  where(lanes < Lanes<T>(0), Lanes<T>(7), lanes * lanes).store(result);
  for (Index i = 0; i < Lanes<T>::size; ++i) {
    EXPECT_EQ(result[i], x[i] < 0 ? T(7) : x[i] * x[i]);
  }
}

// With act.value(z) + act.derivative(z), a product in a sum, GCC 12 fails this: it fuses the two in
// one copy of the body and not in the other. Hence the rule in lanes.hpp.
TYPED_TEST(LanesOf, GiveAnElementTheSameBitsInAnyRow) {
  using T = TypeParam;
  constexpr Index size = Lanes<T>::size, most = 3 * size;
  std::vector<T> x(static_cast<std::size_t>(most));
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<T>(3.0 * std::sin(1.0 + 2.3 * static_cast<double>(i)));
  }
  for (Activation kind : all_activations) {
    for (bool slope : {false, true}) {
      with_activation({.activation = kind}, [&](auto act) {
        const auto apply = [&](Index begin, Index n, T* to) {
          const T* from = x.data() + begin;
          for_lanes<T>(n, [&](auto at) {
            const auto z = at.load(from);
            at.store(to, slope ? act.derivative(z) : act.value(z));
          });
        };
        std::vector<T> whole(x.size());
        apply(0, most, whole.data());
        for (Index begin = 0; begin < size; ++begin) {
          for (Index n = 0; n <= 2 * size; ++n) {
            std::vector<T> row(static_cast<std::size_t>(n + 1), T(-77));
            apply(begin, n, row.data());
            const auto expected = whole.begin() + begin;
            EXPECT_TRUE(std::equal(row.begin(), row.end() - 1, expected)) << begin << ' ' << n;
            EXPECT_EQ(row.back(), T(-77)) << n;
          }
        }
      });
    }
  }
}

// A row of its exact size on the heap: the address sanitizer sees a read or write behind it.
template <class T>
void expect_inside_the_row() {
  for (Index n = 0; n <= 40; ++n) {
    std::vector<T> x(static_cast<std::size_t>(n), T(2)), y(static_cast<std::size_t>(n));
    for_lanes<float>(n,
                     [&](auto at) { at.store(y.data(), at.load(x.data()) * at.load(x.data())); });
    EXPECT_EQ(y, std::vector<T>(static_cast<std::size_t>(n), T(4)));
  }
}

TEST(ForLanes, StaysInsideTheRow) {
  expect_inside_the_row<float>();
  expect_inside_the_row<bf16>();
}

TEST(ForLanes, WorksInPlaceAndWidensNarrowScalars) {
  const Index n = Lanes<float>::size + 3;
  std::vector<Eigen::bfloat16> row(static_cast<std::size_t>(n), Eigen::bfloat16(1.5f));
  for_lanes<float>(n, [&](auto at) {
    const auto x = at.load(row.data());
    at.store(row.data(), x * x);
  });
  for (const Eigen::bfloat16 value : row) {
    EXPECT_EQ(static_cast<float>(value), 2.25f);
  }
}

TEST(ForLanes, TakesScalarsWithoutLanesOneByOne) {
  std::vector<long double> x = {1.0L, -2.0L, 3.0L};
  for_lanes<long double>(3, [&](auto at) {
    const auto z = at.load(x.data());
    at.store(x.data(), where(z < 0.0L, -z, z));
  });
  EXPECT_EQ(x, (std::vector<long double>{1.0L, 2.0L, 3.0L}));
}

}  // namespace
}  // namespace moe::kernels::lanes_test
