// SPDX-License-Identifier: Apache-2.0
// A block of a matrix as the panel of a register tile: tile columns side by side, in groups of k.
#pragma once

#include <algorithm>

#include "transpose.hpp"
#include "view.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// panel (b.rows, tile cols) = b, of which the columns are contiguous, for whole packets of groups.
/// Returns how many k were packed. Squares are transposed in registers, a run of them along each
/// column before the next: short steps through many columns would make poor use of the caches.
template <class T>
Index pack_columns(View<T> b, T* panel) {
  using Tile = GemmTile<T>;
  constexpr Index size = Tile::packet_size, square_depth = size * Tile::group;
  constexpr Index run = 16 * square_depth;
  const Index end = b.rows / square_depth * square_depth;
  for (Index begin = 0; begin < end; begin += run) {
    for (Index col = 0; col < Tile::cols; col += size) {
      for (Index k = begin; k < std::min(begin + run, end); k += square_depth) {
        const T* from[size];
        for (Index i = 0; i < size; ++i) {
          from[i] = b.data + k + (col + i) * b.col_stride;
        }
        const Square<T> square = load_transposed<T>(from);
        T* to = panel + k * Tile::cols + col * Tile::group;
        for (Index i = 0; i < size; ++i) {
          store_group(to + i * Tile::group * Tile::cols, square.packet[i]);
        }
      }
    }
  }
  return end;
}

/// step (tile cols) = a group of rows of tile cols contiguous columns.
template <class T>
void pack_group(const T* row, Index row_stride, T* step) {
  constexpr Index cols = GemmTile<T>::cols;
  if constexpr (GemmTile<T>::group == 1) {
    std::copy_n(row, cols, step);
  } else {
    for (Index col = 0; col < cols; ++col) {
      store_pair(row[col], row[row_stride + col], step + 2 * col);
    }
  }
}

/// panel (b.rows in whole groups, tile cols) = b, padded with zeros. b has at most tile cols.
template <class T>
void pack_panel(View<T> b, T* panel) {
  using Tile = GemmTile<T>;
  constexpr Index group = Tile::group;
  const bool transposed = b.row_stride == 1 && b.cols == Tile::cols;
  for (Index k = transposed ? pack_columns(b, panel) : 0; k < b.rows; k += group) {
    T* to = panel + k * Tile::cols;
    const T* from = b.data + k * b.row_stride;
    if (b.col_stride == 1 && b.cols == Tile::cols && k + group <= b.rows) {
      pack_group(from, b.row_stride, to);
      continue;
    }
    std::fill(to, to + group * Tile::cols, T(0));
    for (Index i = 0; i < std::min(group, b.rows - k); ++i) {
      for (Index col = 0; col < b.cols; ++col) {
        to[col * group + i] = from[i * b.row_stride + col * b.col_stride];
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
