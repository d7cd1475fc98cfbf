// SPDX-License-Identifier: Apache-2.0
// Tests of the buffers that only grow.
#include "moe/detail/reserve.hpp"

#include <gtest/gtest.h>

#include "moe/types.hpp"

namespace moe::detail::reserve_test {
namespace {

TEST(Grow, KeepsTheElementsOfAVector) {
  std::vector<Matrix<float>> v;
  grow(v, 2);
  v[1] = Matrix<float>::Ones(3, 3);
  const float* memory = v[1].data();
  grow(v, 1);
  EXPECT_EQ(v.size(), 2u);
  grow(v, 5);
  EXPECT_EQ(v.size(), 5u);
  EXPECT_EQ(v[1].data(), memory) << "buffers inside move along, they are not copied";
}

TEST(GrowBoth, GrowsHeightAndWidthToTheMostAskedFor) {
  Matrix<float> m(3, 8);
  grow_both(m, 2, 5);
  EXPECT_EQ(m.rows(), 3);
  EXPECT_EQ(m.cols(), 8);
  grow_both(m, 1, 9);
  EXPECT_EQ(m.rows(), 3);
  EXPECT_EQ(m.cols(), 9);
  grow_both(m, 7, 1);
  EXPECT_EQ(m.rows(), 7);
  EXPECT_EQ(m.cols(), 9);
}

TEST(SpreadWidth, SetsRowsApartByAnOddNumberOfCacheLines) {
  for (std::ptrdiff_t cols = 0; cols < 200; ++cols) {
    const std::ptrdiff_t width = spread_width<float>(cols);
    EXPECT_GE(width, cols);
    EXPECT_LT(width, cols + 48);
    EXPECT_EQ(width % 32, 16) << cols;
    EXPECT_EQ(spread_width<double>(cols) % 16, 8) << cols;
  }
  EXPECT_EQ(spread_width<float>(1024), 1040);
}

}  // namespace
}  // namespace moe::detail::reserve_test
