// SPDX-License-Identifier: Apache-2.0
// The product of a few rows with a transposed weight, as in decoding: each weight is read once, in
// the order of memory, so it is transposed in registers and never written to a panel.
#pragma once

#include <algorithm>

#include "micro_kernel.hpp"
#include "view.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

#if defined(__GNUC__) && !defined(__clang__)
// Two false alarms of GCC 12: that a vector type loses its alignment as a template argument, and
// that its own AVX-512 shuffles read an undefined register.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/// sums (Rows, packet) += a (Rows, K) * b (K, at most a packet of contiguous columns), k by k.
template <class T, int Rows>
void multiply_columns(View<T> a, View<T> b, T* sums) {
  namespace ei = Eigen::internal;
  using Packet = typename GemmTile<T>::Packet;
  constexpr Index size = GemmTile<T>::packet_size;
  const T* column[size];  // those that b lacks repeat its last
  for (Index i = 0; i < size; ++i) {
    column[i] = b.data + std::min(i, b.cols - 1) * b.col_stride;
  }
  Packet sum[Rows];
  for (int r = 0; r < Rows; ++r) {
    sum[r] = ei::ploadu<Packet>(sums + r * size);
  }
  const auto add_step = [&](const Packet& weights, Index k) {
    for (int r = 0; r < Rows; ++r) {
      const Packet value = ei::pset1<Packet>(a.data[r * a.row_stride + k * a.col_stride]);
      sum[r] = ei::pmadd(value, weights, sum[r]);
    }
  };
  Index k = 0;
  for (; k + size <= a.cols; k += size) {
    ei::PacketBlock<Packet, size> square;
    for (Index i = 0; i < size; ++i) {
      ei::prefetch(column[i] + k + size * b.col_stride);  // of the columns that come next
      square.packet[i] = ei::ploadu<Packet>(column[i] + k);
    }
    ei::ptranspose(square);
    for (Index i = 0; i < size; ++i) {
      add_step(square.packet[i], k + i);
    }
  }
  for (; k < a.cols; ++k) {
    T weights[size];
    for (Index i = 0; i < size; ++i) {
      weights[i] = column[i][k];
    }
    add_step(ei::ploadu<Packet>(weights), k);
  }
  for (int r = 0; r < Rows; ++r) {
    ei::pstoreu(sums + r * size, sum[r]);
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/// c (M, N) = or += a (M, K) * b (K, N) for M = Rows, where the columns of b are contiguous.
template <class T, int Rows>
void multiply_few_rows(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  constexpr Index size = GemmTile<T>::packet_size;
  for (Index col = 0; col < b.cols; col += size) {
    const Index cols = std::min(size, b.cols - col);
    T padded[Rows * size] = {};
    auto sums = Eigen::Map<Matrix<T>>(padded, Rows, size).leftCols(cols);
    if (update == Update::add) {
      sums = c.middleCols(col, cols);
    }
    multiply_columns<T, Rows>(a, b.block(0, col, b.rows, cols), padded);
    c.middleCols(col, cols) = sums;
  }
}

/// The same for M known at run time, 0 to GemmTile::rows.
template <class T>
void multiply_few_rows(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  switch (a.rows) {
    case 0:
      return;
    case 1:
      return multiply_few_rows<T, 1>(a, b, c, update);
    case 2:
      return multiply_few_rows<T, 2>(a, b, c, update);
    case 3:
      return multiply_few_rows<T, 3>(a, b, c, update);
    case 4:
      return multiply_few_rows<T, 4>(a, b, c, update);
    case 5:
      return multiply_few_rows<T, 5>(a, b, c, update);
    default:
      return multiply_few_rows<T, 6>(a, b, c, update);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
