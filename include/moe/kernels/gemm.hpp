// SPDX-License-Identifier: Apache-2.0
// The matrix product of every layer: C = A * B or C += A * B, any strides, serial.
//
// Every element of C is one chain of multiply-adds over k = 0, 1, 2, ... whatever the number of
// rows and columns, so a row of C has the same bits alone and in a batch. B is read where it is if
// its rows lie well for a cache; else it is packed, a block of k by a panel of columns at a time,
// into memory of the caller's: nothing is allocated. A transposed A is packed there too. Types of
// 16 bits have a file of their own.
#pragma once

#include <algorithm>

#include "few_rows.hpp"
#include "gemm_memory.hpp"
#include "gemm_narrow.hpp"
#include "gemm_transposed.hpp"
#include "lanes.hpp"
#include "pack.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// The steps [k, k + depth) of the panel after the one at column `col`.
template <class T>
NextPanel panel_after(View<T> b, Index col, Index k, Index depth) {
  using Tile = RegisterTile<T>;
  const T* data = b.data + (col + Tile::cols) * b.col_stride;
  if (b.col_stride == 1) {
    return NextPanel::of_rows<Tile>(data + k * b.row_stride, depth, b.row_stride);
  }
  if (b.row_stride == 1 && b.col_stride == b.rows) {  // the panel lies in one piece
    const auto size = static_cast<std::size_t>(depth * Tile::cols);
    return NextPanel::of_bytes(std::as_bytes(std::span(data + k * Tile::cols, size)), depth,
                               Tile::lines_ahead);
  }
  return {};
}

/// c (a.rows, cols) = or += a * panel, where only `cols` columns of the panel count.
template <class T>
void multiply_panel(View<T> a, Panel<T> panel, const NextPanel& next_panel, MatrixRef<T> c,
                    Update update) {
  using Tile = RegisterTile<T>;
  for_tiles<Tile>(a.rows, [&](Index row, Index rows, Index left) {
    const T* pointer[Tile::rows];
    for (Index r = 0; r < rows; ++r) {
      pointer[r] = a.data + (row + r) * a.row_stride;
    }
    const auto multiply = [&](const Sums<T>& sums) {
      multiply_tile<T>(rows, {pointer, a.col_stride}, panel, a.cols, sums,
                       next_panel.ahead_of<Tile>(left));
    };
    const Index next = row + rows, next_rows = (std::min)(Index{Tile::rows}, left);
    prefetch_rows(c.data() + next * c.outerStride(), next_rows, c.cols(), c.outerStride());
    if (c.cols() == Tile::cols) {
      return multiply({&c.coeffRef(row, 0), c.outerStride(), update});
    }
    T padded[Tile::rows * Tile::cols] = {};
    if (update == Update::add) {
      copy_rows(view(c.middleRows(row, rows)), padded, Tile::cols);
    }
    multiply({padded, Tile::cols, update});
    copy_rows(View<T>{padded, rows, c.cols(), Tile::cols, 1}, &c.coeffRef(row, 0), c.outerStride());
  });
}

/// c = or += a * b, packing into `room`. How much there is leaves the bits as they are.
template <Vectorised T>
void gemm_in_blocks(View<T> a, View<T> b, MatrixRef<T> c, Update update, PackingRoom<T> room) {
  using Tile = RegisterTile<T>;
  if (a.rows <= Tile::rows && b.row_stride == 1) {
    return multiply_few_rows<T>(a, b, c, update);
  }
  if (a.cols == 0 && update == Update::assign) {
    c.setZero();
  }
  Index done = 0;  // columns
  if (a.row_stride == 1 && readable_in_place(b)) {
    done = b.cols / Tile::cols * Tile::cols;
    multiply_transposed<T>(a, b.block(0, 0, b.rows, done), c.leftCols(done), update, room);
  }
  // All columns meet a block of k before the next: the rows of B span few pages.
  for (Index k = 0; k < a.cols; k += room.depth) {
    const Index depth = (std::min)(room.depth, a.cols - k);
    for (Index col = done; col < b.cols; col += Tile::cols) {
      const Index cols = (std::min)(Tile::cols, b.cols - col);
      const auto block = b.block(k, col, depth, cols);
      Panel<T> panel{room.data};
      if (cols == Tile::cols && readable_in_place(b)) {
        panel = {block.data, b.row_stride};
      } else {
        pack_panel(block, room.data);
      }
      multiply_panel<T>(a.block(0, k, a.rows, depth), panel, panel_after(b, col, k, depth),
                        c.middleCols(col, cols), k == 0 ? update : Update::add);
    }
  }
}

