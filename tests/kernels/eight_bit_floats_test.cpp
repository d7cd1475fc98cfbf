// SPDX-License-Identifier: Apache-2.0
// Every byte of the 8-bit formats and every code of 4 bits, against their fields put together.
#include "moe/kernels/eight_bit_floats.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace moe::kernels::eight_bit_floats_test {
namespace {

/// A number of a sign, so many bits of exponent and of fraction, which is none of the special ones.
double put_together(unsigned bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1u));
  const int exponent = static_cast<int>(bits >> fraction_bits & ((1u << exponent_bits) - 1u));
  const double one = exponent == 0 ? 0.0 : std::ldexp(1.0, fraction_bits);
  const double magnitude =
      std::ldexp(one + fraction, (exponent == 0 ? 1 : exponent) - bias - fraction_bits);
  return bits >> (exponent_bits + fraction_bits) != 0 ? -magnitude : magnitude;
}

template <class F>
void expect_value(unsigned bits, double want) {
  const F value{static_cast<std::uint8_t>(bits)};
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(widen(value))) << bits;
    EXPECT_TRUE(std::isnan(convert<float>(value))) << bits;
    EXPECT_TRUE(std::isnan(convert<double>(value))) << bits;
    EXPECT_TRUE(std::isnan(static_cast<float>(convert<bf16>(value)))) << bits;
    return;
  }
  EXPECT_EQ(static_cast<double>(widen(value)), want) << bits;
  EXPECT_EQ(std::signbit(widen(value)), std::signbit(want)) << bits;
  EXPECT_EQ(convert<float>(value), widen(value)) << bits;
  EXPECT_EQ(convert<double>(value), want) << bits;
  EXPECT_EQ(convert<F>(value).bits, bits);
}

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST(EightBitFloats, E4m3HasNoInfinityAndOneNanOfEachSign) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    expect_value<e4m3>(bits, (bits & 0x7fu) == 0x7fu ? nan : put_together(bits, 4, 3));
  }
  EXPECT_EQ(widen(e4m3{0x7e}), 448.0f);
  EXPECT_EQ(widen(e4m3{0x81}), -0x1p-9f);
  EXPECT_TRUE(std::signbit(widen(e4m3{0xff})));
}

TEST(EightBitFloats, E5m2HasInfinitiesAndNans) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const bool special = (bits & 0x7cu) == 0x7cu, infinite = special && (bits & 3u) == 0;
    const double infinity = std::numeric_limits<double>::infinity();
    expect_value<e5m2>(bits, infinite  ? (bits < 128 ? infinity : -infinity)
                             : special ? nan
                                       : put_together(bits, 5, 2));
  }
  EXPECT_EQ(widen(e5m2{0x7b}), 57344.0f);
}

TEST(EightBitFloats, E8m0IsAPowerOfTwoAndNeverZero) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    expect_value<e8m0>(bits, bits == 255 ? nan : std::ldexp(1.0, static_cast<int>(bits) - 127));
  }
}

TEST(EightBitFloats, E2m1HasItsValuesBySign) {
  for (unsigned code = 0; code < 16; ++code) {
    EXPECT_EQ(static_cast<double>(widen_e2m1(code)), put_together(code, 2, 1)) << code;
    EXPECT_EQ(std::signbit(widen_e2m1(code)), code > 7) << code;
    EXPECT_EQ(widen_e2m1(code | 0xf0u), widen_e2m1(code));
  }
}

}  // namespace
}  // namespace moe::kernels::eight_bit_floats_test
