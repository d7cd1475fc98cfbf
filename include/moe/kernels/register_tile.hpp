// SPDX-License-Identifier: Apache-2.0
// The register tile under every product: a few rows by a panel of columns, all of its sums in
// registers, one multiply-add after the other over k.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "../types.hpp"
#include "bfloat16.hpp"
#include "fetch.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// 6 rows by as many columns as fill the vector registers, less one broadcast and the loads of the
/// panel; 5 if one of 16 registers is wanted for the mask of what is widened. Rows of type In meet
/// a panel of type Weight; sums are Wide<In>. A panel holds `step` k side by side for each column,
/// which one instruction multiplies with as many of a row, or, where the row is the wider, one
/// after the other.
template <class In, class Weight = In>
struct RegisterTile {
  using Sum = Wide<In>;
  using Packet = typename Eigen::internal::packet_traits<Sum>::type;
  static constexpr Index packet_size = Eigen::internal::unpacket_traits<Packet>::size;
  static constexpr int packets = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 4 : 2;
  static constexpr Index cols = packets * packet_size;
  static constexpr Index step = Index{sizeof(Sum) / sizeof(Weight)};
  static constexpr int products = sizeof(In) / sizeof(Weight);  ///< one after the other in a step
  static constexpr int rows = packets == 2 && products > 1 ? 5 : 6;
  static constexpr Index line = 64 / Index{sizeof(Weight)};        ///< weights in a cache line
  static constexpr Index lines = (cols * step + line - 1) / line;  ///< of a step of a panel
  static constexpr Index lines_ahead = 1;  ///< that a step of one of many tiles asks for

  /// k in so many bytes of a panel.
  static constexpr Index depth_of(Index bytes) { return bytes / (cols * Index{sizeof(Weight)}); }
  static constexpr Index depth = depth_of(262144);  ///< of a block that stays in L2
  /// k in whole steps, rounded up.
  static constexpr Index whole_steps(Index k) { return (k + step - 1) / step * step; }
};

/// Numbers of a row in one In.
template <class In>
inline constexpr Index numbers_in = 1;

enum class Update { assign, add };

/// The columns of B that a tile multiplies: steps follow each other with the stride.
template <class In, class Weight = In>
struct Panel {
  const Weight* data;
  Index stride = RegisterTile<In, Weight>::step * RegisterTile<In, Weight>::cols;
};

/// Where a tile puts its sums (rows, tile cols), and whether it starts from what is there.
template <class In>
struct Sums {
  Wide<In>* data;
  Index stride;
  Update update;
};

/// Rows of A at any address, so that a gather costs nothing: row r has its k-th element at
/// row[r][k * stride], and the rest of a step behind the first of it.
template <class In>
struct RowPointers {
  const In* const* row;
  Index stride;
};

/// body(row, count, left) for each tile of `rows` rows, which `left` rows come after: tiles as even
/// as possible, as a small one reads the panel for little work.
template <class Tile, class Body>
void for_tiles(Index rows, Body&& body) {
  constexpr Index most = Tile::rows;
  for (Index row = 0, count = 0; row < rows; row += count) {
    const Index left = rows - row;
    count = left / ((left + most - 1) / most);
    body(row, count, left - count);
  }
}

// One step of the tile. For bfloat16 it takes pairs of k: see bfloat16.hpp.
template <class Packet, class T>
Packet load_step(const T* panel) {
  return Eigen::internal::ploadu<Packet>(panel);
}
template <class Packet, class T>
void store_step(T* panel, const Packet& packet) {
  Eigen::internal::pstoreu(panel, packet);
}
template <class Packet, class T>
Packet broadcast_step(const T* value) {
  return Eigen::internal::pset1<Packet>(*value);
}
template <class In, class Packet>
Packet multiply_add_step(const Packet& a, const Packet& b, const Packet& sum) {
  if constexpr (RegisterTile<In>::step == 2) {
    return dot_pairs(a, b, sum);
  } else {
    return Eigen::internal::pmadd(a, b, sum);
  }
}

/// The weights of a step that meet its product of that number.
template <class Tile, int number, class Weight>
typename Tile::Packet load_weights(const Weight* panel) {
  const auto packet = load_step<typename Tile::Packet>(panel);
  if constexpr (Tile::products == 1) {
    return packet;
  } else {
    return half_of_pairs<number>(packet);
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
/// the loop needs all general registers, too.
template <class In, class Weight, int Rows>
EIGEN_DONT_INLINE void multiply_tile(RowPointers<In> a, Panel<In, Weight> panel, Index depth,
                                     Sums<In> c, Ahead ahead) {
  namespace ei = Eigen::internal;
  using Tile = RegisterTile<In, Weight>;
  using Packet = typename Tile::Packet;
  const In* row[Rows];
  Packet sum[Rows][Tile::packets];
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    row[r] = a.row[r];
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      sum[r][p] = c.update == Update::add
                      ? ei::ploadu<Packet>(c.data + r * c.stride + p * Tile::packet_size)
                      : ei::pset1<Packet>(typename Tile::Sum(0));
    }
  }
  Fetch fetch(ahead);
  for (Index k = 0; k < depth; k += Tile::step, panel.data += panel.stride) {
    fetch();
    const auto multiply = [&](auto number) {
      Packet b[Tile::packets];
      MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
        b[p] = load_weights<Tile, number()>(panel.data + p * Tile::packet_size * Tile::step);
      }
      MOE_UNROLL for (int r = 0; r < Rows; ++r) {
        const Packet value = broadcast_step<Packet>(row[r] + k * a.stride + number());
        MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
          sum[r][p] = multiply_add_step<In>(value, b[p], sum[r][p]);
        }
      }
    };
    multiply(std::integral_constant<int, 0>());
    if constexpr (Tile::products == 2) {
      multiply(std::integral_constant<int, 1>());
    }
  }
  MOE_UNROLL for (int r = 0; r < Rows; ++r) {
    MOE_UNROLL for (int p = 0; p < Tile::packets; ++p) {
      ei::pstoreu(c.data + r * c.stride + p * Tile::packet_size, sum[r][p]);
    }
  }
}
#undef MOE_UNROLL

/// f(std::integral_constant<int, rows>()) for rows known at run time, 1 to Tile::rows.
template <class Tile, int least = 1, class F>
void with_tile_rows(Index rows, F&& f) {
  if constexpr (least < Tile::rows) {
    if (rows > least) {
      return with_tile_rows<Tile, least + 1>(rows, f);
    }
  }
  f(std::integral_constant<int, least>());
}

template <class In, class Weight = In>
void multiply_tile(Index num_rows, RowPointers<In> a, Panel<In, Weight> panel, Index depth,
                   Sums<In> c, Ahead ahead) {
  with_tile_rows<RegisterTile<In, Weight>>(
      num_rows, [&](auto rows) { multiply_tile<In, Weight, rows()>(a, panel, depth, c, ahead); });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
