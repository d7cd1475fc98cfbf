// SPDX-License-Identifier: Apache-2.0
// What a storage of weights is: PackedMatrix<S> for a tag S, weights laid out once in the panels
// that the register tile multiplies, or in bytes from which a panel is decoded when its turn comes.
// Each storage is one file here. It knows bytes and panels, and no arithmetic of the layer.
#pragma once

#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "../kernels/convert.hpp"
#include "../kernels/lanes.hpp"
#include "../kernels/register_tile.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// One or more weights (out, in) of the same shape in storage S. S is the type of its numbers, or
/// an empty type that names it; WideOf<S> says what sums, biases and results are. Specialised by
/// each storage, with what the concept asks for.
template <class S>
class PackedMatrix;

/// A storage. Of its PackedMatrix<S>:
///
///   Input               rows of x and hidden rows are stored as this
///   Precision           and rounded to this before, where that is narrower; else Wide<S>
///   Weight              the panels that panel() gives are for RegisterTile<Input, Weight>
///   buffer_size         weights that panel() may write: 0 if its memory holds the panels
///   PackedMatrix({&w, ...})          packs matrices (out, in) of any scalar, interleaved as
///                                    PanelLayout says, which is its base
///   unpack(number)                   one of them again, as it is stored
///   bytes()                          its memory
///   panel(number, k, size, buffer)   the k of [k, k + size) of a panel, in memory of its own or
///                                    decoded into the buffer; k is a multiple of what the tile has
///                                    in 16 KiB, and size whole steps, at most the tile's depth. A
///                                    panel that is as wide as several tiles counts for so many
///   source(number, k, size)          the bytes that it reads for that, to be fetched early
///   store(values, size, weight, k, row)   if an Input holds several numbers (kernels::numbers_in):
///                                    values of Wide<S>, times the weight, in a row from k on
///
/// Scales that weights share may wait for the sums: a storage that has `scaled_depth`, a divisor of
/// the tile's depth, gives its panels in blocks of so many k, `unit` times what scales(number, k)
/// for their sums are for. See kernels::ScalesSums.
///
/// Decoding pays where many rows meet the panel. A storage whose memory another tile can read as it
/// lies has `rows_to_decode`, and stored(number, k) for fewer rows: see kernels::multiply_panels.
template <class S>
concept Storage = kernels::Vectorised<Wide<S>> &&
    requires(const PackedMatrix<S>& packed, std::initializer_list<const Matrix<float>*> weights,
             Index i, typename PackedMatrix<S>::Weight* buffer) {
  PackedMatrix<S>();
  PackedMatrix<S>(weights);
  requires std::same_as<Wide<typename PackedMatrix<S>::Input>, Wide<S>>;
  typename PackedMatrix<S>::Precision;
  { PackedMatrix<S>::buffer_size } -> std::convertible_to<Index>;
  { packed.depth() } -> std::same_as<Index>;
  { packed.num_panels() } -> std::same_as<Index>;
  { packed.unpack(i) } -> std::same_as<Matrix<Wide<S>>>;
  { packed.bytes() } -> std::same_as<std::size_t>;
  { packed.panel(i, i, i, buffer) } -> std::same_as<const typename PackedMatrix<S>::Weight*>;
  { packed.source(i, i, i) } -> std::same_as<std::span<const std::byte>>;
};

/// Where the weights lie in panels of the tile. Several matrices are interleaved: each panel holds
/// the same outputs of all of them side by side. Missing outputs, and the k that the last step
/// lacks, are zeros.
template <class Tile>
class PanelLayout {
 public:
  using Layout = PanelLayout;
  static constexpr Index cols = Tile::cols;

  PanelLayout() = default;
  /// For `count` weights (outputs, width).
  PanelLayout(std::size_t count, Index outputs, Index width)
      : share_(cols / static_cast<Index>(count)), outputs_(outputs), width_(width) {}

  /// Columns of a panel that belong to each weight.
  Index share() const { return share_; }
  Index num_outputs() const { return outputs_; }
  Index width() const { return width_; }
  /// The width in whole steps: rows of x have zeros behind it.
  Index depth() const { return Tile::whole_steps(width_); }
  Index num_panels() const { return (outputs_ + share_ - 1) / share_; }

 private:
  Index share_ = cols, outputs_ = 0, width_ = 0;
};

namespace detail {

/// Zeros at the begin of a cache line. Who has written panels there shares them with copies of a
/// packed weight, which only read them.
template <class T>
std::shared_ptr<T[]> zeroed_panels(Index size) {
  static_assert(std::is_trivially_destructible_v<T>);
  constexpr std::align_val_t line{64};
  const auto count = static_cast<std::size_t>(size);
  T* const first = static_cast<T*>(::operator new(count * sizeof(T), line));
  std::uninitialized_fill_n(first, count, T{});
  return {first, [](T* memory) { ::operator delete (memory, std::align_val_t{64}); }};
}

}  // namespace detail

/// Weights as the tile <Input, S> reads them: k-major inside a panel, front to back.
template <class Tile, class S>
class StoredPanels : public PanelLayout<Tile> {
 public:
  using PanelLayout<Tile>::cols, PanelLayout<Tile>::share, PanelLayout<Tile>::num_outputs,
      PanelLayout<Tile>::width, PanelLayout<Tile>::depth, PanelLayout<Tile>::num_panels;

  StoredPanels() = default;
  template <class T>
  StoredPanels(std::initializer_list<const Matrix<T>*> weights)
      : PanelLayout<Tile>(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()) {
    const auto panels = detail::zeroed_panels<S>(num_panels() * panel_size());
    Index first_col = 0;
    for (const Matrix<T>* weight : weights) {
      for (Index out = 0; out < num_outputs(); ++out) {
        for (Index k = 0; k < width(); ++k) {
          panels[place(first_col, out, k)] = kernels::convert<S>((*weight)(out, k));
        }
      }
      first_col += share();
    }
    data_ = panels;
  }
  /// Panels that lie elsewhere. Whether the pointer owns them is the caller's affair.
  StoredPanels(const PanelLayout<Tile>& layout, std::shared_ptr<const S[]> panels)
      : PanelLayout<Tile>(layout), data_(std::move(panels)) {}

  Matrix<Wide<S>> unpack(Index number) const {
    Matrix<Wide<S>> weight(num_outputs(), width());
    for (Index out = 0; out < num_outputs(); ++out) {
      for (Index k = 0; k < width(); ++k) {
        weight(out, k) = static_cast<Wide<S>>(data_[place(number * share(), out, k)]);
      }
    }
    return weight;
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(num_panels() * panel_size()) * sizeof(S);
  }
  /// The steps of a panel from k on.
  const S* stored(Index number, Index k) const {
    return data_.get() + number * panel_size() + k * cols;
  }
  std::span<const std::byte> source(Index number, Index k, Index size) const {
    return std::as_bytes(std::span(stored(number, k), static_cast<std::size_t>(size * cols)));
  }

 private:
  Index panel_size() const { return depth() * cols; }

  Index place(Index first_col, Index out, Index k) const {
    constexpr Index step = Tile::step;
    const Index panel = out / share(), col = first_col + out % share();
    return panel * panel_size() + (k / step * cols + col) * step + k % step;
  }

  std::shared_ptr<const S[]> data_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
