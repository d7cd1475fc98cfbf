// SPDX-License-Identifier: Apache-2.0
// Bytes of a file -> C++ numbers: which element type converts to which, and how one does.
// Place in the flow: under read_matrix(), the only user.
#pragma once

#include <Eigen/Core>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "dtype.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// bool and the character types are no integers here.
template <class T>
concept Integer =
    std::integral<T> && !std::same_as<T, bool> &&
    (std::same_as<T, std::make_signed_t<T>> || std::same_as<T, std::make_unsigned_t<T>>);

template <class T>
concept HalfFloat = std::same_as<T, Eigen::half> || std::same_as<T, Eigen::bfloat16>;

/// What read_matrix() can make.
template <class T>
concept Readable = std::same_as<T, float> || std::same_as<T, double> || HalfFloat<T> || Integer<T>;

namespace detail {

/// Integers become floats, but floats never integers; what would round twice on its way to 16 bits
/// is left out.
template <class From, class T>
inline constexpr bool kConverts = Integer<T>     ? Integer<From>
                                  : HalfFloat<T> ? HalfFloat<From> || std::same_as<From, float>
                                                 : true;

template <class T, class From>
T convert(From value) {
  if constexpr (std::same_as<From, T>) {
    return value;  // not by way of float, which would quieten a signalling NaN
  } else if constexpr (HalfFloat<T>) {
    return T(static_cast<float>(value));
  } else if constexpr (HalfFloat<From>) {
    return static_cast<T>(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

/// Calls visit(std::type_identity<C++ type>) for the dtypes that have one; false for the others.
template <class Visit>
bool visit_element_type(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::F64:
      return visit(std::type_identity<double>{});
    case DType::F32:
      return visit(std::type_identity<float>{});
    case DType::F16:
      return visit(std::type_identity<Eigen::half>{});
    case DType::BF16:
      return visit(std::type_identity<Eigen::bfloat16>{});
    case DType::I64:
      return visit(std::type_identity<std::int64_t>{});
    case DType::U64:
      return visit(std::type_identity<std::uint64_t>{});
    case DType::I32:
      return visit(std::type_identity<std::int32_t>{});
    case DType::U32:
      return visit(std::type_identity<std::uint32_t>{});
    case DType::I16:
      return visit(std::type_identity<std::int16_t>{});
    case DType::U16:
      return visit(std::type_identity<std::uint16_t>{});
    case DType::I8:
      return visit(std::type_identity<std::int8_t>{});
    case DType::U8:
      return visit(std::type_identity<std::uint8_t>{});
    default:
      return false;
  }
}

/// data: any alignment, a whole number of From. Returns the number of elements written, which is
/// less than there are where the next one does not fit an integer T.
template <class From, class T>
std::size_t copy_elements(std::span<const std::byte> data, T* out) {
  const std::size_t count = data.size() / sizeof(From);
  if constexpr (std::same_as<From, T>) {
    if (count > 0) std::memcpy(static_cast<void*>(out), data.data(), data.size());
  } else {
    for (std::size_t i = 0; i < count; ++i) {
      From value{};
      std::memcpy(static_cast<void*>(&value), data.data() + i * sizeof(From), sizeof(From));
      if constexpr (Integer<T>) {
        if (!std::in_range<T>(value)) return i;
      }
      out[i] = convert<T>(value);
    }
  }
  return count;
}

}  // namespace detail
}  // namespace moe::inline MOE_INSTRUCTION_SET::io
