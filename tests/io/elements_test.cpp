// SPDX-License-Identifier: Apache-2.0
// The elements of a file as read_matrix() converts them: exact where they fit, else rounded once.
#include "moe/io/elements.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "safetensors_bytes.hpp"

namespace moe::io::testing::elements_test {
namespace {

/// One tensor "w".
template <class T>
SafeTensors tensor_file(std::string_view dtype, std::string_view shape,
                        const std::vector<T>& values) {
  const FileBytes data = bytes_of(values);
  return parse(
      file_of(header_of(joined("\"", dtype, "\""), shape, joined("[0,", data.size(), "]")), data));
}

void expect_refused_matrix(const auto& read, std::initializer_list<std::string_view> facts) {
  try {
    read();
    ADD_FAILURE() << "accepted, expected: " << *facts.begin();
  } catch (const FormatError& error) {
    expect_message(error, "bad.safetensors", facts);
  }
}

TEST(ReadMatrix, KeepsTheBitsOfItsOwnType) {
  const std::vector<std::uint32_t> bits{0x7FC00001, 0x7F800001, 0xFF800000, 0x80000000,
                                        0x00000001, 0x3F800000, 0x7F7FFFFF, 0x00000000};
  const SafeTensors file = tensor_file("F32", "[2,4]", bits);
  const Matrix<float> matrix = read_matrix<float>(file, "w", 2, 4);
  EXPECT_EQ(std::memcmp(matrix.data(), bits.data(), sizeof(std::uint32_t) * bits.size()), 0);
}

TEST(ReadMatrix, WidensExactly) {
  // 1, -2, largest, smallest subnormal, +Inf
  const std::vector<std::uint16_t> half{0x3C00, 0xC000, 0x7BFF, 0x0001, 0x7C00};
  const SafeTensors f16 = tensor_file("F16", "[5]", half);
  const Matrix<float> a = read_matrix<float>(f16, "w", 1, 5);
  EXPECT_EQ(a(0, 0), 1.0F);
  EXPECT_EQ(a(0, 1), -2.0F);
  EXPECT_EQ(a(0, 2), 65504.0F);
  EXPECT_EQ(a(0, 3), std::ldexp(1.0F, -24));
  EXPECT_EQ(a(0, 4), std::numeric_limits<float>::infinity());

  // 1, -2, pi rounded, smallest subnormal, -Inf
  const std::vector<std::uint16_t> brain{0x3F80, 0xC000, 0x4049, 0x0001, 0xFF80};
  const SafeTensors bf16 = tensor_file("BF16", "[5,1]", brain);
  const Matrix<double> b = read_matrix<double>(bf16, "w", 5, 1);
  EXPECT_EQ(b(0, 0), 1.0);
  EXPECT_EQ(b(1, 0), -2.0);
  EXPECT_EQ(b(2, 0), 3.140625);
  EXPECT_EQ(b(3, 0), std::ldexp(1.0, -133));
  EXPECT_EQ(b(4, 0), -std::numeric_limits<double>::infinity());

  const SafeTensors f32 = tensor_file("F32", "[]", std::vector<float>{0.1F});
  EXPECT_EQ(read_matrix<double>(f32, "w", 1, 1)(0, 0), static_cast<double>(0.1F));
}

TEST(ReadMatrix, RoundsToNearestWhereTheTypeIsNarrower) {
  const SafeTensors f64 =
      tensor_file("F64", "[3]", std::vector<double>{0.1, 1.0 + std::ldexp(1.0, -24), -1e300});
  const Matrix<float> a = read_matrix<float>(f64, "w", 1, 3);
  EXPECT_EQ(a(0, 0), 0.1F);
  EXPECT_EQ(a(0, 1), 1.0F);  // a tie goes to even
  EXPECT_EQ(a(0, 2), -std::numeric_limits<float>::infinity());

  const SafeTensors f32 =
      tensor_file("F32", "[2]",
                  std::vector<float>{1.0F + std::ldexp(1.0F, -8), 1.0F + 3 * std::ldexp(1.0F, -8)});
  const auto b = read_matrix<Eigen::bfloat16>(f32, "w", 1, 2);
  EXPECT_EQ(static_cast<float>(b(0, 0)), 1.0F);
  EXPECT_EQ(static_cast<float>(b(0, 1)), 1.0F + std::ldexp(1.0F, -6));
}

TEST(ReadMatrix, PassesNanAndInf) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const SafeTensors f64 = tensor_file("F64", "[3]", std::vector<double>{nan, inf, -inf});
  const Matrix<float> a = read_matrix<float>(f64, "w", 1, 3);
  EXPECT_TRUE(std::isnan(a(0, 0)));
  EXPECT_EQ(a(0, 1), std::numeric_limits<float>::infinity());
  EXPECT_EQ(a(0, 2), -std::numeric_limits<float>::infinity());
  for (const auto& [dtype, bits] : {std::pair{"F16", 0x7E00}, std::pair{"BF16", 0x7FC0}}) {
    const SafeTensors file =
        tensor_file(dtype, "[]", std::vector<std::uint16_t>{static_cast<std::uint16_t>(bits)});
    EXPECT_TRUE(std::isnan(read_matrix<float>(file, "w", 1, 1)(0, 0))) << dtype;
    EXPECT_TRUE(std::isnan(read_matrix<double>(file, "w", 1, 1)(0, 0))) << dtype;
  }
}

TEST(ReadMatrix, KeepsTheBitsOfSixteenBitFloats) {
  const std::vector<std::uint16_t> bits{0x0001, 0x7F81, 0xFFFF, 0x8000};
  const SafeTensors bf16 = tensor_file("BF16", "[4]", bits);
  const auto matrix = read_matrix<Eigen::bfloat16>(bf16, "w", 1, 4);
  EXPECT_EQ(std::memcmp(matrix.data(), bits.data(), 8), 0);
  const SafeTensors f64 = tensor_file("F64", "[1]", std::vector<double>{1});
  expect_refused_matrix([&] { read_matrix<Eigen::half>(f64, "w", 1, 1); },
                        {"dtype F64 cannot be read as floats of 16 bits"});
}

TEST(ReadMatrix, ReadsIntegersAndRefusesThoseThatDoNotFit) {
  const SafeTensors i64 = tensor_file("I64", "[2,2]", std::vector<std::int64_t>{-1, 0, 7, 1 << 20});
  EXPECT_EQ(read_matrix<std::int64_t>(i64, "w", 2, 2)(0, 0), -1);
  EXPECT_EQ(read_matrix<std::int32_t>(i64, "w", 2, 2)(1, 1), 1 << 20);
  EXPECT_EQ(read_matrix<double>(i64, "w", 2, 2)(1, 0), 7.0);
  const std::string last = std::to_string(i64.at("w").file_offset + 24);
  expect_refused_matrix(
      [&] { read_matrix<std::int16_t>(i64, "w", 2, 2); },
      {"tensor \"w\"", joined("byte ", last), "does not fit an integer of 16 bits"});
  expect_refused_matrix([&] { read_matrix<std::uint64_t>(i64, "w", 2, 2); }, {"does not fit"});
  const SafeTensors u8 = tensor_file("U8", "[2]", std::vector<std::uint8_t>{0, 255});
  EXPECT_EQ(read_matrix<float>(u8, "w", 1, 2)(0, 1), 255.0F);
  const SafeTensors f32 = tensor_file("F32", "[1]", std::vector<float>{1});
  expect_refused_matrix([&] { read_matrix<std::int32_t>(f32, "w", 1, 1); },
                        {"tensor \"w\"", "dtype F32 cannot be read as integers of 32 bits"});
}

TEST(ReadMatrix, RefusesDtypesWithoutAConversion) {
  const SafeTensors truth = tensor_file("BOOL", "[1]", std::vector<std::uint8_t>{1});
  expect_refused_matrix([&] { read_matrix<float>(truth, "w", 1, 1); },
                        {"dtype BOOL", "floats of 32 bits"});
  for (const std::string_view dtype : {"F8_E4M3", "F8_E5M2", "F8_E8M0"}) {
    const SafeTensors file = tensor_file(dtype, "[1]", std::vector<std::uint8_t>{1});
    expect_refused_matrix([&] { read_matrix<std::int32_t>(file, "w", 1, 1); },
                          {joined("dtype ", dtype), "integers of 32 bits"});
    expect_refused_matrix([&] { read_matrix<bf16>(file, "w", 1, 1); },
                          {joined("dtype ", dtype), "floats of 16 bits"});
  }
}

TEST(ReadMatrix, TakesFloatsOf8BitsAsTheyAreWithoutAScale) {
  const SafeTensors e4m3 =
      tensor_file("F8_E4M3", "[4]", std::vector<std::uint8_t>{0x38, 0x3C, 0xB8, 0x7E});
  Matrix<float> want(1, 4);
  want << 1.0F, 1.5F, -1.0F, 448.0F;
  EXPECT_EQ(read_matrix<float>(e4m3, "w", 1, 4), want);
  const SafeTensors e5m2 = tensor_file("F8_E5M2", "[2]", std::vector<std::uint8_t>{0x3D, 0x7C});
  EXPECT_EQ(read_matrix<double>(e5m2, "w", 1, 2)(0, 0), 1.25);
  EXPECT_TRUE(std::isinf(read_matrix<double>(e5m2, "w", 1, 2)(0, 1)));
  const SafeTensors e8m0 = tensor_file("F8_E8M0", "[2]", std::vector<std::uint8_t>{128, 0});
  EXPECT_EQ(read_matrix<double>(e8m0, "w", 1, 2)(0, 0), 2.0);
  EXPECT_EQ(read_matrix<double>(e8m0, "w", 1, 2)(0, 1), 0x1p-127);
}

TEST(ReadMatrix, TakesLeadingDimensionsTogetherAsRows) {
  std::vector<float> values(24);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i);
  }
  const SafeTensors file = tensor_file("F32", "[2,3,4]", values);
  const Matrix<float> matrix = read_matrix<float>(file, "w", 6, 4);
  EXPECT_EQ(matrix(5, 1), 21.0F);
  for (const auto& shape : std::vector<std::pair<Index, Index>>{
           {4, 6}, {2, 12}, {24, 1}, {1, 24}, {6, 5}, {-6, -4}, {0, 4}}) {
    expect_refused_matrix([&] { read_matrix<float>(file, "w", shape.first, shape.second); },
                          {"tensor \"w\"", "F32 [2, 3, 4], expected a matrix of"});
  }
}

TEST(ReadMatrix, TakesAVectorAsOneRowOnly) {
  const SafeTensors file = tensor_file("F32", "[3]", std::vector<float>{1, 2, 3});
  EXPECT_EQ(read_matrix<float>(file, "w", 1, 3)(0, 2), 3.0F);
  expect_refused_matrix([&] { read_matrix<float>(file, "w", 3, 1); },
                        {"F32 [3], expected a matrix of (3, 1)"});
}

TEST(ReadMatrix, ReadsEmptyTensors) {
  const SafeTensors file = tensor_file("F32", "[1099511627776,0]", std::vector<float>{});
  const Matrix<double> matrix = read_matrix<double>(file, "w", Index{1} << 40, 0);
  EXPECT_EQ(matrix.size(), 0);
  const SafeTensors rows = tensor_file("F32", "[0,5]", std::vector<float>{});
  EXPECT_EQ(read_matrix<float>(rows, "w", 0, 5).cols(), 5);
}

}  // namespace
}  // namespace moe::io::testing::elements_test
