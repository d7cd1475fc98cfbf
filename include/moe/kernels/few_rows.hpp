// SPDX-License-Identifier: Apache-2.0
// The product of a few rows with a transposed weight, as in decoding: each weight is read once, in
// the order of memory, so it is transposed in registers and never written to a panel.
#pragma once

#include <algorithm>

#include "register_tile.hpp"
#include "transpose.hpp"
#include "view.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// sums (Rows, packet) += a (Rows, K) * b (K, at most a packet of contiguous columns), k by k. A's
/// rows are contiguous where a step takes more than one k, and K is whole steps.
template <class T, int Rows>
void multiply_columns(View<T> a, View<T> b, Wide<T>* sums) {
  namespace ei = Eigen::internal;
  using P = PackedAs<T>;
  using Packet = typename RegisterTile<P>::Packet;
  constexpr Index size = RegisterTile<P>::packet_size, step = RegisterTile<P>::step;
  constexpr Index square_depth = size * step;
  constexpr Index distance = 16 * square_depth;  // that a line is fetched ahead of its use
  const T* column[size];                         // those that b lacks repeat its last
  for (Index i = 0; i < size; ++i) {
    column[i] = b.data + (std::min)(i, b.cols - 1) * b.col_stride;
  }
  Packet sum[Rows];
  for (int r = 0; r < Rows; ++r) {
    sum[r] = ei::ploadu<Packet>(sums + r * size);
  }
  const auto add_step = [&](const Packet& weights, Index k) {
    for (int r = 0; r < Rows; ++r) {
      const Packet value = broadcast_step<Packet>(a.data + r * a.row_stride + k * a.col_stride);
      sum[r] = multiply_add_step<P>(value, weights, sum[r]);
    }
  };
  Index k = 0;
  for (; k + square_depth <= a.cols; k += square_depth) {
    // How far ahead these columns or, near their end, the next ones are fetched.
    const Index later = k + distance < a.cols ? distance : size * b.col_stride + distance - a.cols;
    const T* from[size];
    for (Index i = 0; i < size; ++i) {
      from[i] = column[i] + k;
      prefetch(from[i] + later);
    }
    const Square<P> square = load_transposed<P>(from);
    for (Index i = 0; i < size; ++i) {
      add_step(square.packet[i], k + i * step);
    }
  }
  for (; k < a.cols; k += step) {
    T weights[square_depth];
    for (Index i = 0; i < size; ++i) {
      std::copy_n(column[i] + k, step, weights + i * step);
    }
    add_step(load_step<Packet>(weights), k);
  }
  for (int r = 0; r < Rows; ++r) {
    ei::pstoreu(sums + r * size, sum[r]);
  }
}

/// c (M, N) = or += a (M, K) * b (K, N) for M up to RegisterTile::rows, where the columns of b are
/// contiguous, and the rows of a as above.
template <class T, class C = T>
void multiply_few_rows(View<T> a, View<T> b, Into<C> c, Update update) {
  using W = Wide<T>;
  using Tile = RegisterTile<PackedAs<T>>;
  constexpr Index size = Tile::packet_size;
  for (Index col = 0; a.rows > 0 && col < b.cols; col += size) {
    const Index cols = (std::min)(size, b.cols - col);
    W sums[Tile::rows * size] = {};
    if (update == Update::add) {
      copy_rows(view(c.middleCols(col, cols)), sums, size);
    }
    with_tile_rows<Tile>(a.rows, [&](auto rows) {
      multiply_columns<T, rows()>(a, b.block(0, col, b.rows, cols), sums);
    });
    copy_rows(View<W>{sums, a.rows, cols, size, 1}, &c.coeffRef(0, col), c.outerStride());
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
