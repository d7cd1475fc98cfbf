// SPDX-License-Identifier: Apache-2.0
// The float between more bits and fewer, by what it has to be; what becomes of it in 16 bits is
// tested with kernels/convert.hpp.
#include "moe/detail/round_to_odd.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moe/detail/random.hpp"

namespace moe::detail::round_to_odd_test {
namespace {

bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

TEST(RoundToOdd, KeepsWhatAFloatHolds) {
  for (const float value : {0.0F, -0.0F, 1.0F, 0x1.000002p0F, -0x1.fffffep127F, 0x1p-149F,
                            std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(same(round_to_odd(static_cast<double>(value)), value)) << value;
  }
  EXPECT_TRUE(std::isnan(round_to_odd(std::numeric_limits<double>::quiet_NaN())));
}

TEST(RoundToOdd, GivesTheNeighbourWhoseLastBitIsOneOfEverythingElse) {
  const CounterRandom random(1, 2);
  for (std::uint64_t i = 0; i < 10000; ++i) {
    const double value = random.normal(i);
    const float odd = round_to_odd(value);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(odd) & 1U, 1U) << value;
    const float below = std::nextafter(odd, -10.0F), above = std::nextafter(odd, 10.0F);
    EXPECT_TRUE(static_cast<double>(below) < value && value < static_cast<double>(above)) << value;
  }
}

TEST(RoundToOdd, TakesIntegersOf64BitsAsExactlyAsOthers) {
  EXPECT_TRUE(same(round_to_odd(std::int32_t{(1 << 24) + 1}), 0x1.000002p24F));
  EXPECT_TRUE(same(round_to_odd((std::int64_t{1} << 62) + 1), 0x1.000002p62F));
  EXPECT_TRUE(same(round_to_odd(-(std::int64_t{1} << 62)), -0x1p62F));
  EXPECT_TRUE(same(round_to_odd(std::numeric_limits<std::uint64_t>::max()), 0x1.fffffep63F));
}

}  // namespace
}  // namespace moe::detail::round_to_odd_test
