// SPDX-License-Identifier: Apache-2.0
// Where a product packs its operands: memory of one thread, which lies in the caller's scratch. On
// the stack it would be too much for the threads of musl, which have 128 KiB, and of macOS.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>

#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Memory for the products of one thread in T, which may follow each other in it.
template <class T>
class GemmMemory {
 public:
  /// Of float and double a block of a panel; of 16 bits half of one for each operand, and sums.
  /// Scalars without packets pack nothing.
  static constexpr Index most_bytes = Vectorised<T> ? 262144 : SixteenBitFloat<T> ? 393216 : 0;

  GemmMemory() = default;
  /// Less, for float and double: small products lose little speed by it, and no bits.
  explicit GemmMemory(Index bytes) requires std::same_as<T, Wide<T>>
      : bytes_((std::min)(bytes, most_bytes)) {}

  Index bytes() const { return bytes_; }

  /// Allocates it, once. A product does so if nobody has.
  void reserve() {
    if (memory_.size() == 0 && bytes_ > 0) {
      memory_.resize(1, bytes_ + line);
    }
  }

  /// Begins a cache line; as many bytes.
  std::uint8_t* data() {
    reserve();
    const auto in_line = reinterpret_cast<std::uintptr_t>(memory_.data()) % std::uintptr_t{line};
    return in_line == 0 ? memory_.data() : memory_.data() + (line - static_cast<Index>(in_line));
  }

 private:
  static constexpr Index line = 64;

  Index bytes_ = most_bytes;
  Matrix<std::uint8_t> memory_;  // pages that no product writes to are never there
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
