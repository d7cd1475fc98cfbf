// SPDX-License-Identifier: Apache-2.0
// The matrix product of every layer: C = A * B or C += A * B, any strides, serial.
//
// Every element of C is one chain of multiply-adds over k = 0, 1, 2, ... whatever the number of
// rows and columns, so a row of C has the same bits alone and in a batch. B is read where it is if
// its rows lie well for a cache; else it is packed, a block of k by a panel of columns at a time,
// into a buffer on the stack: nothing is allocated.
#pragma once

#include <algorithm>

#include "few_rows.hpp"
#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

#if defined(__GNUC__) && !defined(__clang__)
// Two false alarms of GCC 12: that a vector type loses its alignment as a template argument, and
// that its own AVX-512 shuffles read an undefined register.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/// panel (b.rows, tile cols) = b, padded with zeros on the right. b has at most tile cols. A block
/// of the same shape from `ahead` on, which comes next, is asked for from memory.
template <class T>
void pack_panel(View<T> b, const T* ahead, T* panel) {
  namespace ei = Eigen::internal;
  using Tile = GemmTile<T>;
  using Packet = typename Tile::Packet;
  constexpr Index size = Tile::packet_size;
  Index packed_rows = 0;
  if (b.row_stride == 1 && b.cols == Tile::cols) {
    // The columns of b are contiguous (B is a transposed weight): transpose squares in registers.
    for (; packed_rows + size <= b.rows; packed_rows += size) {
      for (Index col = 0; col < Tile::cols; col += size) {
        ei::PacketBlock<Packet, size> square;
        for (Index i = 0; i < size; ++i) {
          ei::prefetch(ahead + packed_rows + (col + i) * b.col_stride);
          square.packet[i] = ei::ploadu<Packet>(b.data + packed_rows + (col + i) * b.col_stride);
        }
        ei::ptranspose(square);
        for (Index i = 0; i < size; ++i) {
          ei::pstore(panel + (packed_rows + i) * Tile::cols + col, square.packet[i]);
        }
      }
    }
  } else if (b.col_stride == 1 && b.cols == Tile::cols) {
    for (; packed_rows < b.rows; ++packed_rows) {
      for (Index col = 0; col < Tile::cols; col += size) {
        ei::prefetch(ahead + packed_rows * b.row_stride + col);
        ei::pstore(panel + packed_rows * Tile::cols + col,
                   ei::ploadu<Packet>(b.data + packed_rows * b.row_stride + col));
      }
    }
  }
  for (Index row = packed_rows; row < b.rows; ++row) {
    const T* from = b.data + row * b.row_stride;
    T* to = panel + row * Tile::cols;
    for (Index col = 0; col < b.cols; ++col) {
      to[col] = from[col * b.col_stride];
    }
    std::fill(to + b.cols, to + Tile::cols, T(0));
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// c (a.rows, cols) = or += a * panel, where only `cols` columns of the panel count.
template <class T>
void multiply_panel(View<T> a, Panel<T> panel, MatrixRef<T> c, Update update) {
  using Tile = GemmTile<T>;
  Index rows = 0;
  for (Index row = 0; row < a.rows; row += rows) {
    rows = next_tile_rows(a.rows - row, Tile::rows);
    const T* pointer[Tile::rows];
    for (Index r = 0; r < rows; ++r) {
      pointer[r] = a.data + (row + r) * a.row_stride;
    }
    const RowPointers<T> block{pointer, a.col_stride};
    if (c.cols() == Tile::cols) {
      micro_kernel<T>(rows, block, panel, a.cols, {&c.coeffRef(row, 0), c.outerStride(), update},
                      panel.data);
      continue;
    }
    T padded[Tile::rows * Tile::cols] = {};
    Eigen::Map<Matrix<T>> whole(padded, rows, Tile::cols);
    auto part = whole.leftCols(c.cols());
    part = c.middleRows(row, rows);
    micro_kernel<T>(rows, block, panel, a.cols, {padded, Tile::cols, update}, panel.data);
    c.middleRows(row, rows) = part;
  }
}

/// Whether the tile may read B where it is: its rows are contiguous and an odd number of cache
/// lines apart, so that they do not compete for the same places of a cache.
template <class T>
bool readable_in_place(View<T> b) {
  return b.col_stride == 1 && b.row_stride % (2 * GemmTile<T>::line) == GemmTile<T>::line;
}

/// c (M, N) = or += a (M, K) * b (K, N). c must not overlap a or b.
template <Vectorised T>
void gemm(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  using Tile = GemmTile<T>;
  if (a.rows <= Tile::rows && b.row_stride == 1) {
    return multiply_few_rows<T>(a, b, c, update);
  }
  alignas(64) T packed[Tile::depth * Tile::cols];
  if (a.cols == 0 && update == Update::assign) {
    c.setZero();
  }
  for (Index col = 0; col < b.cols; col += Tile::cols) {
    const Index cols = std::min(Tile::cols, b.cols - col);
    for (Index k = 0; k < a.cols; k += Tile::depth) {
      const Index depth = std::min(Tile::depth, a.cols - k);
      const auto block = b.block(k, col, depth, cols);
      Panel<T> panel{packed};
      if (cols == Tile::cols && readable_in_place(b)) {
        panel = {block.data, b.row_stride};
      } else {
        const T* next_k = block.data + depth * b.row_stride;
        const T* next_col = b.data + (col + cols) * b.col_stride;
        pack_panel(block, k + depth < a.cols ? next_k : next_col, packed);
      }
      multiply_panel<T>(a.block(0, k, a.rows, depth), panel, c.middleCols(col, cols),
                        k == 0 ? update : Update::add);
    }
  }
}

/// Columns of a transposed B that gemm takes at once for so many rows of A: who shares a product
/// between threads by columns cuts at its multiples.
template <class T>
Index columns_at_once([[maybe_unused]] Index rows) {
  if constexpr (Vectorised<T>) {
    return rows <= GemmTile<T>::rows ? GemmTile<T>::packet_size : GemmTile<T>::cols;
  } else {
    return 1;
  }
}

/// The same sums in plain loops, in Wide<T>: for scalars without packets, and as the oracle.
template <class T>
void gemm_plain(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  for (Index row = 0; row < a.rows; ++row) {
    for (Index col = 0; col < b.cols; ++col) {
      Wide<T> sum = update == Update::add ? static_cast<Wide<T>>(c(row, col)) : Wide<T>(0);
      for (Index k = 0; k < a.cols; ++k) {
        sum += static_cast<Wide<T>>(a.data[row * a.row_stride + k * a.col_stride]) *
               static_cast<Wide<T>>(b.data[k * b.row_stride + col * b.col_stride]);
      }
      c(row, col) = static_cast<T>(sum);
    }
  }
}

template <class T>
void gemm(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  gemm_plain<T>(a, b, c, update);
}

/// The same for an a whose zeros must not meet b: 0 * NaN is left out, not NaN. For masked rows.
template <class T>
void gemm_skipping_zeros(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  for (Index row = 0; row < a.rows; ++row) {
    T* sums = &c.coeffRef(row, 0);
    if (update == Update::assign) {
      std::fill(sums, sums + b.cols, T(0));
    }
    for (Index k = 0; k < a.cols; ++k) {
      const T factor = a.data[row * a.row_stride + k * a.col_stride];
      for (Index col = 0; factor != T(0) && col < b.cols; ++col) {
        sums[col] += factor * b.data[k * b.row_stride + col * b.col_stride];
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
