// SPDX-License-Identifier: Apache-2.0
// A weight laid out once for the register tile: panels of tile columns, k-major inside a panel,
// so that a product reads it front to back.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <span>
#include <vector>

#include "../types.hpp"
#include "lanes.hpp"
#include "register_tile.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// One or more weights (out, in) of the same shape in storage S. Several are interleaved: each
/// panel holds the same outputs of all of them side by side. Missing outputs and the k that a step
/// lacks are zeros.
template <class S>
class PackedMatrix {
 public:
  static constexpr Index cols = RegisterTile<S>::cols;
  static constexpr Index step = RegisterTile<S>::step;

  PackedMatrix() = default;
  template <class T>
  PackedMatrix(std::initializer_list<const Matrix<T>*> weights)
      : share_(cols / static_cast<Index>(weights.size())),
        outputs_((*weights.begin())->rows()),
        width_((*weights.begin())->cols()),
        data_(static_cast<std::size_t>(num_panels() * panel_size()), S(0)) {
    Index first_col = 0;
    for (const Matrix<T>* weight : weights) {
      for (Index out = 0; out < outputs_; ++out) {
        for (Index k = 0; k < width_; ++k) {
          data_[place(first_col, out, k)] = convert<S>((*weight)(out, k));
        }
      }
      first_col += share_;
    }
  }

  /// One of the weights again (out, in).
  Matrix<Wide<S>> unpack(Index number) const {
    Matrix<Wide<S>> weight(outputs_, width_);
    for (Index out = 0; out < outputs_; ++out) {
      for (Index k = 0; k < width_; ++k) {
        weight(out, k) = static_cast<Wide<S>>(data_[place(number * share_, out, k)]);
      }
    }
    return weight;
  }

  /// Columns of a panel that belong to each weight.
  Index share() const { return share_; }
  Index num_outputs() const { return outputs_; }
  Index width() const { return width_; }
  /// The width in whole steps.
  Index depth() const { return RegisterTile<S>::whole_steps(width_); }
  Index num_panels() const { return (outputs_ + share_ - 1) / share_; }
  const S* panel(Index number) const { return data_.data() + number * panel_size(); }
  std::size_t bytes() const { return data_.size() * sizeof(S); }

 private:
  Index panel_size() const { return depth() * cols; }

  std::size_t place(Index first_col, Index out, Index k) const {
    const Index panel = out / share_, col = first_col + out % share_;
    return static_cast<std::size_t>(panel * panel_size() + (k / step * cols + col) * step +
                                    k % step);
  }

  Index share_ = cols, outputs_ = 0, width_ = 0;
  std::vector<S, Eigen::aligned_allocator<S>> data_;
};

/// The finished sums (count, tile cols) of rows [row, row + count) with one panel. The tile that
/// comes next has at most next_count rows.
template <class S>
struct Finished {
  Index row, count, next_count, panel;
  const Wide<S>* sums;
};

/// Multiplies rows of A by the panels [first, last) of a weight. sums has room for all rows by tile
/// columns. finish(Finished) gets them tile by tile.
template <class S, class Finish>
void multiply_panels(std::span<const S* const> rows, const PackedMatrix<S>& weight, Index first,
                     Index last, Wide<S>* sums, Finish&& finish) {
  using Tile = RegisterTile<S>;
  // Of k: 256 KiB of a panel stay in L2 while all rows meet it, and the next 256 KiB are fetched.
  constexpr Index block = Tile::depth;
  const Index num_rows = static_cast<Index>(rows.size());
  const Index sums_step = weight.depth() > block ? Tile::cols : 0;  // else no tile waits for more
  for (Index panel = first; panel < last; ++panel) {
    for (Index k = 0; k == 0 || k < weight.depth(); k += block) {
      const Index depth = std::min(block, weight.depth() - k);
      const S* data = weight.panel(panel) + k * Tile::cols;
      const bool is_end = panel + 1 == weight.num_panels() && k + depth == weight.depth();
      const S* after = is_end ? data : data + depth * Tile::cols;
      const Index steps = depth / Tile::step;
      const NextPanel next =
          NextPanel::of_bytes(after, depth * Tile::cols * Index{sizeof(S)}, steps);
      for_tiles<Tile>(num_rows, [&](Index row, Index count, Index left) {
        const S* tile_rows[Tile::rows];
        for (Index r = 0; r < count; ++r) {
          tile_rows[r] = rows[static_cast<std::size_t>(row + r)] + k;
        }
        Wide<S>* tile_sums = sums + row * sums_step;
        multiply_tile<S>(count, {tile_rows, 1}, {data}, depth,
                         {tile_sums, Tile::cols, k == 0 ? Update::assign : Update::add},
                         next.ahead_of<Tile>(left));
        if (k + depth >= weight.depth()) {
          finish(Finished<S>{row, count, std::min(left, Index{Tile::rows}), panel, tile_sums});
        }
      });
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
