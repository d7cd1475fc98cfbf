// SPDX-License-Identifier: Apache-2.0
// Weights in several tensors: each convention against values put together by hand, and every way
// in which its tensors can fail to fit each other.
#include "moe/io/encoded_weight.hpp"

#include "encoded_tensors.hpp"

namespace moe::io::testing::encoded_weight_test {
namespace {

TensorFiles files_of(const NewTensors& tensors) {
  return TensorFiles(parse(safetensors_of(tensors)));
}

/// All of a weight of this shape.
Matrix<double> decode(const NewTensors& tensors, const std::string& name,
                      const std::vector<Index>& shape) {
  TensorFiles files = files_of(tensors);
  const Encoding* const encoding = encoding_of(files, name);
  if (encoding == nullptr) {
    return {};
  }
  const EncodedWeight weight(files, name, *encoding, shape);
  EXPECT_EQ(weight.tensors().size(), tensors.size()) << "of " << name;
  Matrix<double> values(part_of_shape(shape, 1), shape.back());
  for (Index row = 0; row < values.rows(); ++row) {
    weight.read_row(row, &values(row, 0));
  }
  return values;
}

void expect_values(const EncodedTensors& made, const std::string& name,
                   const std::vector<Index>& shape) {
  EXPECT_EQ(decode(made.tensors, name, shape), made.values) << name;
}

TEST(EncodedWeight, MultipliesBlocksOfFp8AlsoWhereTheyArePartial) {
  for (const auto& shape :
       std::vector<std::vector<Index>>{{129, 130}, {128, 256}, {3, 20, 136}, {2, 300, 7}, {1, 1}}) {
    expect_values(fp8_blocks("a.weight", shape, "a.weight_scale_inv"), "a.weight", shape);
    expect_values(fp8_blocks("gate_up_proj", shape, "gate_up_proj_scale_inv"), "gate_up_proj",
                  shape);
    expect_values(fp8_blocks("a.weight", shape, "a.scale", true), "a.weight", shape);
    expect_values(fp8_blocks("a.weight", shape, "a.weight_scale"), "a.weight", shape);
  }
}

TEST(EncodedWeight, TakesAScaleOfEachRowOrOneInAll) {
  EncodedTensors made = fp8_blocks("a.weight", {11, 33}, "a.weight_scale");
  made.tensors.erase("a.weight_scale");
  const Matrix<double> codes =
      made.values / made.values.cwiseAbs().maxCoeff();  // up to the one scale that it had
  for (const std::vector<Index>& shape : {std::vector<Index>{}, {1}, {1, 1}}) {
    made.tensors["a.weight_scale"] = tensor_of("F32", shape, std::vector<float>{0.25f});
    const Matrix<double> got = decode(made.tensors, "a.weight", {11, 33});
    EXPECT_LT((got / got.cwiseAbs().maxCoeff() - codes).norm(), 1e-14);
  }
  const Matrix<double> all = decode(made.tensors, "a.weight", {11, 33});
  std::vector<std::uint16_t> scales;  // 2^row
  for (Index row = 0; row < 11; ++row) {
    scales.push_back(static_cast<std::uint16_t>((127 + row) << 7));
  }
  made.tensors["a.weight_scale"] = tensor_of("BF16", {11, 1}, scales);
  const Matrix<double> rows = decode(made.tensors, "a.weight", {11, 33});
  for (Index row = 0; row < 11; ++row) {
    EXPECT_EQ(Matrix<double>(rows.row(row)), std::ldexp(4.0, static_cast<int>(row)) * all.row(row));
  }
}

// Their fraction has two bits, below a leading one but for the least exponent: 0x3e is 1.5, 0x81
// minus 2^-16 and 0x7b 57344; 0x7c is infinity, and 0xfd NaN.
TEST(EncodedWeight, MultipliesE5M2InBlocksInRowsAndInAll) {
  const std::vector<std::uint8_t> codes{0x00, 0x3e, 0x81, 0x7b, 0xc5, 0x03};
  Matrix<double> values(2, 3);
  values << 0.0, 1.5, -0x1p-16, 57344.0, -5.0, 0x3p-16;
  const NewTensor weight = tensor_of("F8_E5M2", {2, 3}, codes);
  const NewTensor one = tensor_of("F32", {1, 1}, std::vector<float>{0.3f});
  const Matrix<double> times_one = static_cast<double>(0.3f) * values;
  EXPECT_EQ(decode({{"a.weight", weight}, {"a.weight_scale_inv", one}}, "a.weight", {2, 3}),
            times_one);
  EXPECT_EQ(decode({{"a.weight", weight}, {"a.weight_scale", one}}, "a.weight", {2, 3}), times_one);
  EXPECT_EQ(decode({{"a.weight", weight}, {"a.scale", one}}, "a.weight", {2, 3}), times_one);
  const NewTensor rows = tensor_of("F32", {2, 1}, std::vector<float>{0.5f, -3.0f});
  Matrix<double> times_rows = values;
  times_rows.row(0) *= 0.5;
  times_rows.row(1) *= -3.0;
  EXPECT_EQ(decode({{"a.weight", weight}, {"a.weight_scale", rows}}, "a.weight", {2, 3}),
            times_rows);

  const NewTensor special =
      tensor_of("F8_E5M2", {1, 3}, std::vector<std::uint8_t>{0x7c, 0xfc, 0xfd});
  const Matrix<double> got =
      decode({{"a.weight", special}, {"a.weight_scale", one}}, "a.weight", {1, 3});
  EXPECT_EQ(got(0, 0), std::numeric_limits<double>::infinity());
  EXPECT_EQ(got(0, 1), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(got(0, 2)));
}

TEST(EncodedWeight, TakesMxfp4InAllContainers) {
  expect_values(mxfp4_blocks("gate_up_proj", {3, 6, 64}), "gate_up_proj", {3, 6, 64});
  expect_values(mxfp4_packed("w1.weight", 5, 96), "w1.weight", {5, 96});
  expect_values(mxfp4_signed("w1", 5, 32), "w1.weight", {5, 32});
}

TEST(EncodedWeight, MultipliesBySecondScalesOrDividesByThem) {
  expect_values(nvfp4("w1", 7, 48), "w1.weight", {7, 48});
  expect_values(nvfp4_packed("w1", 7, 48), "w1.weight", {7, 48});
}

TEST(EncodedWeight, TakesIntegersOfAnyNumberOfBits) {
  for (Index bits = 1; bits <= 8; ++bits) {
    for (const bool zero_points : {false, true}) {
      const PackedIntegers pack{.bits = bits, .zero_points = zero_points, .half_scales = bits > 4};
      expect_values(pack("w1", 9, 64), "w1.weight", {9, 64});
      expect_values(pack("w1", 37, 96), "w1.weight", {37, 96});
    }
  }
  const PackedIntegers per_row{.group = 70, .zero_points = true};
  expect_values(per_row("w1", 9, 70), "w1.weight", {9, 70});
  const PackedIntegers by_index{.zero_points = true, .group_index = true};
  expect_values(by_index("w1", 9, 128), "w1.weight", {9, 128});
}

TEST(EncodedWeight, NanOfACodeAndOfAScaleIsNan) {
  EncodedTensors made = mxfp4_packed("w1.weight", 2, 64);
  made.tensors["w1.weight_scale"].data[3] = std::byte{255};
  const Matrix<double> got = decode(made.tensors, "w1.weight", {2, 64});
  EXPECT_TRUE(got.row(1).tail(32).array().isNaN().all());
  EXPECT_EQ(got.array().isNaN().count(), 32);
  made = fp8_blocks("w1.weight", {3, 5}, "w1.weight_scale_inv");
  made.tensors["w1.weight"].data[7] = std::byte{0xff};
  const Matrix<double> one = decode(made.tensors, "w1.weight", {3, 5});
  EXPECT_TRUE(std::isnan(one(1, 2)));
  EXPECT_EQ(one.array().isNaN().count(), 1);
}

TEST(EncodedWeight, NothingIsEncodedWithoutCodesOfAKnownType) {
  TensorFiles files =
      files_of({{"a.weight", counted({2, 3})}, {"b.weight_packed", counted({2, 3})}});
  EXPECT_EQ(encoding_of(files, "a.weight"), nullptr);
  EXPECT_EQ(encoding_of(files, "b.weight"), nullptr);
  EXPECT_TRUE(contains_weight(files, "a.weight"));
  EXPECT_TRUE(contains_weight(files, "b.weight"));
  EXPECT_FALSE(contains_weight(files, "c.weight"));
}

/// Reading the weight (rows, cols) of these tensors must fail so, for the named one.
void expect_bad(const NewTensors& tensors, Index rows, Index cols, std::string_view tensor,
                std::initializer_list<std::string_view> facts) {
  expect_fault(
      [&] {
        decode(tensors, "w1.weight", {rows, cols});
      },
      "bad.safetensors", tensor, facts);
}

TEST(EncodedWeight, RefusesScalesOfAnotherShapeOrType) {
  NewTensors fp8 = fp8_blocks("w1.weight", {129, 130}, "w1.weight_scale_inv").tensors;
  NewTensor& scale = fp8["w1.weight_scale_inv"];
  scale = counted({1, 2});
  expect_bad(fp8, 129, 130, "w1.weight_scale_inv", {"F32 [1, 2]", "expected F32 [2, 2]", "128"});
  scale = counted({4});
  expect_bad(fp8, 129, 130, "w1.weight_scale_inv", {"F32 [4]", "expected F32 [2, 2]"});
  scale = tensor_of("I32", {2, 2}, std::vector<std::int32_t>(4));
  expect_bad(fp8, 129, 130, "w1.weight_scale_inv", {"dtype I32", "expected F32 BF16"});
  NewTensors mxfp4 = mxfp4_packed("w1.weight", 4, 64).tensors;
  mxfp4["w1.weight_scale"] = tensor_of("U8", {4, 4}, std::vector<std::uint8_t>(16));  // of 16
  expect_bad(mxfp4, 4, 64, "w1.weight_scale", {"U8 [4, 4]", "expected U8 [4, 2]", "1 x 32"});
  mxfp4["w1.weight_scale"] = counted({4, 2});
  expect_bad(mxfp4, 4, 64, "w1.weight_scale", {"dtype F32", "expected U8", "F8_E4M3"});
  NewTensors integers = PackedIntegers{}("w1", 4, 96).tensors;
  integers["w1.weight_scale"] = tensor_of("BF16", {4, 5}, std::vector<std::uint16_t>(20));
  expect_bad(integers, 4, 96, "w1.weight_scale", {"BF16 [4, 5]", "divide a width of 96"});
  integers["w1.weight_scale"] = tensor_of("BF16", {3, 3}, std::vector<std::uint16_t>(9));
  expect_bad(integers, 4, 96, "w1.weight_scale", {"BF16 [3, 3]", "expected BF16 [4, 3]"});
}

TEST(EncodedWeight, RefusesCodesOfAnotherShape) {
  const NewTensors fp8 = fp8_blocks("w1.weight", {20, 30}, "w1.weight_scale_inv").tensors;
  expect_bad(fp8, 30, 20, "w1.weight", {"F8_E4M3 [20, 30]", "expected F8_E4M3 [30, 20]"});
  const NewTensors mxfp4 = mxfp4_packed("w1.weight", 4, 64).tensors;
  expect_bad(mxfp4, 4, 80, "w1.weight_packed", {"width 80", "whole groups of 32"});
  expect_bad(mxfp4, 4, 32, "w1.weight_packed", {"U8 [4, 32]", "expected U8 [4, 16]"});
  const NewTensors integers = PackedIntegers{.bits = 8}("w1", 4, 96).tensors;
  expect_bad(integers, 4, 64, "w1.weight_packed", {"I32 [4, 24]", "1 to 8 bits"});
  expect_bad(integers, 5, 96, "w1.weight_packed", {"I32 [4, 24]", "expected I32 [5, 24]"});
  const NewTensors narrow = PackedIntegers{.bits = 4, .group = 8}("w1", 4, 8).tensors;
  expect_bad(narrow, 4, 8, "w1.weight_packed", {"one number of bits", "not several"});
}

TEST(EncodedWeight, RefusesWhatHasNoPartner) {
  for (const auto& [made, lost] :
       {std::pair(fp8_blocks("w1.weight", {4, 64}, "w1.weight_scale_inv"), "w1.weight_scale_inv"),
        std::pair(mxfp4_signed("w1", 4, 64), "w1.scale"),
        std::pair(nvfp4("w1", 4, 64), "w1.weight_scale")}) {
    NewTensors tensors = made.tensors;
    tensors.erase(lost);
    expect_bad(tensors, 4, 64, "w1.weight", {"dtype ", "or a scale beside it", lost});
  }
  NewTensors tensors = nvfp4_packed("w1", 4, 64).tensors;
  tensors.erase("w1.weight_global_scale");
  expect_bad(tensors, 4, 64, "w1.weight_global_scale", {"no tensor", "w1.weight_packed", "NVFP4"});
  tensors.erase("w1.weight_scale");
  expect_bad(tensors, 4, 64, "w1.weight_packed", {"dtype U8", "w1.weight_scale"});
}

TEST(EncodedWeight, RefusesAShapeThatLiesAndZeroPointsThatDoNotFit) {
  const PackedIntegers pack{.zero_points = true, .group_index = true};
  const NewTensors good = pack("w1", 9, 64).tensors;
  NewTensors bad = good;
  bad["w1.weight_shape"] = tensor_of("I64", {2}, std::vector<std::int64_t>{64, 9});
  expect_bad(bad, 9, 64, "w1.weight_shape", {"says 64 9", "expected 9 64"});
  bad["w1.weight_shape"] = tensor_of("I64", {3}, std::vector<std::int64_t>{9, 64, 1});
  expect_bad(bad, 9, 64, "w1.weight_shape", {"says 9 64 1", "expected 9 64"});
  bad["w1.weight_shape"] = counted({2});
  expect_bad(bad, 9, 64, "w1.weight_shape", {"dtype F32", "expected integers"});
  bad = good;
  bad["w1.weight_zero_point"] = tensor_of("I32", {9, 2}, std::vector<std::int32_t>(18));
  expect_bad(bad, 9, 64, "w1.weight_zero_point", {"I32 [9, 2]", "expected I32 [2, 2]"});
  bad["w1.weight_zero_point"] = tensor_of("F32", {2, 2}, std::vector<float>(4));
  expect_bad(bad, 9, 64, "w1.weight_zero_point", {"dtype F32", "expected I32"});
  bad = good;
  bad["w1.weight_g_idx"] = tensor_of("I32", {64}, std::vector<std::int32_t>(64, 2));
  expect_bad(bad, 9, 64, "w1.weight_g_idx", {"group 2", "expected 0 to 1"});
  bad["w1.weight_g_idx"] = tensor_of("I32", {63}, std::vector<std::int32_t>(63));
  expect_bad(bad, 9, 64, "w1.weight_g_idx", {"I32 [63]", "expected I32 [64]"});
}

TEST(EncodedWeight, RefusesOtherScalesThatAreNotOneNumber) {
  NewTensors bad = nvfp4("w1", 4, 64).tensors;
  bad["w1.input_scale"] = counted({3});
  expect_bad(bad, 4, 64, "w1.input_scale", {"F32 [3]", "expected one float"});
  bad = nvfp4("w1", 4, 64).tensors;
  bad["w1.weight_scale_2"] = counted({4});
  expect_bad(bad, 4, 64, "w1.weight_scale_2", {"F32 [4]", "expected F32 []"});
}

}  // namespace
}  // namespace moe::io::testing::encoded_weight_test
