// SPDX-License-Identifier: Apache-2.0
// Sizes for tests of products: every remainder of the register tile and of a block of k.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "moe/kernels/register_tile.hpp"
#include "thorough.hpp"

namespace moe::testing {

using kernels::RegisterTile;

/// Two full tiles of rows and one more.
constexpr Index max_rows = 2 * RegisterTile<float>::rows + 1;

/// The depth that every width meets.
constexpr Index wide_depth = 37;

/// Depths with every remainder of what is transposed at once, three times each, as the widest of
/// vectors allow; one that widths() knows; and some across the boundary of what is packed at a
/// time.
template <class T>
std::vector<Index> depths() {
  constexpr Index square = RegisterTile<T>::packet_size * RegisterTile<T>::step;
  std::vector<Index> k((std::min)(Index{68}, (thorough ? 3 : 1) * square + 4));
  std::iota(k.begin(), k.end(), 0);
  if (std::ssize(k) <= wide_depth) {
    k.push_back(wide_depth);
  }
  const Index packed = RegisterTile<T>::depth;
  k.insert(k.end(), {300, packed + 1});
  if (thorough) {
    k.insert(k.end(), {packed - 1, packed, 2 * packed + 3});
  }
  return k;
}

/// Every number of rows up to max_rows; for many blocks of k, which take long, a tile's and others.
inline std::vector<Index> row_counts(Index depth) {
  constexpr Index tile = RegisterTile<float>::rows;
  if (depth > 300) {
    return {1, tile, max_rows};
  }
  if (!thorough && depth != wide_depth) {
    return {1, tile - 1, tile + 1};
  }
  std::vector<Index> all(thorough ? max_rows : tile + 1);
  std::iota(all.begin(), all.end(), 1);
  return all;
}

/// Around every border; for one depth every width, for many blocks of k, which take long, a few.
template <class T>
std::vector<Index> widths(Index depth = 0) {
  if (depth > 300) {
    return {1, RegisterTile<T>::cols, RegisterTile<T>::cols + 1};
  }
  if (depth == wide_depth) {
    std::vector<Index> all(2 * RegisterTile<T>::cols + 1);
    std::iota(all.begin(), all.end(), 1);
    return all;
  }
  const Index tile = RegisterTile<T>::cols, packet = RegisterTile<T>::packet_size;
  return {1,        2,    3,        packet - 1,   packet,   packet + 1,
          tile - 1, tile, tile + 1, 2 * tile - 1, 2 * tile, 2 * tile + 1};
}

}  // namespace moe::testing
