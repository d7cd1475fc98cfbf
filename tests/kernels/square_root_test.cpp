// SPDX-License-Identifier: Apache-2.0
#include "moe/kernels/square_root.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace moe::kernels::square_root_test {
namespace {

template <class T>
class SquareRoot : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SquareRoot, Scalars);

TYPED_TEST(SquareRoot, OfEveryLaneIsThatOfTheScalar) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  std::vector<T> values{
      T(0), T(-0.0), Limits::denorm_min(), (Limits::min)(), (Limits::max)(), Limits::infinity()};
  for (int i = 0; i < 1000; ++i) {
    values.push_back(std::ldexp(T(1) + T(i) / T(997), i % 200 - 100));
  }
  const Index size = std::ssize(values);
  std::vector<T> roots(values.size());
  for_lanes<T>(size, [&](auto at) { at.store(roots.data(), square_root(at.load(values.data()))); });
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(roots[i], std::sqrt(values[i])) << values[i];
  }
  const Lanes<T> negative = square_root(Lanes<T>(T(-1)));
  T out[Lanes<T>::size];
  negative.store(out);
  EXPECT_TRUE(std::isnan(out[0]));
}

}  // namespace
}  // namespace moe::kernels::square_root_test
