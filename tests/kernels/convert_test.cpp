// SPDX-License-Identifier: Apache-2.0
// One number to another type, against Eigen's casts, and against the midpoints between neighbours.
#include "moe/kernels/convert.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace moe::kernels::convert_test {
namespace {

template <class T>
T of_bits(std::uint32_t bits) {
  const auto half = static_cast<std::uint16_t>(bits);
  T value;
  std::memcpy(static_cast<void*>(&value), &half, sizeof(value));
  return value;
}

template <class T>
std::uint16_t bits_of(T value) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, static_cast<const void*>(&value), sizeof(bits));
  return bits;
}

TEST(Convert, RoundsFloatAsEigenDoesAndKeepsNan) {
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 0x0fff) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const bf16 got = convert<bf16>(value), eigen(value);
    const bool both_nan = std::isnan(value) && std::isnan(static_cast<float>(got));
    EXPECT_TRUE(both_nan || got.value == eigen.value) << value;
  }
  EXPECT_TRUE(
      std::isnan(static_cast<float>(convert<bf16>(std::numeric_limits<float>::signaling_NaN()))));
}

TEST(Convert, WidensEveryBfloat16AsEigenDoes) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto value = of_bits<bf16>(bits);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(convert<float>(value)),
              std::bit_cast<std::uint32_t>(static_cast<float>(value)))
        << bits;
  }
}

template <class T>
class ConvertToSixteenBits : public ::testing::Test {};
using SixteenBitFloats = ::testing::Types<Eigen::half, bf16>;
TYPED_TEST_SUITE(ConvertToSixteenBits, SixteenBitFloats);

TYPED_TEST(ConvertToSixteenBits, KeepsTheBitsOfItsOwnType) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    ASSERT_EQ(bits_of(convert<TypeParam>(of_bits<TypeParam>(bits))), bits);
  }
}

/// Holds a source type From to what To has beside every midpoint of neighbours in To.
template <class To, class From>
void expect_rounded_once() {
  constexpr From inf = std::numeric_limits<From>::infinity();
  const auto value_of = [](std::uint32_t bits) {
    return static_cast<From>(static_cast<float>(of_bits<To>(bits)));
  };
  std::uint32_t bits = 0;
  for (; std::isfinite(value_of(bits + 1)); ++bits) {
    const From low = value_of(bits), middle = low + (value_of(bits + 1) - low) / 2;
    const std::uint32_t even = bits + bits % 2;
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const From s = sign == 0 ? From(1) : From(-1);
      ASSERT_EQ(bits_of(convert<To>(s * low)), sign | bits);
      ASSERT_EQ(bits_of(convert<To>(s * std::nextafter(middle, -inf))), sign | bits);
      ASSERT_EQ(bits_of(convert<To>(s * middle)), sign | even);
      ASSERT_EQ(bits_of(convert<To>(s * std::nextafter(middle, inf))), sign | (bits + 1));
    }
  }
  // Beyond the largest: half a step more is a tie, and its even neighbour is Inf.
  const From tie = value_of(bits) + (value_of(bits) - value_of(bits - 1)) / 2;
  EXPECT_EQ(bits_of(convert<To>(std::nextafter(tie, From(0)))), bits);
  for (const From value : {tie, std::numeric_limits<From>::max(), inf}) {
    EXPECT_EQ(static_cast<float>(convert<To>(value)), std::numeric_limits<float>::infinity());
    EXPECT_EQ(static_cast<float>(convert<To>(-value)), -std::numeric_limits<float>::infinity());
  }
}

// By way of float, what is next to a midpoint would become the midpoint, and then a tie.
TYPED_TEST(ConvertToSixteenBits, RoundsFloatsOfAnyWidthOnceToNearestEven) {
  expect_rounded_once<TypeParam, float>();
  expect_rounded_once<TypeParam, double>();
  expect_rounded_once<TypeParam, long double>();
}

TYPED_TEST(ConvertToSixteenBits, KeepsNanAndTheSignOfZero) {
  EXPECT_TRUE(
      std::isnan(static_cast<float>(convert<TypeParam>(std::numeric_limits<double>::quiet_NaN()))));
  EXPECT_EQ(bits_of(convert<TypeParam>(-0.0)), 0x8000u);
  EXPECT_EQ(bits_of(convert<TypeParam>(-std::numeric_limits<double>::denorm_min())), 0x8000u);
}

TYPED_TEST(ConvertToSixteenBits, RoundsIntegersOnceToNearestEven) {
  for (int bits = 2; bits <= 62; ++bits) {
    for (const int tie : {bits - 8, bits - 11}) {  // half a step of bfloat16, of half
      for (const int more : {-1, 0, 1}) {
        const std::int64_t value =
            (std::int64_t{1} << bits) + (tie < 0 ? 0 : std::int64_t{1} << tie) + more;
        // A double holds none of the last bits of the largest; a tie, and whether it is one, stay.
        const auto in_double =
            static_cast<double>(value >> 12 << 12) + (value % 4096 == 0 ? 0.0 : 0x1p10);
        const double expected = bits < 53 ? static_cast<double>(value) : in_double;
        ASSERT_EQ(bits_of(convert<TypeParam>(value)), bits_of(convert<TypeParam>(expected)))
            << value;
        ASSERT_EQ(bits_of(convert<TypeParam>(-value)), bits_of(convert<TypeParam>(-expected)))
            << value;
        ASSERT_EQ(bits_of(convert<TypeParam>(static_cast<std::uint64_t>(value))),
                  bits_of(convert<TypeParam>(expected)))
            << value;
      }
    }
  }
  for (int value = -128; value < 128; ++value) {
    ASSERT_EQ(static_cast<float>(convert<TypeParam>(static_cast<std::int8_t>(value))),
              static_cast<float>(value));
  }
}

TEST(Convert, RoundsTheIntegersNextToATieToTheNearest) {
  // 2^62 and 2^62 + 2^55 are neighbours in bfloat16. In double, the three in the middle are one.
  const std::int64_t low = std::int64_t{1} << 62, half = std::int64_t{1} << 54;
  EXPECT_EQ(static_cast<float>(convert<bf16>(low + half - 1)), 0x1p62f);
  EXPECT_EQ(static_cast<float>(convert<bf16>(low + half)), 0x1p62f);
  EXPECT_EQ(static_cast<float>(convert<bf16>(low + half + 1)), 0x1.02p62f);
  EXPECT_EQ(static_cast<float>(convert<bf16>(-low - half - 1)), -0x1.02p62f);
  EXPECT_EQ(static_cast<float>(convert<bf16>(std::numeric_limits<std::int64_t>::min())), -0x1p63f);
  EXPECT_EQ(static_cast<float>(convert<bf16>(std::numeric_limits<std::uint64_t>::max())), 0x1p64f);
}

TEST(Convert, BetweenTheSixteenBitTypesRoundsOnce) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto half = of_bits<Eigen::half>(bits);
    const auto brain = of_bits<bf16>(bits);
    const auto wide_half = static_cast<double>(static_cast<float>(half));
    const auto wide_brain = static_cast<double>(static_cast<float>(brain));
    if (!std::isnan(wide_half)) {
      ASSERT_EQ(bits_of(convert<bf16>(half)), bits_of(convert<bf16>(wide_half)));
    }
    if (!std::isnan(wide_brain)) {
      ASSERT_EQ(bits_of(convert<Eigen::half>(brain)), bits_of(convert<Eigen::half>(wide_brain)));
      ASSERT_EQ(convert<double>(brain), wide_brain);
    }
  }
}

}  // namespace
}  // namespace moe::kernels::convert_test
