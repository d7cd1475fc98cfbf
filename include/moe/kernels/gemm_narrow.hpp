// SPDX-License-Identifier: Apache-2.0
// The matrix product of bfloat16 and half: sums in float, rounded once at the end if at all.
//
// Of bfloat16 the register tile takes pairs of k, so B is packed always, and A unless its rows are
// pairs as they lie in memory. Of half it takes what float's does: both are widened when packed, of
// A the rows of a tile before it is at work, as all of them would not stay in a cache. All buffers
// are the caller's.
#pragma once

#include <algorithm>
#include <concepts>

#include "../detail/reserve.hpp"
#include "few_rows.hpp"
#include "gemm_memory.hpp"
#include "pack.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// A product c = or += a b in the making: the block of B that is at work, the same of A if A has to
/// be packed, and the sums of some rows.
template <class T, class C>
class NarrowProduct {
 public:
  using P = PackedAs<T>;
  using Tile = RegisterTile<P>;
  // Half a panel's, as A and the sums want their place in L2. Without packets a panel is narrow,
  // and would be deeper than the rows of A can be.
  static constexpr Index most_depth = (std::min)(Tile::depth / 2, Index{4096});
  static constexpr Index most_rows = 512;

  NarrowProduct(View<T> a, View<T> b, MatrixRef<C> c, Update update, GemmMemory<T>& memory)
      : a_(a),
        b_(b),
        c_(c),
        update_(update),
        panel_(reinterpret_cast<P*>(memory.data())),
        packed_a_(panel_ + most_depth * Tile::cols),
        sums_(reinterpret_cast<float*>(packed_a_ + packed_a_size)) {
    constexpr Index packed = (most_depth * Tile::cols + packed_a_size) * Index{sizeof(P)};
    static_assert(packed + most_rows * Tile::cols * Index{sizeof(float)} <=
                  GemmMemory<T>::most_bytes);
  }

  /// Whether the tile may read A where it is.
  static bool readable(View<T> a) {
    return std::same_as<T, P> && a.col_stride == 1 && a.cols % Tile::step == 0;
  }
  /// Whether rows are widened tile by tile.
  static bool widens_rows(View<T> a) { return !std::same_as<T, P> && a.col_stride == 1; }

  /// Rows that meet a block of B before the next: as many as are packed, or whose sums stay in L2.
  Index rows_at_once() const {
    const Index depth = std::clamp(Tile::whole_steps(a_.cols), Tile::step, most_depth);
    return packs_a_ ? (std::min)(most_rows, most_depth / depth * Tile::cols) : most_rows;
  }

  /// Writes the columns of the panel at `col` of the rows [row, row + rows).
  void compute(Index row, Index rows, Index col) {
    const Index cols = (std::min)(Tile::cols, b_.cols - col);
    for (Index k = 0; k == 0 || k < a_.cols; k += most_depth) {
      const Index depth = (std::min)(most_depth, a_.cols - k);
      const View<T> a = a_.block(row, k, rows, depth);
      if (packs_a_ && (col == 0 || depth < a_.cols)) {
        pack_rows(a);
      }
      pack_panel(b_.block(k, col, depth, cols), panel_);
      multiply(a, c_.block(row, col, rows, cols), {k == 0, k + depth == a_.cols});
    }
  }

 private:
  /// Whether a block of k is the first and the last of a product.
  struct Ends {
    bool first, last;
  };

  /// packed_a = the rows of A as panels of B, tile cols rows each.
  void pack_rows(View<T> a) {
    for (Index row = 0; row < a.rows; row += Tile::cols) {
      const Index rows = (std::min)(Tile::cols, a.rows - row);
      pack_panel(a.block(row, 0, rows, a.cols).transpose(),
                 packed_a_ + row * Tile::whole_steps(a.cols));
    }
  }

  /// Where the tile of the rows from `first` on finds row r of the block of A.
  const P* row_of(View<T> a, Index first, Index r) const {
    if (packs_a_) {
      const Index in_panel = r % Tile::cols;
      return packed_a_ + (r - in_panel) * Tile::whole_steps(a.cols) + Tile::step * in_panel;
    }
    if constexpr (std::same_as<T, P>) {
      return a.data + r * a.row_stride;
    } else {
      return packed_a_ + (r - first) * widened_stride;
    }
  }

  /// sums += a * panel, which begin as c and end in it.
  void multiply(View<T> a, MatrixRef<C> c, Ends block) {
    for_tiles<Tile>(a.rows, [&](Index row, Index rows, Index left) {
      float* sums = sums_ + row * Tile::cols;
      if (!packs_a_ && !std::same_as<T, P>) {
        copy_rows(a.block(row, 0, rows, a.cols), packed_a_, widened_stride);
      }
      const P* pointer[Tile::rows];
      for (Index r = 0; r < rows; ++r) {
        pointer[r] = row_of(a, row, row + r);
      }
      if (block.first && update_ == Update::add) {
        std::fill_n(sums, rows * Tile::cols, 0.0F);  // c may be narrower than the tile
        copy_rows(view(c.middleRows(row, rows)), sums, Tile::cols);
      }
      const Index next = row + rows, next_rows = (std::min)(Index{Tile::rows}, left);
      prefetch_rows(c.data() + next * c.outerStride(), next_rows, c.cols(), c.outerStride());
      multiply_tile<P>(rows, {pointer, packs_a_ ? Tile::cols : 1}, {panel_},
                       Tile::whole_steps(a.cols),
                       {sums, Tile::cols, block.first ? update_ : Update::add}, {panel_, 0});
      if (block.last) {
        copy_rows(View<float>{sums, rows, c.cols(), Tile::cols, 1}, &c.coeffRef(row, 0),
                  c.outerStride());
      }
    });
  }

  // Rows that lie a power of two apart compete for the same places of a cache.
  static constexpr Index widened_stride = detail::spread_width<P>(most_depth);
  static constexpr Index packed_a_size =
      (std::max)(most_depth * Tile::cols, Tile::rows* widened_stride);

  const View<T> a_, b_;
  MatrixRef<C> c_;
  const Update update_;
  const bool packs_a_ = !readable(a_) && !widens_rows(a_);
  P* const panel_;     // (most_depth, tile cols)
  P* const packed_a_;  // (most_depth, tile cols), or the widened rows of a tile
  float* const sums_;  // (most_rows, tile cols)
};

/// c = or += a * b. C is T or float.
template <class T, class C>
void gemm_narrow(View<T> a, View<T> b, MatrixRef<C> c, Update update, GemmMemory<T>& memory) {
  using Product = NarrowProduct<T, C>;
  if (a.rows <= Product::Tile::rows && b.row_stride == 1 &&
      (Product::readable(a) || !std::same_as<T, typename Product::P>)) {
    return multiply_few_rows<T, C>(a, b, c, update);
  }
  Product product(a, b, c, update, memory);
  const Index step = product.rows_at_once();
  for (Index row = 0; row < a.rows; row += step) {
    for (Index col = 0; col < b.cols; col += Product::Tile::cols) {
      product.compute(row, (std::min)(step, a.rows - row), col);
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
