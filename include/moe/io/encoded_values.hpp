// SPDX-License-Identifier: Apache-2.0
// The elements of a tensor that is a part of an encoded weight: floats of any width as doubles,
// integers, fields of few bits; and how such a tensor is refused.
#pragma once

#include <string>
#include <vector>

#include "../kernels/eight_bit_floats.hpp"
#include "place.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

inline Index quotient_up(Index a, Index b) { return a / b + (a % b != 0 ? 1 : 0); }

/// Elements [first, first + count) of a tensor of floats of any width.
inline void read_floats(const TensorView& view, Index first, Index count, double* to) {
  const auto copy = [&]<class From>(std::type_identity<From>) {
    constexpr std::size_t size = sizeof(From);
    copy_elements<From>(view.data.subspan(static_cast<std::size_t>(first) * size,
                                          static_cast<std::size_t>(count) * size),
                        to);
    return true;
  };
  if (view.dtype == DType::U8) {  // what compressed-tensors keeps E8M0 as
    copy(std::type_identity<kernels::e8m0>{});
  } else {
    visit_element_type(view.dtype, copy);
  }
}

/// Integers of a tensor of no more than `most`.
inline std::vector<Index> read_integers(const FileTensor& tensor, std::size_t most) {
  std::vector<Index> values(
      (std::min)(most, tensor.view.data.size() * 8 / bits(tensor.view.dtype)));
  const bool whole =
      visit_element_type(tensor.view.dtype, [&]<class From>(std::type_identity<From>) {
        if constexpr (Integer<From>) {
          return copy_elements<From>(tensor.view.data.first(values.size() * sizeof(From)),
                                     values.data()) == values.size();
        }
        return false;
      });
  if (!whole) {
    throw FormatError(tensor.file, tensor.view.name, tensor.view.file_offset,
                      joined("dtype ", name(tensor.view.dtype), ", expected integers"));
  }
  return values;
}

/// A field of `width` bits, up to 8, from `begin` on in bytes whose first bit is the lowest.
inline unsigned field_at(const std::byte* bytes, std::size_t size, Index begin, Index width) {
  const auto byte = static_cast<std::size_t>(begin / 8);
  unsigned two = std::to_integer<unsigned>(bytes[byte]);
  if (byte + 1 < size) {
    two |= std::to_integer<unsigned>(bytes[byte + 1]) << 8;
  }
  return two >> (begin % 8) & ((1u << width) - 1u);
}

[[noreturn]] inline void fail_at(const FileTensor& tensor, const std::string& found,
                                 const std::string& expected) {
  throw FormatError(tensor.file, tensor.view.name, tensor.view.file_offset,
                    joined(found, ", expected ", expected));
}

inline void check_shape(const FileTensor& tensor, const std::vector<Index>& shape,
                        const std::string& why) {
  if (tensor.view.shape != shape) {
    fail_at(tensor, dtype_and_shape(tensor.view.dtype, tensor.view.shape),
            joined(dtype_and_shape(tensor.view.dtype, shape), " (", why, ")"));
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
