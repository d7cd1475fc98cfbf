// SPDX-License-Identifier: Apache-2.0
// The element types of the format: names, widths, and no others.
#include "moe/io/dtype.hpp"

#include <gtest/gtest.h>

#include <map>
#include <string_view>

namespace moe::io::dtype_test {
namespace {

// As in the list of the format's reference reader.
const std::map<std::string_view, unsigned> widths = {
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
    {"I16", 16}, {"U16", 16},    {"F8_E8M0", 8}, {"F16", 16},        {"BF16", 16},
    {"I32", 32}, {"U32", 32},    {"F32", 32},    {"C64", 64},        {"F64", 64},
    {"I64", 64}, {"U64", 64}};

TEST(DType, IsFoundByItsNameAndHasItsWidth) {
  for (const auto& [text, width] : widths) {
    const auto dtype = parse_dtype(text);
    ASSERT_TRUE(dtype) << text;
    EXPECT_EQ(name(*dtype), text);
    EXPECT_EQ(bits(*dtype), width) << text;
  }
  EXPECT_EQ(widths.size(), detail::dtype_facts.size());
}

TEST(DType, IsSpelledExactly) {
  for (const std::string_view text : {"f32", "F32 ", " F32", "", "F128", "F8", "float32", "I4"}) {
    EXPECT_FALSE(parse_dtype(text)) << text;
  }
}

TEST(DType, OfGgufIsNoneOfSafetensors) {
  EXPECT_FALSE(parse_dtype("Q8_0"));
  EXPECT_FALSE(is_block(DType::U64));
  EXPECT_TRUE(is_block(DType::Q4_0));
  EXPECT_EQ(name(DType::Q4_0), "Q4_0");
  EXPECT_EQ(name(DType::Q2_0), "Q2_0");
}

TEST(DType, SaysOfWhatATensorIsMade) {
  EXPECT_EQ(block_size(DType::F32).elements, 1U);
  EXPECT_EQ(block_size(DType::BF16).bytes, 2U);
  EXPECT_EQ(block_size(DType::Q8_0).elements, 32U);
  EXPECT_EQ(block_size(DType::Q8_0).bytes, 34U);
  EXPECT_EQ(block_size(DType::Q6_K).elements, 256U);
  EXPECT_EQ(block_size(DType::Q6_K).bytes, 210U);
  EXPECT_EQ(block_size(DType::MXFP4).bytes, 17U);
}

}  // namespace
}  // namespace moe::io::dtype_test
