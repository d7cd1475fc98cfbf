// SPDX-License-Identifier: Apache-2.0
// The register tile for a few rows and a panel of E4M3, which is decoded in registers: rows that
// wait for memory gain by no buffer. Sums have the bits of the tile of In on the decoded panel.
#pragma once

#include "decode_e4m3.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// A step is a line of each of the four groups of columns.
template <class In>
struct RegisterTile<In, E4m3Block> : RegisterTile<In> {
  static constexpr Index cols = E4m3Block::cols, step = E4m3Block::step;
  static constexpr int rows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 6 : 4;
  static constexpr Index lines = 0, lines_ahead = 0;  ///< its own are fetched, a page ahead

  static constexpr Index whole_steps(Index k) { return (k + step - 1) / step * step; }
};

// As in register_tile.hpp.
#if defined(__GNUC__) && !defined(__clang__)
#define MOE_UNROLL _Pragma("GCC unroll 8")
#else
#define MOE_UNROLL
#endif

/// c (Rows, 64) = or += a (Rows, depth) * the panel's first k, times the decoder's unit and without
/// its scales; depth is at most that of a block. Columns that all have their sums in registers come
/// together.
template <class In, int Rows>
EIGEN_DONT_INLINE void multiply_e4m3(const In* const* rows, const E4m3Block* panel, Index depth,
                                     Sums<In> c) {
  namespace ei = Eigen::internal;
  using Steps = E4m3Steps<In>;
  using Packet = typename Steps::Packet;
  constexpr int packets = Steps::packets;
  // Of columns, so many that half of the registers hold their sums: 1, 2 or 4.
  constexpr int fit = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS / (2 * Rows * packets);
  constexpr int groups = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
  const In* row[Rows];
  for (int r = 0; r < Rows; ++r) {
    row[r] = rows[r];
  }
  E4m3Decoder<In> decode;
  for (Index col = 0; col < E4m3Block::cols; col += groups * E4m3Block::group) {
    Packet sum[Rows][groups * packets];
    const auto place = [&](int r, int p) {
      return c.data + r * c.stride + col + p * Steps::packet_size;
    };
    MOE_UNROLL for (int r = 0; r < Rows; ++r) {
      MOE_UNROLL for (int p = 0; p < groups * packets; ++p) {
        sum[r][p] = c.update == Update::add ? ei::ploadu<Packet>(place(r, p))
                                            : ei::pset1<Packet>(Wide<In>(0));
      }
    }
    const std::uint8_t* line = panel->code + E4m3Block::place(col, 0);
    for (Index k = 0; k < depth; k += E4m3Block::step, line += E4m3Block::place(0, 4)) {
      MOE_UNROLL for (int g = 0; g < groups; ++g) {
        prefetch(line + g * E4m3Block::line + page_ahead);
      }
      MOE_UNROLL for (int number = 0; number < Steps::of_line; ++number) {
        MOE_UNROLL for (int g = 0; g < groups; ++g) {
          const Steps steps = decode(line + g * E4m3Block::line + number * Steps::bytes);
          MOE_UNROLL for (int s = 0; s < 2; ++s) {
            MOE_UNROLL for (int r = 0; r < Rows; ++r) {
              const auto value =
                  broadcast_step<Packet>(row[r] + k + 2 * number + s * int{Steps::step});
              MOE_UNROLL for (int p = 0; p < packets; ++p) {
                Packet& total = sum[r][g * packets + p];
                total = multiply_add_step<In>(value, steps.packet[s][p], total);
              }
            }
          }
        }
      }
    }
    MOE_UNROLL for (int r = 0; r < Rows; ++r) {
      MOE_UNROLL for (int p = 0; p < groups * packets; ++p) { ei::pstoreu(place(r, p), sum[r][p]); }
    }
  }
  if (decode.saw_nan()) {
    for_nans(panel, depth, 0, E4m3Block::cols, [&](Index, Index col) {
      for (int r = 0; r < Rows; ++r) {
        c.data[r * c.stride + col] = std::numeric_limits<Wide<In>>::quiet_NaN();
      }
    });
  }
}
#undef MOE_UNROLL

/// As the tile of floats.
template <class In>
void multiply_tile(Index num_rows, RowPointers<In> a, Panel<In, E4m3Block> panel, Index depth,
                   Sums<In> c, Ahead /*ahead*/) {
  with_tile_rows<RegisterTile<In, E4m3Block>>(
      num_rows, [&](auto rows) { multiply_e4m3<In, rows()>(a.row, panel.data, depth, c); });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
