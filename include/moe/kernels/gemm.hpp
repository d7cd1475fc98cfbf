// SPDX-License-Identifier: Apache-2.0
// The matrix product of every layer: C = A * B or C += A * B, any strides, serial.
//
// Every element of C is one chain of multiply-adds over k = 0, 1, 2, ... whatever the number of
// rows and columns, so a row of C has the same bits alone and in a batch. B is packed, a block of
// k by a panel of columns at a time, into a buffer on the stack: nothing is allocated.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../types.hpp"

namespace moe::kernels {

/// A read-only matrix with a stride in both directions, in elements.
template <class T>
struct View {
  const T* data;
  Index rows, cols, row_stride, col_stride;

  View transpose() const { return {data, cols, rows, col_stride, row_stride}; }
  View block(Index row, Index col, Index num_rows, Index num_cols) const {
    return {data + row * row_stride + col * col_stride, num_rows, num_cols, row_stride, col_stride};
  }
};

/// A view of a row-major matrix or block in memory.
template <class M>
View<typename M::Scalar> view(const M& m) {
  return {m.data(), m.rows(), m.cols(), m.outerStride(), 1};
}

enum class Update { assign, add };

/// The register tile: 6 rows by as many columns as fill the vector registers, less one broadcast
/// and the loads of B. `depth` steps of k are packed at a time (64 KiB: the panel stays in L2).
template <class T>
struct GemmTile {
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  static constexpr Index packet_size = Eigen::internal::unpacket_traits<Packet>::size;
  static constexpr int rows = 6;
  static constexpr int packets = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 4 : 2;
  static constexpr Index cols = packets * packet_size;
  static constexpr Index depth = 65536 / (cols * static_cast<Index>(sizeof(T)));
};

/// Scalars with a vector unit of their own; all others take the plain loop.
template <class T>
concept Vectorised = std::is_same_v<T, float> || std::is_same_v<T, double>;

// Accumulators stay in registers only where constants address them. Clang unrolls these short loops
// by itself, GCC below -O3 has to be told.
#if defined(__GNUC__) && !defined(__clang__)
#define MOE_UNROLL _Pragma("GCC unroll 8")
#else
#define MOE_UNROLL
#endif

/// c (Rows, tile cols) = or += a (Rows, depth) * panel (depth, tile cols).
template <class T, int Rows>
void micro_kernel(View<T> a, const T* panel, T* c, Index c_stride, Update update) {
  namespace ei = Eigen::internal;
  using Tile = GemmTile<T>;
  using Packet = typename Tile::Packet;
  Packet sum[Rows][Tile::packets];
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      sum[r][p] = update == Update::add
                      ? ei::ploadu<Packet>(c + r * c_stride + p * Tile::packet_size)
                      : ei::pset1<Packet>(T(0));
    }
  }
  const T* a_column = a.data;
  for (Index k = 0; k < a.cols; ++k, a_column += a.col_stride, panel += Tile::cols) {
    Packet b[Tile::packets];
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      b[p] = ei::pload<Packet>(panel + p * Tile::packet_size);
    }
    MOE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Packet value = ei::pset1<Packet>(a_column[r * a.row_stride]);
      MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
        sum[r][p] = ei::pmadd(value, b[p], sum[r][p]);
      }
    }
  }
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      ei::pstoreu(c + r * c_stride + p * Tile::packet_size, sum[r][p]);
    }
  }
}
#undef MOE_UNROLL

/// The same for a number of rows known at run time, 1 to GemmTile::rows.
template <class T>
void micro_kernel(View<T> a, const T* panel, T* c, Index c_stride, Update update) {
  static_assert(GemmTile<T>::rows == 6);
  switch (a.rows) {
    case 1:
      return micro_kernel<T, 1>(a, panel, c, c_stride, update);
    case 2:
      return micro_kernel<T, 2>(a, panel, c, c_stride, update);
    case 3:
      return micro_kernel<T, 3>(a, panel, c, c_stride, update);
    case 4:
      return micro_kernel<T, 4>(a, panel, c, c_stride, update);
    case 5:
      return micro_kernel<T, 5>(a, panel, c, c_stride, update);
    default:
      return micro_kernel<T, 6>(a, panel, c, c_stride, update);
  }
}

#if defined(__GNUC__) && !defined(__clang__)
// Two false alarms of GCC 12: that a vector type loses its alignment as a template argument, and
// that its own AVX-512 shuffles read an undefined register.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/// panel (b.rows, tile cols) = b, padded with zeros on the right. b has at most tile cols.
template <class T>
void pack_panel(View<T> b, T* panel) {
  namespace ei = Eigen::internal;
  using Tile = GemmTile<T>;
  constexpr Index size = Tile::packet_size;
  Index packed_rows = 0;
  if (b.row_stride == 1 && b.cols == Tile::cols) {
    // The columns of b are contiguous (B is a transposed weight): transpose squares in registers.
    for (; packed_rows + size <= b.rows; packed_rows += size) {
      for (Index col = 0; col < Tile::cols; col += size) {
        ei::PacketBlock<typename Tile::Packet, size> square;
        for (Index i = 0; i < size; ++i) {
          square.packet[i] =
              ei::ploadu<typename Tile::Packet>(b.data + packed_rows + (col + i) * b.col_stride);
        }
        ei::ptranspose(square);
        for (Index i = 0; i < size; ++i) {
          ei::pstore(panel + (packed_rows + i) * Tile::cols + col, square.packet[i]);
        }
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
void multiply_panel(View<T> a, const T* panel, MatrixRef<T> c, Update update) {
  using Tile = GemmTile<T>;
  for (Index row = 0; row < a.rows; row += Tile::rows) {
    const Index rows = std::min<Index>(Tile::rows, a.rows - row);
    const View<T> block = a.block(row, 0, rows, a.cols);
    if (c.cols() == Tile::cols) {
      micro_kernel(block, panel, &c.coeffRef(row, 0), c.outerStride(), update);
      continue;
    }
    T padded[Tile::rows * Tile::cols] = {};
    Eigen::Map<Matrix<T>> whole(padded, rows, Tile::cols);
    auto part = whole.leftCols(c.cols());
    part = c.middleRows(row, rows);
    micro_kernel(block, panel, padded, Tile::cols, update);
    c.middleRows(row, rows) = part;
  }
}

/// c (M, N) = or += a (M, K) * b (K, N). c must not overlap a or b.
template <Vectorised T>
void gemm(View<T> a, View<T> b, MatrixRef<T> c, Update update) {
  using Tile = GemmTile<T>;
  alignas(64) T panel[Tile::depth * Tile::cols];
  if (a.cols == 0 && update == Update::assign) {
    c.setZero();
  }
  for (Index col = 0; col < b.cols; col += Tile::cols) {
    const Index cols = std::min(Tile::cols, b.cols - col);
    for (Index k = 0; k < a.cols; k += Tile::depth) {
      const Index depth = std::min(Tile::depth, a.cols - k);
      pack_panel(b.block(k, col, depth, cols), panel);
      multiply_panel<T>(a.block(0, k, a.rows, depth), panel, c.middleCols(col, cols),
                        k == 0 ? update : Update::add);
    }
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

}  // namespace moe::kernels
