// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "moe/storage/encode.hpp"

namespace moe::encode {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// The step of a number on its own.
double step_of(float number) {
  std::array<float, kernels::block_size> values;
  values.fill(number);
  return kernels::nearest_steps(values.data(), 0.0f, 1.0f, -3e7f, 3e7f)[5];
}

TEST(NearestSteps, AreWhatStdRoundMakesOfHalvesAndTheirNeighbours) {
  for (int number = -300; number <= 300; ++number) {
    const float half = static_cast<float>(number) / 2.0f;
    for (const float value :
         {std::nextafter(half, -infinity), half, std::nextafter(half, infinity)}) {
      EXPECT_EQ(step_of(value), static_cast<double>(std::round(value))) << value;
    }
  }
}
TEST(NearestSteps, KeepWholeNumbersThatHaveNoRoomForAHalf) {
  for (const float value : {4194305.0f, 4194304.5f, 8388607.0f, 8388609.0f, 16777215.0f}) {
    EXPECT_EQ(step_of(value), static_cast<double>(std::round(value)));
    EXPECT_EQ(step_of(-value), static_cast<double>(std::round(-value)));
  }
}
TEST(NearestSteps, StayWithinTheirBounds) {
  std::array<float, kernels::block_size> values{};
  values[0] = 1e38f;
  values[1] = -1e38f;
  values[2] = 1.0f;
  const kernels::Block steps = kernels::nearest_steps(values.data(), 0.5f, 1e-3f, -8.0f, 700.0f);
  EXPECT_EQ(steps[0], 700.0);
  EXPECT_EQ(steps[1], -8.0);
  EXPECT_EQ(steps[2], 700.0);
  EXPECT_EQ(steps[3], 500.0);
}
TEST(NearestSteps, TakeNaNForTheLeast) {
  std::array<float, kernels::block_size> values;
  values.fill(infinity);
  EXPECT_EQ(kernels::nearest_steps(values.data(), 0.0f, infinity, 2.0f, 15.0f)[4], 2.0);
}

TEST(ExactDot, AddsUpEightChainsInOneOrder) {
  kernels::Block a, b;
  double chain[8] = {};
  for (std::size_t k = 0; k < a.size(); ++k) {
    a[k] = std::ldexp(static_cast<double>(k % 5) - 2.0, static_cast<int>(k % 7) * 9);
    b[k] = static_cast<double>(1.0f / static_cast<float>(k + 3));
    chain[k % 8] += a[k] * b[k];
  }
  const double order = ((chain[0] + chain[4]) + (chain[2] + chain[6])) +
                       ((chain[1] + chain[5]) + (chain[3] + chain[7]));
  EXPECT_EQ(kernels::exact_dot(a, b), order);
}

TEST(HalfNotBelow, IsTheLeastThatIsNot) {
  for (const float value : {0.0f, 1.0f, 1.0001f, 0.1f, 65504.0f, 3.1e-8f}) {
    const Eigen::half half = kernels::half_not_below(value);
    EXPECT_GE(kernels::widen(half), value);
    const auto bits = Eigen::numext::bit_cast<std::uint16_t>(half);
    if (bits > 0) {
      const auto below = static_cast<std::uint16_t>(bits - 1);
      EXPECT_LT(kernels::widen(Eigen::half_impl::raw_uint16_to_half(below)), value);
    }
  }
  EXPECT_TRUE(std::isnan(kernels::widen(kernels::half_not_below(std::nanf("")))));
}

}  // namespace
}  // namespace moe::encode
