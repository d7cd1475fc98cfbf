// SPDX-License-Identifier: Apache-2.0
// The product of rows at any address with a packed weight, panel by panel, where the weight may
// have to be decoded: a block of a panel at a time, once for all rows.
#pragma once

#include <algorithm>
#include <concepts>
#include <span>

#include "../detail/part.hpp"
#include "register_tile.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// The finished sums (count, P::cols) of rows [row, row + count) with one panel. The tile that
/// comes next has at most next_count rows.
template <class Sum>
struct Finished {
  Index row, count, next_count, panel;
  const Sum* sums;
};

/// Memory of a product: sums (rows, P::cols), and P::buffer_size weights.
template <class P>
struct PanelMemory {
  Wide<typename P::Input>* sums;
  typename P::Weight* buffer;
};

/// Whether weights have scales that their sums meet, P::scaled_depth k by so many: scales(panel, k)
/// are one for each column. Panels are P::unit times what the scales are for.
template <class P>
concept ScalesSums = requires(const P& weight, Index i) {
  { P::scaled_depth } -> std::convertible_to<Index>;
  { P::unit } -> std::convertible_to<Wide<typename P::Input>>;
  { weight.scales(i, i) } -> std::same_as<const Wide<typename P::Input>*>;
};

/// The columns from `col` on and the k of a panel that all rows meet before the next, the bytes
/// to fetch meanwhile, and the scales of their sums, null if P has none or there is no k.
template <class P>
struct PanelBlock {
  Index k, depth, col;
  std::span<const std::byte> ahead;
  const Wide<typename P::Input>* scales = nullptr;
};

/// total (count, tile cols of P::cols) = or += partial (count, tile cols), times the scales of a
/// block.
template <class Tile, class P>
void add_scaled(const typename Tile::Sum* partial, Index count, const PanelBlock<P>& block,
                typename Tile::Sum* total) {
  namespace ei = Eigen::internal;
  using Packet = typename Tile::Packet;
  const auto per_unit = ei::pset1<Packet>(1 / P::unit);  // a power of two
  for (Index col = 0; col < Tile::cols; col += Tile::packet_size) {
    const auto scale = ei::ploadu<Packet>(block.scales + block.col + col);
    for (Index row = 0; row < count; ++row) {
      typename Tile::Sum* const to = total + row * P::cols + col;
      const auto before =
          block.k == 0 ? ei::pset1<Packet>(typename Tile::Sum(0)) : ei::ploadu<Packet>(to);
      const auto sum = ei::pmul(per_unit, ei::ploadu<Packet>(partial + row * Tile::cols + col));
      ei::pstoreu(to, ei::pmadd(scale, sum, before));
    }
  }
}

/// sums (rows, P::cols), `sums_step` from one row to the next, = or += the block of rows * panel,
/// in its columns. done(row, count, left, sums) follows each tile.
template <class P, class Weight, class Done>
void multiply_block(std::span<const typename P::Input* const> rows, const Weight* panel,
                    const PanelBlock<P>& block, Wide<typename P::Input>* sums, Index sums_step,
                    Done&& done) {
  using In = typename P::Input;
  using Tile = RegisterTile<In, Weight>;
  const Index num_rows = static_cast<Index>(rows.size());
  const NextPanel next =
      NextPanel::of_bytes(block.ahead, block.depth / Tile::step,
                          num_rows > Tile::rows ? Tile::lines_ahead : Tile::lines);
  for_tiles<Tile>(num_rows, [&](Index row, Index count, Index left) {
    const In* tile_rows[Tile::rows];
    for (Index r = 0; r < count; ++r) {
      tile_rows[r] = rows[static_cast<std::size_t>(row + r)] + block.k / numbers_in<In>;
    }
    Wide<In>* row_sums = sums + row * sums_step;
    Wide<In>* tile_sums = row_sums + block.col;
    const auto multiply = [&](Wide<In>* to, Index stride, Update update) {
      multiply_tile(count, RowPointers<In>{tile_rows, 1}, Panel<In, Weight>{panel}, block.depth,
                    Sums<In>{to, stride, update}, next.ahead_of<Tile>(left));
    };
    if (!ScalesSums<P> || block.scales == nullptr) {
      multiply(tile_sums, P::cols, block.k == 0 ? Update::assign : Update::add);
    } else if constexpr (ScalesSums<P>) {
      alignas(64) Wide<In> partial[Tile::rows * Tile::cols];
      multiply(partial, Tile::cols, Update::assign);
      add_scaled<Tile>(partial, count, block, tile_sums);
    }
    done(row, count, left, row_sums);
  });
}

