// SPDX-License-Identifier: Apache-2.0
// Weights as floats of 8 bits (E4M3) with a scale in float for 128 k of an output: 8.25 bits a
// weight. What DeepSeek-V3 is published in, with one for 128 outputs, is exactly this, and so are
// scales of a row or of a matrix. Panels are decoded exactly, for the tile of bfloat16 where the
// machine multiplies that, else of float; scales meet the sums of 128 k.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string_view>
#include <utility>

#include "../kernels/e4m3_tile.hpp"
#include "bfloat16.hpp"
#include "coded_matrix.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Names the storage. Scales meet sums of codes, up to 448, by 128 numbers of a row: from numbers
/// of 5e33 on these may be Inf where y would be none.
struct fp8 {};

template <>
struct WideOf<fp8> {
  using type = float;
};

namespace kernels {

/// The nearest E4M3, ties to even, at most 448 in magnitude; NaN for what is not finite.
inline std::uint8_t nearest_e4m3(double value) {
  const unsigned sign = std::signbit(value) ? 0x80u : 0u;
  if (!std::isfinite(value)) {
    return static_cast<std::uint8_t>(sign | 0x7fu);
  }
  const float magnitude = detail::round_to_odd((std::min)(std::abs(value), 448.0));
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer
  if (magnitude < 0x1p-6f) {            // a multiple of 2^-9; 8 of them are the least normal number
    const auto steps = std::bit_cast<std::uint32_t>(magnitude * 512.0f + shift);
    return static_cast<std::uint8_t>(sign | (steps - std::bit_cast<std::uint32_t>(shift)));
  }
  std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude);
  bits += 0x7ffffu + (bits >> 20 & 1u);
  return static_cast<std::uint8_t>(sign | ((bits >> 20) - (120u << 3)));
}

}  // namespace kernels

/// Codes and scales as CodedMatrix has them.
struct Fp8Format {
  using Scale = float;
  static constexpr std::string_view name = "fp8";
  static constexpr int bits = 8;
  static constexpr Index block_size = kernels::E4m3Block::depth;
};

