// SPDX-License-Identifier: Apache-2.0
// Floats of 8 bits decoded many at once: each as its bits say, wherever it stands.
#include "moe/kernels/decode_e4m3.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace moe::kernels::decode_e4m3_test {
namespace {

/// By the definition of the format.
double value_of(unsigned code) {
  const unsigned exponent = code >> 3 & 15u, fraction = code & 7u;
  const double magnitude = exponent == 0
                               ? std::ldexp(fraction, -9)
                               : std::ldexp(8 + fraction, static_cast<int>(exponent) - 10);
  return (code & 127u) == 127u ? std::nan("") : code < 128 ? magnitude : -magnitude;
}

std::vector<E4m3Block> some_blocks(std::size_t count) {
  std::vector<E4m3Block> blocks(count);
  unsigned number = 0;
  for (E4m3Block& block : blocks) {
    for (std::uint8_t& code : block.code) {
      code = static_cast<std::uint8_t>(number * 37 + number / 256);
      ++number;
    }
  }
  return blocks;
}

template <class T>
class DecodeE4m3 : public ::testing::Test {};
using Targets = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(DecodeE4m3, Targets);

TYPED_TEST(DecodeE4m3, GivesEveryValueExactlyAtItsPlaceInThePanelOfTheTile) {
  using Tile = RegisterTile<TypeParam>;
  constexpr Index cols = Tile::cols, step = Tile::step, block_depth = E4m3Block::depth;
  constexpr double per_unit = 1 / double{E4m3Decoder<TypeParam>::unit};
  const std::vector<E4m3Block> blocks = some_blocks(2);
  for (const Index size : {0, 4, 12, 128, 132, 256}) {
    for (Index first = 0; first < E4m3Block::cols; first += cols) {
      std::vector<TypeParam> got(static_cast<std::size_t>(size * cols) + 1, TypeParam(-3));
      decode_e4m3(blocks.data(), size, first, got.data());
      for (Index k = 0; k < size; ++k) {
        for (Index col = 0; col < cols; ++col) {
          const Index place = E4m3Block::place(first + col, k % block_depth);
          const auto& block = blocks[static_cast<std::size_t>(k / block_depth)];
          const double want = value_of(block.code[place]);
          const double value =
              per_unit *
              static_cast<double>(
                  got[static_cast<std::size_t>((k / step * cols + col) * step + k % step)]);
          ASSERT_TRUE(value == want || (std::isnan(value) && std::isnan(want)))
              << value << ", not " << want << " at " << k << ", " << first + col;
          ASSERT_EQ(std::signbit(value),
                    !std::isnan(want) ? std::signbit(want) : std::signbit(value));
        }
      }
      EXPECT_EQ(got.back(), TypeParam(-3));
    }
  }
}

TEST(E4m3Block, HasOnePlaceForEachOfItsCodes) {
  std::set<Index> places;
  for (Index col = 0; col < E4m3Block::cols; ++col) {
    for (Index k = 0; k < E4m3Block::depth; ++k) {
      places.insert(E4m3Block::place(col, k));
    }
  }
  EXPECT_EQ(places.size(), 64u * 128u);
  EXPECT_EQ(*places.begin(), 0);
  EXPECT_EQ(*places.rbegin(), 64 * 128 - 1);
}

}  // namespace
}  // namespace moe::kernels::decode_e4m3_test
