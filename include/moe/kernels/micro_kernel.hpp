// SPDX-License-Identifier: Apache-2.0
// The register tile under every product: a few rows by a panel of columns, all of its sums in
// registers, one multiply-add after the other over k.
#pragma once

#include <type_traits>

#include "../types.hpp"
#include "bfloat16.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// 6 rows by as many columns as fill the vector registers, less one broadcast and the loads of the
/// panel. Sums are Wide<T>. A panel holds `group` steps of k side by side for each column, which
/// one instruction multiplies. `depth` steps make a block of 256 KiB, which stays in L2.
template <class T>
struct GemmTile {
  using Packet = typename Eigen::internal::packet_traits<Wide<T>>::type;
  static constexpr Index packet_size = Eigen::internal::unpacket_traits<Packet>::size;
  static constexpr int rows = 6;
  static constexpr int packets = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 4 : 2;
  static constexpr Index cols = packets * packet_size;
  static constexpr Index group = static_cast<Index>(sizeof(Wide<T>) / sizeof(T));
  static constexpr Index depth = 262144 / (cols * static_cast<Index>(sizeof(T)));
  static constexpr Index line = 64 / static_cast<Index>(sizeof(T));  ///< scalars in a cache line
  static constexpr Index lines = (cols * group + line - 1) / line;   ///< of a step of a panel

  /// Steps of k, rounded up.
  static constexpr Index whole_groups(Index k) { return (k + group - 1) / group * group; }
};

enum class Update { assign, add };

/// The columns of B that a tile multiplies: steps of k follow each other with the stride.
template <class T>
struct Panel {
  const T* data;
  Index stride = GemmTile<T>::group * GemmTile<T>::cols;
};

/// Where a tile puts its sums (rows, tile cols), and whether it starts from what is there.
template <class T>
struct Sums {
  Wide<T>* data;
  Index stride;
  Update update;
};

/// Rows of A at any address, so that a gather costs nothing: row r has its k-th element at
/// row[r][k * stride], and the rest of a group behind the first of it.
template <class T>
struct RowPointers {
  const T* const* row;
  Index stride;
};

/// Asks for a cache line, for the second cache. In the first, which is small, it would push out
/// what is at work, or be pushed out by columns that lie a power of two apart, before its turn
/// comes.
inline void prefetch(const void* line) {
#ifdef __GNUC__  // and Clang
  __builtin_prefetch(line, 0, 2);
#else
  Eigen::internal::prefetch(static_cast<const char*>(line));
#endif
}

/// The same for the lines of `rows` rows of `cols` elements. Rows that a tile is about to write are
/// worth it, too: else its stores wait for their lines, and what comes next for the stores.
template <class T>
void prefetch_rows(const T* first, Index rows, Index cols, Index stride) {
  for (Index row = 0; row < rows; ++row) {
    for (Index col = 0; col < cols; col += GemmTile<T>::line) {
      prefetch(first + row * stride + col);
    }
  }
}

/// What comes next from memory: a tile asks for one cache line at each step of k, `step` scalars
/// apart. Any address will do.
template <class T>
struct Ahead {
  const T* data;
  Index step = GemmTile<T>::line;
};

/// The panel that comes after this one, for the last tiles of this one to ask for: fetched earlier,
/// the rows in between would push it out again. The tile with n tiles after it takes the lines from
/// `first` + n * tile_step on.
template <class T>
struct NextPanel {
  const T* first;
  Index step, tile_step;

  /// For a tile that so many rows come after.
  Ahead<T> ahead_of(Index rows_left) const {
    using Tile = GemmTile<T>;
    const Index tile = (rows_left + Tile::rows - 1) / Tile::rows;
    return tile < Tile::lines ? Ahead<T>{first + tile * tile_step, step} : Ahead<T>{first, 0};
  }
};

