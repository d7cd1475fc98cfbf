// SPDX-License-Identifier: Apache-2.0
// A block of a matrix as the panel of a register tile: tile columns side by side, in steps of k.
#pragma once

#include <algorithm>

#include "transpose.hpp"
#include "view.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// panel (b.rows, tile cols) of type P = b, of which the columns are contiguous, for whole packets
/// of steps. Returns how many k were packed. Squares are transposed in registers, a run of them
/// along each column before the next: short steps through many columns would make poor use of the
/// caches.
template <class T, class P>
Index pack_columns(View<T> b, P* panel) {
  using Tile = RegisterTile<P>;
  constexpr Index size = Tile::packet_size, square_depth = size * Tile::step;
  constexpr Index run = 16 * square_depth;
  const Index end = b.rows / square_depth * square_depth;
  for (Index begin = 0; begin < end; begin += run) {
    for (Index col = 0; col < Tile::cols; col += size) {
      for (Index k = begin; k < (std::min)(begin + run, end); k += square_depth) {
        const T* from[size];
        for (Index i = 0; i < size; ++i) {
          from[i] = b.data + k + (col + i) * b.col_stride;
        }
        const Square<P> square = load_transposed<P>(from);
        P* to = panel + k * Tile::cols + col * Tile::step;
        for (Index i = 0; i < size; ++i) {
          store_step(to + i * Tile::step * Tile::cols, square.packet[i]);
        }
      }
    }
  }
  return end;
}

/// step (tile cols) = a step of rows of tile cols contiguous columns.
template <class T, class P>
void pack_step(const T* row, Index row_stride, P* step) {
  using Tile = RegisterTile<P>;
  constexpr Index cols = Tile::cols;
  if constexpr (Tile::step == 1) {  // in packets, as copy_n would be a call for each step
    for (Index col = 0; col < cols; col += Tile::packet_size) {
      store_step(step + col, load_step<typename Tile::Packet>(row + col));
    }
  } else {
    for (Index col = 0; col < cols; ++col) {
      store_pair(row[col], row[row_stride + col], step + 2 * col);
    }
  }
}

/// panel (b.rows in whole steps, tile cols) = b, padded with zeros. b has at most tile cols.
template <class T, class P>
void pack_panel(View<T> b, P* panel) {
  using Tile = RegisterTile<P>;
  constexpr Index step = Tile::step;
  const bool transposed = b.row_stride == 1 && b.cols == Tile::cols;
  for (Index k = transposed ? pack_columns(b, panel) : 0; k < b.rows; k += step) {
    P* to = panel + k * Tile::cols;
    const T* from = b.data + k * b.row_stride;
    if (b.col_stride == 1 && b.cols == Tile::cols && k + step <= b.rows) {
      pack_step(from, b.row_stride, to);
      continue;
    }
    std::fill(to, to + step * Tile::cols, P(0));
    for (Index i = 0; i < (std::min)(step, b.rows - k); ++i) {
      for (Index col = 0; col < b.cols; ++col) {
        to[col * step + i] = convert<P>(from[i * b.row_stride + col * b.col_stride]);
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
