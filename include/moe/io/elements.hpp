// SPDX-License-Identifier: Apache-2.0
// Bytes of a file -> C++ numbers, below read_matrix(): which element type may become which.
#pragma once

#include <Eigen/Core>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "../kernels/convert.hpp"
#include "../kernels/eight_bit_floats.hpp"
#include "dtype.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// bool and the character types are no integers here.
template <class T>
concept Integer =
    std::integral<T> && !std::same_as<T, bool> &&
    (std::same_as<T, std::make_signed_t<T>> || std::same_as<T, std::make_unsigned_t<T>>);

using kernels::SixteenBitFloat;

/// What read_matrix() can make.
template <class T>
concept Readable =
    std::same_as<T, float> || std::same_as<T, double> || SixteenBitFloat<T> || Integer<T>;

namespace detail {

/// Of integers in the order of their widths.
template <class T>
inline constexpr DType integer_dtype = [] {
  constexpr DType facts[2][4] = {{DType::U8, DType::U16, DType::U32, DType::U64},
                                 {DType::I8, DType::I16, DType::I32, DType::I64}};
  return facts[std::is_signed_v<T> ? 1 : 0][std::bit_width(sizeof(T)) - 1];
}();

/// Integers become floats, but floats never integers. Only floats of 16 and 32 bits become floats
/// of 16: integers and F64 are not what half-precision weights are kept in.
template <class From, class T>
inline constexpr bool converts =
    Integer<T>           ? Integer<From>
    : SixteenBitFloat<T> ? SixteenBitFloat<From> || std::same_as<From, float>
                         : true;

/// What a C++ number is in a file.
template <Readable T>
inline constexpr DType dtype_of = std::same_as<T, double>        ? DType::F64
                                  : std::same_as<T, float>       ? DType::F32
                                  : std::same_as<T, Eigen::half> ? DType::F16
                                  : std::same_as<T, bf16>        ? DType::BF16
                                                                 : integer_dtype<T>;

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
    case DType::F8_E4M3:
      return visit(std::type_identity<kernels::e4m3>{});
    case DType::F8_E5M2:
      return visit(std::type_identity<kernels::e5m2>{});
    case DType::F8_E8M0:
      return visit(std::type_identity<kernels::e8m0>{});
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
    if (count > 0) {
      std::memcpy(static_cast<void*>(out), data.data(), data.size());
    }
  } else {
    for (std::size_t i = 0; i < count; ++i) {
      From value{};
      std::memcpy(static_cast<void*>(&value), data.data() + i * sizeof(From), sizeof(From));
      if constexpr (Integer<T>) {
        if (!std::in_range<T>(value)) {
          return i;
        }
      }
      out[i] = kernels::convert<T>(value);
    }
  }
  return count;
}

}  // namespace detail
}  // namespace moe::inline MOE_INSTRUCTION_SET::io
