// SPDX-License-Identifier: Apache-2.0
// CodedMatrix<F>: a weight as codes and scales that somebody else has made, row by row.
// PackedMatrix of the storage with this format takes it as it takes a Matrix<T>, and keeps every
// bit.
#pragma once

#include <array>
#include <vector>

#include "../kernels/coded_panel.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A matrix (out, in) in a format F of kernels/coded_panel.hpp, or one with blocks of its own size,
/// whose code of 0 is 0.
template <class F>
class CodedMatrix {
 public:
  static constexpr Index block_size = [] {
    if constexpr (requires { F::block_size; }) {
      return F::block_size;
    } else {
      return kernels::block_size;
    }
  }();

  /// block_size k of a row, codes below 2^F::bits. Of the k that the last one lacks they are 0's.
  struct Block {
    typename F::Scale scale;
    std::array<std::uint8_t, static_cast<std::size_t>(block_size)> code;
  };

  CodedMatrix() = default;
  /// Zeros.
  CodedMatrix(Index rows, Index cols) { resize(rows, cols); }

  void resize(Index rows, Index cols) {
    rows_ = rows;
    cols_ = cols;
    Block zero{};
    zero.code.fill(code_of_zero());
    blocks_.assign(static_cast<std::size_t>(rows * blocks_of_row()), zero);
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  Index blocks_of_row() const { return (cols_ + block_size - 1) / block_size; }
  Block& block(Index row, Index number) { return blocks_[place(row, number)]; }
  const Block& block(Index row, Index number) const { return blocks_[place(row, number)]; }

  static constexpr std::uint8_t code_of_zero() {
    unsigned code = 0;
    if constexpr (requires { F::bias; }) {
      while (F::number(code) != F::bias) {
        ++code;
      }
    }
    return static_cast<std::uint8_t>(code);
  }

 private:
  std::size_t place(Index row, Index number) const {
    return static_cast<std::size_t>(row * blocks_of_row() + number);
  }

  Index rows_ = 0, cols_ = 0;
  std::vector<Block> blocks_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
