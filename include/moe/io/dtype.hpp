// SPDX-License-Identifier: Apache-2.0
// The element types that files may declare: name in a safetensors header <-> DType <-> width in
// bits, and GGUF's blocks of elements. They end where a parameter is read: a layer knows its own
// scalar type only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Spelled as in the file. C64 is one complex number of two floats. From Q4_0 on they are GGUF's
/// alone: blocks of elements that share their scales.
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
  U64,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q8_1,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  Q8_K,
  IQ2_XXS,
  IQ2_XS,
  IQ3_XXS,
  IQ1_S,
  IQ4_NL,
  IQ3_S,
  IQ2_S,
  IQ4_XS,
  IQ1_M,
  TQ1_0,
  TQ2_0,
  MXFP4,
  NVFP4,
  Q1_0,
  Q2_0
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

struct BlockFacts {
  std::string_view name;
  unsigned elements, bytes;
};

// Likewise, from Q4_0 on.
inline constexpr std::array<BlockFacts, 27> block_facts{{
    {"Q4_0", 32, 18},     {"Q4_1", 32, 20},    {"Q5_0", 32, 22},     {"Q5_1", 32, 24},
    {"Q8_0", 32, 34},     {"Q8_1", 32, 36},    {"Q2_K", 256, 84},    {"Q3_K", 256, 110},
    {"Q4_K", 256, 144},   {"Q5_K", 256, 176},  {"Q6_K", 256, 210},   {"Q8_K", 256, 292},
    {"IQ2_XXS", 256, 66}, {"IQ2_XS", 256, 74}, {"IQ3_XXS", 256, 98}, {"IQ1_S", 256, 50},
    {"IQ4_NL", 32, 18},   {"IQ3_S", 256, 110}, {"IQ2_S", 256, 82},   {"IQ4_XS", 256, 136},
    {"IQ1_M", 256, 56},   {"TQ1_0", 256, 54},  {"TQ2_0", 256, 66},   {"MXFP4", 32, 17},
    {"NVFP4", 64, 36},    {"Q1_0", 128, 18},   {"Q2_0", 64, 18},
}};
static_assert(static_cast<std::size_t>(DType::Q2_0) + 1 == dtype_facts.size() + block_facts.size());

}  // namespace detail

/// Whether it is one of GGUF's blocks.
constexpr bool is_block(DType dtype) { return dtype > DType::U64; }

constexpr std::string_view name(DType dtype) {
  const auto number = static_cast<std::size_t>(dtype);
  return is_block(dtype) ? detail::block_facts[number - detail::dtype_facts.size()].name
                         : detail::dtype_facts[number].name;
}

/// Width of one element; 4 and 6 are packed without padding. Not of a block.
constexpr unsigned bits(DType dtype) {
  return detail::dtype_facts[static_cast<std::size_t>(dtype)].bits;
}

/// Elements of what a tensor is made of, and its bytes: a block, or one element of whole bytes.
struct BlockSize {
  unsigned elements, bytes;
};
constexpr BlockSize block_size(DType dtype) {
  if (!is_block(dtype)) {
    return {1, bits(dtype) / 8};
  }
  const auto& facts =
      detail::block_facts[static_cast<std::size_t>(dtype) - detail::dtype_facts.size()];
  return {facts.elements, facts.bytes};
}

/// Exact spelling only: "f32" is none. Those of safetensors: a block is none.
constexpr std::optional<DType> parse_dtype(std::string_view name) {
  for (std::size_t i = 0; i < detail::dtype_facts.size(); ++i) {
    if (detail::dtype_facts[i].name == name) {
      return static_cast<DType>(i);
    }
  }
  return std::nullopt;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
