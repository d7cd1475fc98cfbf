// SPDX-License-Identifier: Apache-2.0
// Buffers that only grow: a steady state allocates nothing although routing differs in each call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// The least width, not below `cols`, whose rows are an odd number of cache lines apart. Rows that
/// are a power of two apart share the same few places of a cache and drive each other out.
template <class T>
constexpr std::ptrdiff_t spread_width(std::ptrdiff_t cols) {
  constexpr auto line = static_cast<std::ptrdiff_t>(64 / sizeof(T));
  if constexpr (line <= 1) {
    return cols;
  } else {
    return ((cols + line - 1) / line | 1) * line;
  }
}

/// At least `rows` high and `cols` wide. What it held is lost if it grows.
template <class M>
void grow_both(M& m, std::ptrdiff_t rows, std::ptrdiff_t cols) {
  if (m.rows() < rows || m.cols() < cols) {
    m.resize((std::max)(m.rows(), rows), (std::max)(m.cols(), cols));
  }
}

/// At least `size` elements; those there stay as they are.
template <class T>
void grow(std::vector<T>& v, std::ptrdiff_t size) {
  if (static_cast<std::ptrdiff_t>(v.size()) < size) {
    v.resize(static_cast<std::size_t>(size));
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
