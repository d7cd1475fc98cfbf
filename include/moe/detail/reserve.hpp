// SPDX-License-Identifier: Apache-2.0
// Buffers that only grow: a steady state allocates nothing although routing differs in each call.
#pragma once

#include <bit>
#include <cstddef>
#include <vector>

#include "../kernels/instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// Makes the matrix `cols` wide and at least `rows` high. What it held is lost if it grows.
template <class M>
void grow(M& m, std::ptrdiff_t rows, std::ptrdiff_t cols) {
  if (m.cols() != cols || m.rows() < rows) {
    m.resize(rows, cols);
  }
}

/// The same in powers of two, for heights that creep up from call to call.
template <class M>
void grow_in_steps(M& m, std::ptrdiff_t rows, std::ptrdiff_t cols) {
  const auto step = static_cast<std::ptrdiff_t>(std::bit_ceil(static_cast<std::size_t>(rows)));
  grow(m, rows == 0 ? 0 : step, cols);
}

/// At least `size` elements; those there stay as they are.
template <class T>
void grow(std::vector<T>& v, std::ptrdiff_t size) {
  if (static_cast<std::ptrdiff_t>(v.size()) < size) {
    v.resize(static_cast<std::size_t>(size));
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
