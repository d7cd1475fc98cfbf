// SPDX-License-Identifier: Apache-2.0
// The element types a safetensors file may declare: name in the header <-> DType <-> width in bits.
// They end at read_matrix(): a layer knows its own scalar type only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Spelled as in the file. C64 is one complex number of two floats.
enum class DType : std::uint8_t {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64
};

namespace detail {

struct DTypeFacts {
  std::string_view name;
  unsigned bits;
};

// In the order of the enum.
inline constexpr std::array<DTypeFacts, 22> dtype_facts{{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};
static_assert(static_cast<std::size_t>(DType::U64) + 1 == dtype_facts.size());

}  // namespace detail

constexpr std::string_view name(DType dtype) {
  return detail::dtype_facts[static_cast<std::size_t>(dtype)].name;
}

/// Width of one element; 4 and 6 are packed without padding.
constexpr unsigned bits(DType dtype) {
  return detail::dtype_facts[static_cast<std::size_t>(dtype)].bits;
}

/// Exact spelling only: "f32" is none.
constexpr std::optional<DType> parse_dtype(std::string_view name) {
  for (std::size_t i = 0; i < detail::dtype_facts.size(); ++i) {
    if (detail::dtype_facts[i].name == name) {
      return static_cast<DType>(i);
    }
  }
  return std::nullopt;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
