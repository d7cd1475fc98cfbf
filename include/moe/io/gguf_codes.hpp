// SPDX-License-Identifier: Apache-2.0
// GGUF's blocks -> CodedMatrix of the storage that is exactly them: Q8_0 of q8, Q4_0 of q4, Q4_K of
// q4_k, MXFP4 of mxfp4. Nothing is decoded, and nothing rounded.
#pragma once

#include <cstring>
#include <optional>

#include "../storage/mxfp4.hpp"
#include "../storage/q4.hpp"
#include "../storage/q4_k.hpp"
#include "../storage/q8.hpp"
#include "place.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// Whose blocks are those of format F, if any.
template <class F>
inline constexpr std::optional<DType> block_of;
template <>
inline constexpr std::optional<DType> block_of<Mxfp4Format> = DType::MXFP4;
template <>
inline constexpr std::optional<DType> block_of<Q4Format> = DType::Q4_0;
template <>
inline constexpr std::optional<DType> block_of<Q4KFormat> = DType::Q4_K;
template <>
inline constexpr std::optional<DType> block_of<Q8Format> = DType::Q8_0;

/// A block's scale, and behind it its codes: of 4 bits those of the first 16 elements in the low
/// halves of bytes; of 8 bits integers, which the storage has above 128.
template <class F>
void copy_codes(BlockBytes from, typename CodedMatrix<F>::Block& to) {
  constexpr int bytes = sizeof to.scale;
  std::memcpy(static_cast<void*>(&to.scale), from.data, sizeof to.scale);
  const auto set = [&](int k, int code) {
    to.code[static_cast<std::size_t>(k)] = static_cast<std::uint8_t>(code);
  };
  if constexpr (F::bits == 8) {
    for (int k = 0; k < 32; ++k) {
      set(k, from.signed_at(bytes + k) + F::bias);
    }
  } else {
    for (int k = 0; k < 16; ++k) {
      set(k, from.at(bytes + k) & 15);
      set(k + 16, from.at(bytes + k) >> 4);
    }
  }
}

/// Two halves, multiples of them for each group of 32, and codes as Q4_KBlock has them.
template <>
inline void copy_codes<Q4KFormat>(BlockBytes from, CodedMatrix<Q4KFormat>::Block& to) {
  std::memcpy(static_cast<void*>(&to.scale.scale), from.data, sizeof to.scale.scale);
  std::memcpy(static_cast<void*>(&to.scale.minimum), from.data + sizeof to.scale.scale,
              sizeof to.scale.minimum);
  for (int group = 0; group < 8; ++group) {
    const GroupMultiples of(from, group);
    const auto at = static_cast<std::size_t>(group);
    to.scale.scales[at] = static_cast<std::uint8_t>(of.scale);
    to.scale.minima[at] = static_cast<std::uint8_t>(of.minimum);
    for (int i = 0; i < 32; ++i) {
      to.code[at * 32 + static_cast<std::size_t>(i)] =
          static_cast<std::uint8_t>(Q4_KBlock::code(from, group, i));
    }
  }
}

}  // namespace detail

/// The weight (rows, cols) at a place, or nothing where the tensor is no blocks of format F. Throws
/// as check_place().
template <class F>
std::optional<CodedMatrix<F>> coded_blocks(const FileTensor& tensor, const Place& place,
                                           Shape shape) {
  if constexpr (!detail::block_of<F>) {
    return std::nullopt;
  } else {
    if (tensor.view.dtype != detail::block_of<F>) {
      return std::nullopt;
    }
    check_place(tensor, place);
    const Index bytes = block_size(tensor.view.dtype).bytes;
    CodedMatrix<F> coded(shape.rows, shape.cols);
    for (Index row = 0; row < shape.rows; ++row) {
      const Index first = (place.first + row * place.row_step) / coded.block_size;
      for (Index number = 0; number < coded.blocks_of_row(); ++number) {
        detail::copy_codes<F>({tensor.view.data.data() + (first + number) * bytes},
                              coded.block(row, number));
      }
    }
    return coded;
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
