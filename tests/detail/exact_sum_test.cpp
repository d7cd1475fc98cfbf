// SPDX-License-Identifier: Apache-2.0
// Tests of sums without rounding: against integers, and where a sum of double loses what it adds.
#include "moe/detail/exact_sum.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "moe/detail/random.hpp"

namespace moe::detail::exact_sum_test {
namespace {

using Limbs = std::vector<ExactSums::Limb>;

Limbs sum_of(const ExactSums& sums, const std::vector<double>& numbers) {
  Limbs sum(static_cast<std::size_t>(sums.limbs()));
  sums.clear(sum.data());
  for (const double number : numbers) {
    sums.add(number, false, sum.data());
  }
  return sum;
}

ExactSums sums_for(const std::vector<double>& numbers, std::uint64_t count) {
  ExactSums sums;
  for (const double number : numbers) {
    sums.admit(number);
  }
  sums.reserve(count);
  return sums;
}

TEST(ExactSums, CompareAsTheIntegersThatTheyAre) {
  const CounterRandom random(1, 2);
  std::uint64_t draw = 0;
  for (const double step : {1.0, 0x1p-149, 0x1p-1074, 0x1p+900, 0x1p-20}) {
    for (int round = 0; round < 300; ++round) {
      std::vector<double> numbers[2];
      std::int64_t want[2] = {0, 0};
      for (int side = 0; side < 2; ++side) {
        for (int i = 0; i < 5; ++i) {
          const auto number = static_cast<std::int64_t>(random.uniform(draw++) * 8.0) - 4;
          const std::int64_t high = round % 2 == 0 ? number : number << 50;
          want[side] += high;
          numbers[side].push_back(static_cast<double>(high) * step);
        }
      }
      std::vector<double> all = numbers[0];
      all.insert(all.end(), numbers[1].begin(), numbers[1].end());
      const ExactSums sums = sums_for(all, 5);
      const Limbs a = sum_of(sums, numbers[0]), b = sum_of(sums, numbers[1]);
      EXPECT_EQ(sums.is_less(a.data(), b.data()), want[0] < want[1]);
      EXPECT_EQ(sums.is_less(b.data(), a.data()), want[1] < want[0]);
      EXPECT_EQ(sums.is_negative(a.data()), want[0] < 0);
    }
  }
}

TEST(ExactSums, KeepTheLeastDigitBesideTheLargestNumber) {
  const double most = std::numeric_limits<double>::max();
  const double least = std::numeric_limits<double>::denorm_min();
  const ExactSums sums = sums_for({most, least}, 1000);
  EXPECT_LE(sums.limbs(), ExactSums::most_limbs);
  const Limbs zero = sum_of(sums, {}), large = sum_of(sums, {most, most, most});
  const Limbs more = sum_of(sums, {most, least, most, most});
  EXPECT_TRUE(sums.is_less(large.data(), more.data()));
  EXPECT_TRUE(sums.is_less(zero.data(), large.data()));
  EXPECT_EQ(sum_of(sums, {most, -least, -most, least}), zero);
  EXPECT_TRUE(sums.is_negative(sum_of(sums, {most, -least, -most}).data()));
}

TEST(ExactSums, SubtractWhatTheyAdded) {
  const ExactSums sums = sums_for({1e30, 0.1, -3.7e-9}, 10);
  Limbs sum = sum_of(sums, {1e30, 0.1, -3.7e-9});
  sums.add(0.1, true, sum.data());
  sums.add(1e30, true, sum.data());
  EXPECT_EQ(sum, sum_of(sums, {-3.7e-9}));
  sums.add(-3.7e-9, true, sum.data());
  EXPECT_EQ(sum, sum_of(sums, {0.0, -0.0}));
}

TEST(ExactSums, AreOneLimbForNumbersOfOneSize) {
  EXPECT_EQ(sums_for({}, 1000).limbs(), 1);
  EXPECT_EQ(sums_for({0.0, 1.5, -3.25, 0x1.47ae14p-7}, 1000).limbs() * ExactSums::limb_bits, 64);
}

}  // namespace
}  // namespace moe::detail::exact_sum_test
