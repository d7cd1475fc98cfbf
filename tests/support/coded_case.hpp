// SPDX-License-Identifier: Apache-2.0
// Rows and panels of integers for tests of their products: any, and at the ends of their range.
#pragma once

#include <algorithm>
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

  CodedCase(Index num_rows, Index blocks, Codes codes, unsigned seed) {
    std::mt19937 random(seed);
    panel.resize(static_cast<std::size_t>(blocks));
    for (Block& block : panel) {
      for (std::uint8_t& code : block.code) {
        code = static_cast<std::uint8_t>(codes == Codes::any    ? random() % 256
                                         : codes == Codes::most ? 255
                                                                : 0);
      }
      for (auto& scale : block.scale) {
        scale = some_scale(random, scale);
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
        block.correction = kernels::correction_of(block.code, kernels::bias_of_sums<F>);
      }
      row.push_back(blocks_of_row.data());
    }
  }

  Index blocks() const { return static_cast<Index>(panel.size()); }

 private:
  static Eigen::half some_scale(std::mt19937& random, Eigen::half) {
    return Eigen::half(static_cast<float>(random() % 1000) / 512 - 1);
  }
  static std::uint8_t some_scale(std::mt19937& random, std::uint8_t) {
    return static_cast<std::uint8_t>(random() % 40 + 107);
  }
};

}  // namespace moe::testing
