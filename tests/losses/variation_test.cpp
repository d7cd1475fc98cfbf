// SPDX-License-Identifier: Apache-2.0
// The squared coefficient of variation by hand, and its gradient by central differences.
#include "moe/losses/variation.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/finite_difference.hpp"
#include "moe/types.hpp"

namespace moe::variation_test {
namespace {

TEST(SquaredVariation, IsTheSampleVarianceOverTheSquareOfTheMean) {
  std::vector<double> slope;
  EXPECT_NEAR(detail::squared_variation<double>({1, 2, 3, 6}, slope), 14.0 / 3 / 9, 1e-15);
  EXPECT_EQ(detail::squared_variation<double>({5, 5, 5}, slope), 0.0);
  EXPECT_EQ(slope, std::vector<double>(3, 0.0));
}

TEST(SquaredVariation, IsZeroOfOneNumberAndOfZeros) {
  std::vector<double> slope;
  for (const std::vector<double>& x : {std::vector<double>{}, {3}, {0, 0, 0}, {-1, 1}}) {
    EXPECT_EQ(detail::squared_variation(x, slope), 0.0);
    EXPECT_EQ(slope, std::vector<double>(x.size(), 0.0));
  }
}

TEST(SquaredVariation, HasItsGradient) {
  std::vector<double> x = {0.5, 2, 1.25, 3}, slope, unused;
  detail::squared_variation(x, slope);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto value = [&] { return detail::squared_variation(x, unused); };
    EXPECT_NEAR(slope[i], testing::derivative(value, x[i]), 1e-9);
  }
}

}  // namespace
}  // namespace moe::variation_test
