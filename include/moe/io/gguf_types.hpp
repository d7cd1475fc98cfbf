// SPDX-License-Identifier: Apache-2.0
// The numbers by which a GGUF file names the types of its values and of its tensors' elements.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "dtype.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Of a value behind a key.
enum class GgufValue : std::uint32_t {
  U8,
  I8,
  U16,
  I16,
  U32,
  I32,
  F32,
  BOOL,
  TEXT,
  ARRAY,
  U64,
  I64,
  F64
};

struct GgufValueFacts {
  std::string_view name;
  unsigned least_bytes;  // of texts, and of arrays, the empty one's
};

// In the order of the enum.
inline constexpr std::array<GgufValueFacts, 13> gguf_value_facts{{{"U8", 1},
                                                                  {"I8", 1},
                                                                  {"U16", 2},
                                                                  {"I16", 2},
                                                                  {"U32", 4},
                                                                  {"I32", 4},
                                                                  {"F32", 4},
                                                                  {"BOOL", 1},
                                                                  {"text", 8},
                                                                  {"an array", 12},
                                                                  {"U64", 8},
                                                                  {"I64", 8},
                                                                  {"F64", 8}}};
static_assert(static_cast<std::size_t>(GgufValue::F64) + 1 == gguf_value_facts.size());

struct GgufElement {
  std::uint32_t number;
  DType dtype;
};

// Numbers that are left out were given up: no file has them any more.
inline constexpr std::array<GgufElement, 35> gguf_elements{
    {{0, DType::F32},      {1, DType::F16},     {2, DType::Q4_0},     {3, DType::Q4_1},
     {6, DType::Q5_0},     {7, DType::Q5_1},    {8, DType::Q8_0},     {9, DType::Q8_1},
     {10, DType::Q2_K},    {11, DType::Q3_K},   {12, DType::Q4_K},    {13, DType::Q5_K},
     {14, DType::Q6_K},    {15, DType::Q8_K},   {16, DType::IQ2_XXS}, {17, DType::IQ2_XS},
     {18, DType::IQ3_XXS}, {19, DType::IQ1_S},  {20, DType::IQ4_NL},  {21, DType::IQ3_S},
     {22, DType::IQ2_S},   {23, DType::IQ4_XS}, {24, DType::I8},      {25, DType::I16},
     {26, DType::I32},     {27, DType::I64},    {28, DType::F64},     {29, DType::IQ1_M},
     {30, DType::BF16},    {34, DType::TQ1_0},  {35, DType::TQ2_0},   {39, DType::MXFP4},
     {40, DType::NVFP4},   {41, DType::Q1_0},   {42, DType::Q2_0}}};

/// Nothing where no type has this number.
constexpr std::optional<DType> dtype_of_gguf(std::uint32_t number) {
  for (const GgufElement& element : gguf_elements) {
    if (element.number == number) {
      return element.dtype;
    }
  }
  return std::nullopt;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
