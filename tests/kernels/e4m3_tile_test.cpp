// SPDX-License-Identifier: Apache-2.0
// The tile that decodes a panel in registers: the bits of the tile of floats on the decoded panel.
#include "moe/kernels/e4m3_tile.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "moe/storage/bfloat16.hpp"

namespace moe::kernels::e4m3_tile_test {
namespace {

using Input = Bfloat16Input;

// A row has the same bits whatever the number of rows, so neither may the way of decoding matter.
TEST(E4m3Tile, HasTheBitsOfTheTileOnTheDecodedPanel) {
  if constexpr (DecodesE4m3<Input>) {
    using Few = RegisterTile<Input, E4m3Block>;
    using Tile = RegisterTile<Input>;
    std::mt19937 random(1);
    const auto block = std::make_unique<E4m3Block>();
    for (std::uint8_t& code : block->code) {
      code = static_cast<std::uint8_t>(random() % 256);
      code = static_cast<std::uint8_t>((code & 127) == 127 ? 0 : code);
    }
    constexpr Index cols = E4m3Block::cols, most = E4m3Block::depth;
    std::vector<Input> x(Few::rows * most), panel(most * Tile::cols);
    for (Input& value : x) {
      value = convert<Input>(static_cast<float>(random() % 2001) / 1000 - 1);
    }
    for (const Index depth : {Index{4}, Index{20}, most}) {
      for (Index num_rows = 1; num_rows <= Few::rows; ++num_rows) {
        const Input* rows[Few::rows];
        for (Index row = 0; row < num_rows; ++row) {
          rows[row] = x.data() + row * most;
        }
        for (const Update update : {Update::assign, Update::add}) {
          std::vector<float> got(static_cast<std::size_t>(num_rows * cols + 1), 0.5f), want = got;
          multiply_tile(num_rows, RowPointers<Input>{rows, 1}, Panel<Input, E4m3Block>{block.get()},
                        depth, Sums<Input>{got.data(), cols, update}, Ahead{});
          for (Index first = 0; first < cols; first += Tile::cols) {
            decode_e4m3(block.get(), depth, first, panel.data());
            multiply_tile(num_rows, RowPointers<Input>{rows, 1}, Panel<Input>{panel.data()}, depth,
                          Sums<Input>{want.data() + first, cols, update}, Ahead{});
          }
          EXPECT_EQ(got, want) << num_rows << " rows, " << depth << " k";
        }
      }
    }
  } else {
    GTEST_SKIP() << "panels are decoded into a buffer here";
  }
}

TEST(E4m3Tile, OfACodeThatIsNanGivesNanInItsColumnAlone) {
  if constexpr (DecodesE4m3<Input>) {
    const auto block = std::make_unique<E4m3Block>();
    block->code[E4m3Block::place(37, 90)] = 0xff;
    const std::vector<Input> x(2 * 128);
    const Input* rows[] = {x.data(), x.data() + 128};
    Matrix<float> sums(2, 64);
    multiply_tile(2, RowPointers<Input>{rows, 1}, Panel<Input, E4m3Block>{block.get()}, 128,
                  Sums<Input>{sums.data(), 64, Update::assign}, Ahead{});
    EXPECT_EQ(sums.array().isNaN().count(), 2);
    EXPECT_TRUE(std::isnan(sums(0, 37)) && std::isnan(sums(1, 37)));
  } else {
    GTEST_SKIP() << "panels are decoded into a buffer here";
  }
}

}  // namespace
}  // namespace moe::kernels::e4m3_tile_test
