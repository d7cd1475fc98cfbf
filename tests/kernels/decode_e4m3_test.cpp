// SPDX-License-Identifier: Apache-2.0
// Floats of 8 bits decoded many at once: each as its bits say, wherever it stands.
#include "moe/kernels/decode_e4m3.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace moe::kernels {
namespace {

/// By the definition of the format.
double value_of(unsigned code) {
  const unsigned exponent = code >> 3 & 15u, fraction = code & 7u;
  const double magnitude = exponent == 0
                               ? std::ldexp(fraction, -9)
                               : std::ldexp(8 + fraction, static_cast<int>(exponent) - 10);
  return (code & 127u) == 127u ? std::nan("") : code < 128 ? magnitude : -magnitude;
}

template <class T>
class DecodeE4m3 : public ::testing::Test {};
using Targets = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(DecodeE4m3, Targets);

TYPED_TEST(DecodeE4m3, GivesEveryValueExactlyAtEveryPlace) {
  std::vector<std::uint8_t> codes(3 * 256 + 100);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<std::uint8_t>(37 * i);
  }
  for (const Index begin : {0, 1, 7}) {
    for (const Index size : {0, 1, 15, 16, 63, 64, 65, 256, 300, 3 * 256}) {
      std::vector<TypeParam> got(static_cast<std::size_t>(size) + 1, TypeParam(-3));
      decode_e4m3(codes.data() + begin, size, got.data());
      for (Index i = 0; i < size; ++i) {
        const double want = value_of(codes[static_cast<std::size_t>(begin + i)]);
        const double value = static_cast<double>(got[static_cast<std::size_t>(i)]);
        ASSERT_TRUE(value == want || (std::isnan(value) && std::isnan(want)))
            << value << ", not " << want;
        ASSERT_EQ(std::signbit(value),
                  !std::isnan(want) ? std::signbit(want) : std::signbit(value));
      }
      EXPECT_EQ(got.back(), TypeParam(-3));
    }
  }
}

}  // namespace
}  // namespace moe::kernels
