// SPDX-License-Identifier: Apache-2.0
// The product with a transposed A, as in the gradient of a weight, dz^T x. A's rows lie across
// memory, each step of k in another page, so a block of them is packed; B is read where it is.
#pragma once

#include <algorithm>
#include <cstring>

#include "register_tile.hpp"
#include "view.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Where operands are packed: a panel of so many k, or as many tiles of A.
template <class T>
struct PackingRoom {
  static constexpr Index step_bytes = RegisterTile<T>::cols * Index{sizeof(T)};

  T* data;
  Index depth;
};

/// Whether the tile may read B where it is: its rows are contiguous and an odd number of cache
/// lines apart, so that they do not compete for the same places of a cache.
template <class T>
bool readable_in_place(View<T> b) {
  return b.col_stride == 1 && b.row_stride % (2 * RegisterTile<T>::line) == RegisterTile<T>::line;
}

/// packed = the tiles of a one after the other, each k by k.
template <class T>
void pack_tiles(View<T> a, T* packed) {
  for_tiles<RegisterTile<T>>(a.rows, [&](Index row, Index rows, Index) {
    T* to = packed + row * a.cols;
    for (Index k = 0; k < a.cols; ++k, to += rows) {
      const T* step = a.data + row + k * a.col_stride;
      if (rows == RegisterTile<T>::rows) {  // a constant makes a few moves of it, in memcpy alone
        std::memcpy(to, step, sizeof(T) * RegisterTile<T>::rows);
      } else {
        std::copy_n(step, rows, to);
      }
    }
  });
}

/// c (a.rows, tile cols) = or += a * panel. `packed` holds a's tiles, `panel` lies in B.
template <class T>
void multiply_tiles(const T* packed, Index depth, Panel<T> panel, MatrixRef<T> c, Update update) {
  using Tile = RegisterTile<T>;
  const NextPanel next_panel =
      NextPanel::of_rows<Tile>(panel.data + Tile::cols, depth, panel.stride);
  for_tiles<Tile>(c.rows(), [&](Index row, Index rows, Index left) {
    const T* pointer[Tile::rows];
    for (Index r = 0; r < rows; ++r) {
      pointer[r] = packed + row * depth + r;
    }
    // The sums are a gradient, which comes from memory: ask for those of the next tile.
    const Index next = row + rows, next_rows = (std::min)(Index{Tile::rows}, left);
    prefetch_rows(c.data() + next * c.outerStride(), next_rows, Tile::cols, c.outerStride());
    multiply_tile<T>(rows, {pointer, rows}, panel, depth,
                     {&c.coeffRef(row, 0), c.outerStride(), update},
                     next_panel.ahead_of<Tile>(left));
  });
}

/// c (M, N) = or += a (M, K) * b (K, N) for a.row_stride == 1, b readable in place, and N a
/// multiple of tile cols.
template <class T>
void multiply_transposed(View<T> a, View<T> b, MatrixRef<T> c, Update update, PackingRoom<T> to) {
  using Tile = RegisterTile<T>;
  const Index size = to.depth * Tile::cols;
  const Index block = (std::min)(to.depth, size / (4 * Tile::rows));  // room for four tiles
  for (Index k = 0; k < a.cols; k += block) {
    const Index depth = (std::min)(block, a.cols - k);
    const Index room = size / depth / Tile::rows * Tile::rows;
    for (Index row = 0; row < a.rows; row += room) {
      const Index rows = (std::min)(room, a.rows - row);
      pack_tiles(a.block(row, k, rows, depth), to.data);
      for (Index col = 0; col < b.cols; col += Tile::cols) {
        multiply_tiles<T>(to.data, depth, {b.data + k * b.row_stride + col, b.row_stride},
                          c.block(row, col, rows, Tile::cols), k == 0 ? update : Update::add);
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