/// The block of a packed weight that comes after the steps [k, k + depth) of a panel, or those.
template <class P>
std::span<const std::byte> source_after(const P& weight, Index panel, Index k, Index depth) {
  const Index left = weight.depth() - (k + depth);
  if (left > 0) {
    return weight.source(panel, k + depth, (std::min)(depth, left));
  }
  return panel + 1 < weight.num_panels() ? weight.source(panel + 1, 0, depth)
                                         : weight.source(panel, k, depth);
}

/// What a tile asks memory for beside the block of the steps [k, k + depth) of a panel: what comes
/// after it. A tile that is alone with a panel in memory, where one stream is best, stays in that
/// stream, a page ahead.
template <class P>
std::span<const std::byte> source_ahead(const P& weight, Index panel, Index k, Index depth,
                                        bool alone) {
  if (alone && depth > 0 && P::buffer_size == 0 && places_ahead() == 1) {
    const std::span<const std::byte> own = weight.source(panel, k, depth);
    return {own.data() + page_ahead, own.size()};  // any address will do
  }
  return source_after(weight, panel, k, depth);
}

/// The k of a panel that all rows meet before the next: blocks as even as may be, of 256 KiB at
/// most, which stay in L2 while the next is fetched. A tile that is alone asks for all of the next
/// by itself, and waits less for the first lines of a shorter one.
template <class P>
Index block_depth(bool alone, Index whole_depth) {
  using Tile = RegisterTile<typename P::Input, typename P::Weight>;
  if constexpr (ScalesSums<P>) {
    return P::scaled_depth;
  } else {
    constexpr Index unit = Tile::depth_of(16384);
    const Index most = alone ? Tile::depth_of(131072) : Tile::depth;
    const Index blocks = (std::max)(Index{1}, (whole_depth + most - 1) / most);
    const Index units = (whole_depth + blocks * unit - 1) / (blocks * unit);
    return (std::max)(Index{1}, units) * unit;
  }
}

/// Multiplies rows of A, each weight.depth() long, by a part of the panels of a packed weight,
/// whose P is a PackedMatrix as the concept Storage has it. finish(Finished) gets the sums tile by
/// tile. Where few rows are no work to decode a panel for, a tile reads what P has stored.
template <class P, class Finish>
void multiply_panels(std::span<const typename P::Input* const> rows, const P& weight,
                     detail::Part part, const PanelMemory<P>& memory, Finish&& finish) {
  using In = typename P::Input;
  using Tile = RegisterTile<In, typename P::Weight>;
  constexpr bool reads_stored = [] {
    if constexpr (requires { P::rows_to_decode; }) {
      return P::rows_to_decode > 0;
    } else {
      return false;
    }
  }();
  constexpr Index tiles = P::cols / Tile::cols;  // side by side in a panel
  const Index whole_depth = weight.depth(), end = part.end(weight.num_panels());
  const bool alone = static_cast<Index>(rows.size()) <= Tile::rows;
  const Index most_depth = block_depth<P>(alone, whole_depth);
  // Else no tile waits for more.
  const Index sums_step = whole_depth > most_depth || tiles > 1 ? P::cols : 0;
  for (Index panel = part.begin(weight.num_panels()); panel < end; ++panel) {
    for (Index k = 0; k == 0 || k < whole_depth; k += most_depth) {
      const Index depth = (std::min)(most_depth, whole_depth - k);
      const std::span<const std::byte> ahead = source_ahead(weight, panel, k, depth, alone);
      const auto multiply = [&](const auto* data, Index number, Index of) {
        const std::size_t bytes = ahead.size() / static_cast<std::size_t>(of);
        PanelBlock<P> block{k, depth, number * Tile::cols,
                            ahead.subspan(bytes * static_cast<std::size_t>(number), bytes)};
        if constexpr (ScalesSums<P>) {
          block.scales = depth > 0 ? weight.scales(panel, k) : nullptr;
        }
        multiply_block<P>(rows, data, block, memory.sums, sums_step,
                          [&](Index row, Index count, Index left, const Wide<In>* sums) {
                            if (k + depth == whole_depth && number + 1 == of) {
                              finish(Finished<Wide<In>>{
                                  row, count, (std::min)(left, Index{Tile::rows}), panel, sums});
                            }
                          });
      };
      if constexpr (reads_stored) {
        if (static_cast<Index>(rows.size()) < P::rows_to_decode) {
          multiply(weight.stored(panel, k), 0, 1);
          continue;
        }
      }
      for (Index number = 0; number < tiles; ++number) {
        multiply(weight.panel(panel * tiles + number, k, depth, memory.buffer), number, tiles);
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
