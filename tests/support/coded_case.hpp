// SPDX-License-Identifier: Apache-2.0
// Rows and panels of integers for tests of their products: any, and at the ends of their range.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "moe/kernels/coded_tile.hpp"

namespace moe::testing {

enum class Codes { any, most, least };

template <class F>
struct CodedCase {
  using Block = kernels::CodedBlock<F>;

  std::vector<Block> panel;
  std::vector<std::vector<kernels::CodedInput>> rows;
  std::vector<const kernels::CodedInput*> row;

  /// Of so many blocks of 32 k.
  CodedCase(Index num_rows, Index blocks, Codes codes, unsigned seed) : blocks_(blocks) {
    std::mt19937 random(seed);
    const auto number = [&](unsigned count) {
      return static_cast<unsigned>(codes == Codes::any    ? random() % count
                                   : codes == Codes::most ? count - 1
                                                          : 0);
    };
    panel.resize(static_cast<std::size_t>((blocks * 32 + Block::depth - 1) / Block::depth));
    for (Block& block : panel) {
      for (Index col = 0; col < Block::cols; ++col) {
        block.set_scale(col, some_scale(random, number, typename F::Scale{}));
        for (Index k = 0; k < Block::depth; ++k) {
          block.set_code(col, k, number(1u << F::bits));
        }
      }
    }
    for (Index r = 0; r < num_rows; ++r) {
      auto& blocks_of_row = rows.emplace_back(static_cast<std::size_t>(blocks));
      for (kernels::CodedInput& block : blocks_of_row) {
        for (std::int8_t& code : block.code) {
          code =
              static_cast<std::int8_t>(codes == Codes::any ? static_cast<int>(random() % 255) - 127
                                       : r % 2 == 0        ? 127
                                                           : -127);
        }
        block.scale = static_cast<float>(random() % 1000) / 1024;
        block.correction =
            kernels::correction_of(block.code, block.scale, kernels::bias_of_sums<F>);
      }
      row.push_back(blocks_of_row.data());
    }
  }

  Index blocks() const { return blocks_; }

 private:
  template <class Number>
  static Eigen::half some_scale(std::mt19937& random, const Number&, Eigen::half) {
    return Eigen::half(static_cast<float>(random() % 1000) / 512 - 1);
  }
  template <class Number>
  static std::uint8_t some_scale(std::mt19937& random, const Number&, std::uint8_t) {
    return static_cast<std::uint8_t>(random() % 40 + 107);
  }
  template <class Number>
  static kernels::BlockScales some_scale(std::mt19937& random, const Number& number,
                                         kernels::BlockScales scales) {
    scales.scale = some_scale(random, number, Eigen::half());
    scales.minimum = some_scale(random, number, Eigen::half());
    for (std::size_t i = 0; i < scales.scales.size(); ++i) {
      scales.scales[i] = static_cast<std::uint8_t>(number(F::most_multiple + 1));
      scales.minima[i] = static_cast<std::uint8_t>(number(F::most_multiple + 1));
    }
    return scales;
  }

  Index blocks_;
};

}  // namespace moe::testing
