// SPDX-License-Identifier: Apache-2.0
// Weights in integers with a scale for every 32 k, and perhaps a minimum: CodedPanels<F> is the
// PackedMatrix of each such storage, but for how it makes codes of numbers. Rows of x and hidden
// rows are in integers of 8 bits, so that sums of 32 products are exact.
//
// A format F is one of kernels/coded_panel.hpp, which makes a scale and codes of as many weights as
// its CodedBlock is deep:
//
//   encode(values, codes)   returns the scale as it is stored; NaN if a weight is not finite
//   name                    in files of moe
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "../detail/check.hpp"
#include "../kernels/coded_tile.hpp"
#include "coded_matrix.hpp"
#include "panels.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <class F>
class CodedPanels
    : public PanelLayout<kernels::RegisterTile<kernels::CodedInput, kernels::CodedBlock<F>>> {
  using Tile = kernels::RegisterTile<kernels::CodedInput, kernels::CodedBlock<F>>;

 public:
  using Format = F;
  using Layout = PanelLayout<Tile>;
  using Input = kernels::CodedInput;
  using Precision = float;
  using Weight = kernels::CodedBlock<F>;
  using Stored = Weight;
  static constexpr Index buffer_size = 0;
  /// Panels are the same bytes on every instruction set.
  static constexpr std::string_view name_in_files = F::name;
  using Layout::cols, Layout::share, Layout::num_outputs, Layout::width, Layout::depth,
      Layout::num_panels;

  CodedPanels() = default;
  template <class T>
  CodedPanels(std::initializer_list<const Matrix<T>*> weights)
      : Layout(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()) {
    const auto blocks = detail::zeroed_panels<Weight>(num_panels() * panel_size());
    Index first_col = 0;
    for (const Matrix<T>* weight : weights) {
      for (Index out = 0; out < num_outputs(); ++out) {
        encode(weight->data() + out * width(), out, first_col, blocks.get());
      }
      first_col += share();
    }
    encode_missing(static_cast<Index>(weights.size()), blocks.get());
    blocks_ = blocks;
  }
  /// The codes and scales of the weights, as they are. Throws std::invalid_argument where a code or
  /// a multiple does not fit.
  CodedPanels(std::initializer_list<const CodedMatrix<F>*> weights)
      : Layout(weights.size(), (*weights.begin())->rows(), (*weights.begin())->cols()) {
    const auto blocks = detail::zeroed_panels<Weight>(num_panels() * panel_size());
    Index first_col = 0;
    for (const CodedMatrix<F>* weight : weights) {
      for (Index out = 0; out < num_outputs(); ++out) {
        for (Index number = 0; number < weight->blocks_of_row(); ++number) {
          const auto& block = weight->block(out, number);
          check_codes(block);
          store_block(block.scale, block.code.data(), first_col + out % share(),
                      blocks[place_of(out, number * block_depth)]);
        }
      }
      first_col += share();
    }
    encode_missing(static_cast<Index>(weights.size()), blocks.get());
    blocks_ = blocks;
  }
  /// Panels that lie elsewhere. Whether the pointer owns them is the caller's affair.
  CodedPanels(const Layout& layout, std::shared_ptr<const Weight[]> blocks)
      : Layout(layout), blocks_(std::move(blocks)) {}

  /// Weights as their codes and scales say.
  Matrix<float> unpack(Index number) const {
    Matrix<float> weight(num_outputs(), width());
    for (Index out = 0; out < num_outputs(); ++out) {
      const Index col = number * share() + out % share();
      for (Index k = 0; k < width(); ++k) {
        weight(out, k) = blocks_[place_of(out, k)].weight(col, k % block_depth);
      }
    }
    return weight;
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(num_panels() * panel_size()) * sizeof(Weight);
  }
  const Weight* panel(Index number, Index k, Index /*size*/, Weight* /*buffer*/) const {
    return stored(number, k);
  }
  /// The block of a panel that k is in.
  const Stored* stored(Index number, Index k) const {
    return blocks_.get() + number * panel_size() + k / block_depth;
  }
  std::span<const std::byte> source(Index number, Index k, Index size) const {
    return std::as_bytes(std::span(stored(number, k), static_cast<std::size_t>(blocks_of(size))));
  }

  /// Values (size), times the weight, as a part of a row: blocks from k on.
  template <class W>
  static void store(const W* values, Index size, W weight, Index k, Input* row) {
    kernels::encode_row(values, size, weight, kernels::bias_of_sums<F>,
                        row + k / kernels::block_size);
  }

 private:
  static constexpr Index block_depth = Weight::depth;

  static Index blocks_of(Index k) { return (k + block_depth - 1) / block_depth; }
  Index panel_size() const { return blocks_of(depth()); }
  Index place_of(Index out, Index k) const {
    return out / share() * panel_size() + k / block_depth;
  }
  static void check_codes(const typename CodedMatrix<F>::Block& block) {
    const auto check_most = [](const auto& numbers, unsigned limit, const char* name) {
      const unsigned most = *std::max_element(numbers.begin(), numbers.end());
      detail::throw_unless(most <= limit, "PackedMatrix: ", name, " ", most, ", expected at most ",
                           limit);
    };
    check_most(block.code, (1u << F::bits) - 1u, "code");
    if constexpr (kernels::HasMinima<F>) {
      check_most(block.scale.scales, F::most_multiple, "scale");
      check_most(block.scale.minima, F::most_multiple, "minimum");
    }
  }

  template <class T>
  void encode(const T* row, Index out, Index first_col, Weight* blocks) const {
    const Index col = first_col + out % share();
    for (Index k = 0; k < width(); k += block_depth) {
      float values[block_depth] = {};
      const Index count = (std::min)(block_depth, width() - k);
      std::transform(row + k, row + k + count, values,
                     [](const T& value) { return kernels::convert<float>(value); });
      encode_block(values, col, blocks[place_of(out, k)]);
    }
  }
  static void encode_block(const float* values, Index col, Weight& block) {
    unsigned codes[block_depth];
    const typename F::Scale scale = F::encode(values, codes);
    store_block(scale, codes, col, block);
  }
  template <class Code>
  static void store_block(const typename F::Scale& scale, const Code* codes, Index col,
                          Weight& block) {
    block.set_scale(col, scale);
    for (Index i = 0; i < block_depth; ++i) {
      block.set_code(col, i, codes[i]);
    }
  }
  /// Zeros for the outputs that the last panel lacks: a code of 0 is none.
  void encode_missing(Index count, Weight* blocks) const {
    constexpr float zeros[block_depth] = {};
    for (Index out = num_outputs(); out < num_panels() * share(); ++out) {
      for (Index number = 0; number < count; ++number) {
        for (Index k = 0; k < depth(); k += block_depth) {
          encode_block(zeros, number * share() + out % share(), blocks[place_of(out, k)]);
        }
      }
    }
  }

  std::shared_ptr<const Weight[]> blocks_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