template <>
class PackedMatrix<fp8>
    : public PanelLayout<kernels::RegisterTile<Bfloat16Input, kernels::E4m3Block>> {
 public:
  using Format = Fp8Format;
  using Input = Bfloat16Input;
  using Precision = float;
  using Weight = Input;
  using Tile = kernels::RegisterTile<Input, Weight>;
  using Stored = kernels::E4m3Block;
  static constexpr Index scaled_depth = Stored::depth;
  static constexpr float unit = kernels::E4m3Decoder<Input>::unit;
  static constexpr Index buffer_size = scaled_depth * Tile::cols;
  /// Fewer rows are one tile, which decodes in registers.
  static constexpr Index rows_to_decode =
      kernels::DecodesE4m3<Input> ? kernels::RegisterTile<Input, Stored>::rows + 1 : 0;
  /// Panels are the same bytes on every instruction set.
  static constexpr std::string_view name_in_files = Format::name;

  PackedMatrix() = default;
  /// Blocks of 128 outputs by 128 k have a scale each, which takes their largest weight to 448.
  template <class T>
  PackedMatrix(std::initializer_list<const Matrix<T>*> weights)
      : Layout(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()) {
    make_blocks(weights, [&](const Matrix<T>& weight, Index number, Stored* blocks) {
      for (Index out = 0; out < num_outputs(); out += scaled_depth) {
        for (Index k = 0; k < width(); k += scaled_depth) {
          encode(weight, number, out, k, blocks);
        }
      }
    });
  }
  /// The codes and scales of the weights, as they are.
  PackedMatrix(std::initializer_list<const CodedMatrix<Format>*> weights)
      : Layout(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()) {
    make_blocks(weights, [&](const CodedMatrix<Format>& weight, Index number, Stored* blocks) {
      for (Index out = 0; out < num_outputs(); ++out) {
        for (Index k = 0; k < width(); ++k) {
          const auto& from = weight.block(out, k / scaled_depth);
          Stored& block = blocks[block_of(out, k)];
          const Index col = col_of(number, out), at = k % scaled_depth;
          block.scale[col] = from.scale;
          block.code[Stored::place(col, at)] = from.code[static_cast<std::size_t>(at)];
        }
      }
    });
  }
  /// Panels that lie elsewhere. Whether the pointer owns them is the caller's affair.
  PackedMatrix(const Layout& layout, std::shared_ptr<const Stored[]> blocks)
      : Layout(layout), blocks_(std::move(blocks)) {}

  /// Weights as their codes and scales say.
  Matrix<float> unpack(Index number) const {
    Matrix<float> weight(num_outputs(), width());
    for (Index out = 0; out < num_outputs(); ++out) {
      for (Index k = 0; k < width(); ++k) {
        const Stored& block = blocks_[block_of(out, k)];
        const Index col = col_of(number, out);
        const kernels::e4m3 code{block.code[Stored::place(col, k % scaled_depth)]};
        weight(out, k) = block.scale[col] * kernels::widen(code);
      }
    }
    return weight;
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(num_panels() * num_blocks()) * sizeof(Stored);
  }
  const Weight* panel(Index number, Index k, Index size, Weight* buffer) const {
    constexpr Index tiles = cols / Tile::cols;
    kernels::decode_e4m3(stored(number / tiles, k), size, number % tiles * Tile::cols, buffer);
    return buffer;
  }
  /// The block of a panel that k is in.
  const Stored* stored(Index number, Index k) const {
    return blocks_.get() + number * num_blocks() + k / scaled_depth;
  }
  std::span<const std::byte> source(Index number, Index k, Index size) const {
    const Index count = (size + scaled_depth - 1) / scaled_depth;
    return std::as_bytes(std::span(stored(number, k), static_cast<std::size_t>(count)));
  }
  /// Of the 128 k that k is in: one for each column.
  const float* scales(Index number, Index k) const { return stored(number, k)->scale; }

 private:
  /// write(weight, number, blocks) puts codes and scales where there are zeros.
  template <class M, class Write>
  void make_blocks(std::initializer_list<const M*> weights, Write&& write) {
    const auto blocks = detail::zeroed_panels<Stored>(num_panels() * num_blocks());
    Index number = 0;
    for (const M* weight : weights) {
      write(*weight, number++, blocks.get());
    }
    blocks_ = blocks;
  }

  Index num_blocks() const { return (width() + scaled_depth - 1) / scaled_depth; }
  Index block_of(Index out, Index k) const {
    return out / share() * num_blocks() + k / scaled_depth;
  }
  Index col_of(Index number, Index out) const { return number * share() + out % share(); }

  /// The outputs and k of a block from `out` and `k` on.
  template <class T>
  void encode(const Matrix<T>& weight, Index number, Index out, Index k, Stored* blocks) const {
    const Index outs = (std::min)(scaled_depth, num_outputs() - out);
    const Index size = (std::min)(scaled_depth, width() - k);
    const auto value = [&](Index row, Index col) {
      return static_cast<double>(kernels::convert<float>(weight(out + row, k + col)));
    };
    double most = 0.0;
    for (Index row = 0; row < outs; ++row) {
      for (Index col = 0; col < size; ++col) {
        const double magnitude = std::abs(value(row, col));
        most = std::isfinite(magnitude) ? (std::max)(most, magnitude) : most;
      }
    }
    const auto scale = static_cast<float>(most / 448.0);
    for (Index row = 0; row < outs; ++row) {
      Stored& block = blocks[block_of(out + row, k)];
      const Index in_panel = col_of(number, out + row);
      block.scale[in_panel] = scale;
      for (Index col = 0; col < size; ++col) {
        const double steps = value(row, col) / static_cast<double>(scale > 0.0f ? scale : 1.0f);
        block.code[Stored::place(in_panel, col)] = kernels::nearest_e4m3(steps);
      }
    }
  }

  std::shared_ptr<const Stored[]> blocks_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
