// SPDX-License-Identifier: Apache-2.0
// Which lines the tiles of a panel ask for: all of what comes next, and each once.
#include "moe/kernels/fetch.hpp"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "moe/kernels/register_tile.hpp"

namespace moe::kernels::fetch_test {
namespace {

using Tile = RegisterTile<float>;

/// How often the tiles of so many rows, of `steps` steps each, ask for the line at each offset.
std::map<std::ptrdiff_t, int> lines_asked(const NextPanel& next, const std::byte* first, Index rows,
                                          Index steps) {
  std::map<std::ptrdiff_t, int> asked;
  for (Index left = rows; left > 0;) {
    left -= (std::min)(left, Index{Tile::rows});
    const Ahead ahead = next.ahead_of<Tile>(left);
    Fetch fetch(ahead);
    for (Index i = 0; i < steps * ahead.lines; ++i) {
      ++asked[(static_cast<const std::byte*>(fetch.take()) - first) / 64];
    }
  }
  return asked;
}

TEST(NextPanel, IsAskedForLineByLineOnce) {
  const std::vector<std::byte> bytes(1 << 16);
  for (const Index places : {1, 8}) {
    const NextPanel next = NextPanel::of_bytes(bytes, 256, 1, places);
    const auto asked = lines_asked(next, bytes.data(), 100, 256);
    ASSERT_EQ(asked.size(), bytes.size() / 64);
    EXPECT_EQ(asked.begin()->first, 0);
    EXPECT_EQ(asked.rbegin()->first, static_cast<std::ptrdiff_t>(bytes.size()) / 64 - 1);
    for (const auto& [line, times] : asked) {
      EXPECT_EQ(times, 1) << line;
    }
  }
}

TEST(NextPanel, IsAskedForByATileThatIsAlone) {
  const std::vector<std::byte> bytes(1 << 16);
  const auto asked = lines_asked(NextPanel::of_bytes(bytes, 256, 4), bytes.data(), 1, 256);
  EXPECT_EQ(asked.size(), bytes.size() / 64);
}

TEST(NextPanel, IsAskedForToItsEndWhateverItsSize) {
  for (const unsigned size : {0u, 1u, 64u, 100u, 4000u, 65536u + 64u}) {
    const std::vector<std::byte> bytes(size);
    for (const Index places : {1, 8}) {
      const NextPanel next = NextPanel::of_bytes(bytes, 100, 3, places);
      const auto lines = static_cast<std::ptrdiff_t>((size + 63) / 64);
      const auto asked = lines_asked(next, bytes.data(), Tile::rows * 40, 100);
      EXPECT_TRUE(size == 0 || asked.contains(lines - 1)) << size;
      // What the last of the tiles lacks to a whole share.
      EXPECT_TRUE(asked.empty() || asked.rbegin()->first < (lines + 299) / 300 * 300) << size;
    }
  }
}

TEST(NextPanel, IsAskedForInAsManyPlacesAtATimeAsToldTo) {
  const std::vector<std::byte> bytes(1 << 16);
  for (const Index places : {1, 8}) {
    Fetch fetch(NextPanel::of_bytes(bytes, 1024, 1, places).ahead_of<Tile>(0));
    for (int round = 0; round < 3; ++round) {
      for (Index place = 0; place < places; ++place) {
        const auto at = static_cast<const std::byte*>(fetch.take()) - bytes.data();
        EXPECT_EQ(at / 64, place * 128 + round);
      }
    }
  }
}

TEST(NextPanel, OfRowsIsALineOfEachForATile) {
  const std::vector<float> rows(10 * 256);
  const NextPanel next = NextPanel::of_rows<Tile>(rows.data(), 10, 256);
  Fetch fetch(next.ahead_of<Tile>(0));
  for (Index row = 0; row < 10; ++row) {
    EXPECT_EQ(fetch.take(), rows.data() + row * 256);
  }
  EXPECT_EQ(next.ahead_of<Tile>(1000).lines, 0);
}

}  // namespace
}  // namespace moe::kernels::fetch_test