/// Columns of a transposed B that gemm takes at once for so many rows of A: who shares a product
/// between threads by columns cuts at its multiples.
template <class T>
Index columns_at_once([[maybe_unused]] Index rows) {
  if constexpr (Vectorised<T>) {
    return rows <= RegisterTile<T>::rows ? RegisterTile<T>::packet_size : RegisterTile<T>::cols;
  } else {
    return 1;
  }
}

/// c = or += a * b in plain loops, in Wide<T>: for scalars without packets, and as the oracle.
template <class T, class C = T>
void gemm_plain(View<T> a, View<T> b, Into<C> c, Update update) {
  for (Index row = 0; row < a.rows; ++row) {
    for (Index col = 0; col < b.cols; ++col) {
      Wide<T> sum = update == Update::add ? static_cast<Wide<T>>(c(row, col)) : Wide<T>(0);
      for (Index k = 0; k < a.cols; ++k) {
        sum += static_cast<Wide<T>>(a.data[row * a.row_stride + k * a.col_stride]) *
               static_cast<Wide<T>>(b.data[k * b.row_stride + col * b.col_stride]);
      }
      c(row, col) = static_cast<C>(sum);
    }
  }
}

/// c (M, N) = or += a (M, K) * b (K, N). C is T, or float where T is narrower: the sums as they
/// are. c must not overlap a or b. Scalars without packets take plain loops.
template <class T, class C = T>
void gemm(View<T> a, View<T> b, Into<C> c, Update update, GemmMemory<T>& memory) {
  static_assert(std::same_as<C, T> || std::same_as<C, Wide<T>>);
  if constexpr (Vectorised<T>) {
    using Room = PackingRoom<T>;
    const Index depth = memory.bytes() / Room::step_bytes;
    gemm_in_blocks<T>(a, b, c, update, {reinterpret_cast<T*>(memory.data()), depth});
  } else if constexpr (SixteenBitFloat<T>) {
    gemm_narrow<T, C>(a, b, c, update, memory);
  } else {
    gemm_plain<T, C>(a, b, c, update);
  }
}

/// gemm() that packs into 16 KiB of stack, for products whose k are few or lie apart in memory
/// anyway.
template <class T>
void gemm_on_stack(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  if constexpr (Vectorised<T>) {
    constexpr Index depth = 16384 / PackingRoom<T>::step_bytes;
    alignas(64) T packed[depth * RegisterTile<T>::cols];
    gemm_in_blocks<T>(a, b, c, update, {packed, depth});
  } else {
    gemm_plain<T>(a, b, c, update);
  }
}

/// gemm() for an a whose zeros must not meet b: 0 * NaN is left out, not NaN. For masked rows.
template <class T>
void gemm_skipping_zeros(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  for (Index row = 0; row < a.rows; ++row) {
    T* sums = &c.coeffRef(row, 0);
    if (update == Update::assign) {
      std::fill(sums, sums + b.cols, T(0));
    }
    for (Index k = 0; k < a.cols; ++k) {
      const T factor = a.data[row * a.row_stride + k * a.col_stride];
      const bool zero = factor >= T(0) && factor <= T(0);
      for (Index col = 0; !zero && col < b.cols; ++col) {
        sums[col] += factor * b.data[k * b.row_stride + col * b.col_stride];
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