/// body(row, count, left) for each tile of `rows` rows, which `left` rows come after: tiles as even
/// as possible, as a small one reads the panel for little work.
template <class T, class Body>
void for_tiles(Index rows, Body&& body) {
  constexpr Index most = GemmTile<T>::rows;
  for (Index row = 0, count = 0; row < rows; row += count) {
    const Index left = rows - row;
    count = left / ((left + most - 1) / most);
    body(row, count, left - count);
  }
}

// One step of the tile. For bfloat16 it takes pairs of k: see bfloat16.hpp.
template <class Packet, class T>
Packet load_group(const T* panel) {
  return Eigen::internal::ploadu<Packet>(panel);
}
template <class Packet, class T>
void store_group(T* panel, const Packet& packet) {
  Eigen::internal::pstoreu(panel, packet);
}
template <class Packet, class T>
Packet broadcast_group(const T* value) {
  return Eigen::internal::pset1<Packet>(*value);
}
template <class T, class Packet>
Packet multiply_add_group(const Packet& a, const Packet& b, const Packet& sum) {
  if constexpr (GemmTile<T>::group == 2) {
    return dot_pairs(a, b, sum);
  } else {
    return Eigen::internal::pmadd(a, b, sum);
  }
}

// Accumulators stay in registers only where constants address them. Clang unrolls these short loops
// by itself, GCC below -O3 has to be told.
#if defined(__GNUC__) && !defined(__clang__)
#define MOE_UNROLL _Pragma("GCC unroll 8")
#else
#define MOE_UNROLL
#endif

/// c (Rows, tile cols) = or += a (Rows, depth) * panel (depth, tile cols). A function of its own:
/// the loop needs all general registers, too. One or two rows, which are all that meet the panel,
/// wait for memory: they ask for its own lines, a page ahead, and not for those of the next.
template <class T, int Rows>
EIGEN_DONT_INLINE void micro_kernel(RowPointers<T> a, Panel<T> panel, Index depth, Sums<T> c,
                                    Ahead<T> ahead) {
  namespace ei = Eigen::internal;
  using Tile = GemmTile<T>;
  using Packet = typename Tile::Packet;
  const T* row[Rows];
  Packet sum[Rows][Tile::packets];
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    row[r] = a.row[r];
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      sum[r][p] = c.update == Update::add
                      ? ei::ploadu<Packet>(c.data + r * c.stride + p * Tile::packet_size)
                      : ei::pset1<Packet>(Wide<T>(0));
    }
  }
  constexpr Index page = 4096 / (Tile::group * Tile::cols * Index{sizeof(T)});  // in steps
  for (Index k = 0; k < depth; k += Tile::group, panel.data += panel.stride) {
    if constexpr (Rows <= 2) {
      MOE_UNROLL for (Index i = 0; i < Tile::lines; ++i) {
        prefetch(panel.data + page * panel.stride + i * Tile::line);
      }
    } else {
      prefetch(ahead.data);
      ahead.data += ahead.step;
    }
    Packet b[Tile::packets];
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      b[p] = load_group<Packet>(panel.data + p * Tile::packet_size * Tile::group);
    }
    MOE_UNROLL for (int r = 0; r < Rows; ++r) {
      const Packet value = broadcast_group<Packet>(row[r] + k * a.stride);
      MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
        sum[r][p] = multiply_add_group<T>(value, b[p], sum[r][p]);
      }
    }
  }
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      ei::pstoreu(c.data + r * c.stride + p * Tile::packet_size, sum[r][p]);
    }
  }
}
#undef MOE_UNROLL

/// f(std::integral_constant<int, rows>()) for rows known at run time, 1 to GemmTile::rows.
template <class F>
void with_tile_rows(Index rows, F&& f) {
  switch (rows) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 5:
      return f(std::integral_constant<int, 5>());
    default:
      return f(std::integral_constant<int, 6>());
  }
}

template <class T>
void micro_kernel(Index num_rows, RowPointers<T> a, Panel<T> panel, Index depth, Sums<T> c,
                  Ahead<T> ahead) {
  with_tile_rows(num_rows, [&](auto rows) { micro_kernel<T, rows()>(a, panel, depth, c, ahead); });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
