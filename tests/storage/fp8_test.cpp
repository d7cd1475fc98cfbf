// SPDX-License-Identifier: Apache-2.0
// Weights as floats of 8 bits with a scale for each 128 outputs by 128 k: how near they are, where
// their scales apply, and the product against plain loops with the same numbers.
#include "moe/storage/fp8.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "../support/layer_step.hpp"
#include "moe/layers/packed_layer.hpp"
#include "moe/reference.hpp"

namespace moe::fp8_test {
namespace {

using testing::make_layer;
using testing::random_matrix;

static_assert(Storage<fp8>);

TEST(NearestE4m3, IsTheNearestOfAllWithTiesToEven) {
  std::vector<double> values;  // of the codes 0 to 126
  for (unsigned code = 0; code < 127; ++code) {
    values.push_back(double{kernels::widen(kernels::e4m3{static_cast<std::uint8_t>(code)})});
  }
  const auto expect = [](double value, unsigned code) {
    EXPECT_EQ(kernels::nearest_e4m3(value), code) << value;
    EXPECT_EQ(kernels::nearest_e4m3(-value), code + 128u) << -value;
  };
  for (unsigned code = 0; code < 126; ++code) {
    const double low = values[code], high = values[code + 1], middle = 0.5 * (low + high);
    expect(low, code);
    expect(middle, code % 2 == 0 ? code : code + 1);
    expect(std::nextafter(middle, 0.0), code);
    expect(std::nextafter(middle, 1e9), code + 1);
  }
  expect(448.0, 126);
  expect(460.0, 126);
  expect(1e300, 126);
  EXPECT_EQ(kernels::nearest_e4m3(std::numeric_limits<double>::quiet_NaN()) & 127, 127);
  EXPECT_EQ(kernels::nearest_e4m3(std::numeric_limits<double>::infinity()) & 127, 127);
}

/// The largest magnitude of each block of 128 x 128.
Matrix<float> block_maxima(const Matrix<float>& w) {
  Matrix<float> maxima = Matrix<float>::Zero((w.rows() + 127) / 128, (w.cols() + 127) / 128);
  for (Index out = 0; out < w.rows(); ++out) {
    for (Index k = 0; k < w.cols(); ++k) {
      float& most = maxima(out / 128, k / 128);
      most = std::max(most, std::abs(w(out, k)));
    }
  }
  return maxima;
}

TEST(Fp8, IsOffByASixteenthOfTheWeightOrByItsLeastStep) {
  for (const float magnitude : {1e-30f, 1e-3f, 1.0f, 1e30f}) {
    Matrix<float> w = magnitude * random_matrix<float>(140, 133, 3), v = w.reverse();
    w.bottomRows(12) *= 1e-3f;  // with scales of their own
    const PackedMatrix<fp8> packed({&w, &v});
    for (const auto& [want, got] :
         {std::pair(w, packed.unpack(0)), std::pair(v, packed.unpack(1))}) {
      const Matrix<float> maxima = block_maxima(want);
      for (Index out = 0; out < w.rows(); ++out) {
        for (Index k = 0; k < w.cols(); ++k) {
          const float step = maxima(out / 128, k / 128) / 448 * 0x1p-10f;
          const float bound = 1.0001f * std::max(std::abs(want(out, k)) / 16, step);
          ASSERT_LE(std::abs(got(out, k) - want(out, k)), bound) << out << ", " << k;
        }
      }
    }
  }
}

TEST(Fp8, TakesAByteForAWeightAndFourForAScale) {
  const MoEConfig config{.d_model = 128, .d_ff = 256, .num_experts = 3, .top_k = 1};
  const std::size_t scales = 3 * (2 * 256 + 2 * 128);  // for 128 k of an output
  EXPECT_EQ(packed_bytes<fp8>(pack<fp8>(make_layer<float>(config, 7))),
            3u * 3 * 128 * 256 + 4 * scales);
}

TEST(Fp8, WeightsThatAreNotFiniteReachTheirOutputAlone) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Matrix<float> w = random_matrix<float>(70, 200, 4);
    const Matrix<float> clean = PackedMatrix<fp8>({&w}).unpack(0);
    w(66, 140) = bad;
    const Matrix<float> got = PackedMatrix<fp8>({&w}).unpack(0);
    EXPECT_TRUE(std::isnan(got(66, 140)));
    EXPECT_EQ(got.array().isNaN().count(), 1);
    EXPECT_TRUE(testing::same_bits(Matrix<float>(got.topRows(66)), clean.topRows(66)));
  }
}

TEST(Fp8, OfZerosAndOfTheLeastNumbersIsNotNan) {
  for (const float value : {0.0f, 1e-45f, 1e-42f}) {
    const Matrix<float> w = Matrix<float>::Constant(3, 5, value);
    const Matrix<float> got = PackedMatrix<fp8>({&w}).unpack(0);
    EXPECT_TRUE((got.array() >= 0.0f && got.array() <= 2 * value).all()) << value;
  }
}

/// Widths below, at and above one and two blocks of scales, and outputs of several panels.
TEST(Fp8, LayersAreNearTheLayersOfTheirWeights) {
  for (const Index d_model : {37, 128, 300}) {
    for (const Index d_ff : {53, 129, 256}) {
      MoEConfig config{.d_model = d_model, .d_ff = d_ff, .num_experts = 3, .top_k = 2};
      config.expert.bias = true;
      config.shared = SharedExpertConfig{.d_ff = 71, .output_gate = true};
      const auto packed = pack<fp8>(make_layer<float>(config, 7));
      const MoELayer<float> unpacked = unpack<fp8>(packed);
      const Matrix<float> x =
          random_matrix<float>(9, d_model, 3).template cast<bf16>().template cast<float>();
      const Matrix<float> want = reference::forward(unpacked, x).template cast<float>();
      Matrix<float> got(9, d_model);
      PackedLayer<fp8>::Scratch scratch;
      packed.forward(x, got, scratch);
      // Hidden rows may be rounded to bfloat16.
      const float bound = kernels::multiplies_bfloat16 ? 1.0f / 256 : 1e-5f;
      EXPECT_LT((got - want).norm(), bound * want.norm()) << d_model << ", " << d_ff;
    }
  }
}

/// Codes of every kind, NaN among them, and a scale for each 128 k of each output.
CodedMatrix<Fp8Format> some_codes(Index rows, Index cols, unsigned number) {
  std::mt19937 random(number);
  CodedMatrix<Fp8Format> made(rows, cols);
  for (Index row = 0; row < rows; ++row) {
    for (Index k = 0; k < cols; ++k) {
      auto& block = made.block(row, k / 128);
      block.scale = std::ldexp(static_cast<float>(random() % 1000 + 1), -20);
      block.code[static_cast<std::size_t>(k % 128)] = static_cast<std::uint8_t>(random() % 256);
    }
  }
  return made;
}

TEST(Fp8, KeepsTheCodesAndScalesThatItIsGiven) {
  const auto gate = some_codes(70, 300, 1), up = some_codes(70, 300, 2);
  const PackedMatrix<fp8> both({&gate, &up});
  for (const int number : {0, 1}) {
    const CodedMatrix<Fp8Format>& coded = number == 0 ? gate : up;
    const Matrix<float> unpacked = both.unpack(number);
    for (Index out = 0; out < 70; ++out) {
      for (Index k = 0; k < 300; ++k) {
        const auto& want = coded.block(out, k / 128);
        const kernels::E4m3Block& got = *both.stored(out / both.share(), k);
        const Index col = number * both.share() + out % both.share();
        const std::uint8_t code = want.code[static_cast<std::size_t>(k % 128)];
        ASSERT_EQ(got.code[kernels::E4m3Block::place(col, k % 128)], code) << out << ", " << k;
        ASSERT_EQ(got.scale[col], want.scale);
        const double value =
            static_cast<double>(want.scale) * kernels::convert<double>(kernels::e4m3{code});
        ASSERT_TRUE(std::isnan(value) ? std::isnan(unpacked(out, k))
                                      : unpacked(out, k) == static_cast<float>(value))
            << unpacked(out, k) << ", not " << value;
      }
    }
  }
}

TEST(Fp8, OfCodesIsZerosAtFirst) {
  const CodedMatrix<Fp8Format> zeros(3, 150);
  EXPECT_EQ(zeros.blocks_of_row(), 2);
  EXPECT_EQ(PackedMatrix<fp8>({&zeros}).unpack(0), Matrix<float>::Zero(3, 150));
}

TEST(Fp8, OfCodesComputesAsTheLayerOfItsValues) {
  ExpertConfig config;
  CodedExpert<Fp8Format> coded{.params = {.gate = some_codes(53, 200, 1),
                                          .up = some_codes(53, 200, 2),
                                          .down = some_codes(40, 53, 3),
                                          .gate_bias = {},
                                          .up_bias = {},
                                          .down_bias = {},
                                          .output_gate = {}},
                               .config = config};
  const Expert<float> expert = PackedExpert<fp8>(coded).unpack();
  EXPECT_TRUE(
      testing::same_bits(expert.params().down, PackedMatrix<fp8>({&coded.params.down}).unpack(0)));
  coded.params.down.resize(40, 52);
  EXPECT_THROW(PackedExpert<fp8>{coded}, std::invalid_argument);
}

// Weights of one whole number and rows of small ones: each sum of 128 k is exact, so the result is
// the chain of scales over blocks of k, in their order.
TEST(Fp8, ScalesMeetTheSumsOf128InTheOrderOfK) {
  const Index cols = PackedMatrix<fp8>::cols, width = 128 * 5 + 6;
  Matrix<float> w(cols, width);
  for (Index k = 0; k < width; ++k) {
    w.col(k).setConstant(448.0f * (0.37f + static_cast<float>(k / 128)));
  }
  const PackedMatrix<fp8> packed({&w});
  using Input = PackedMatrix<fp8>::Input;
  Matrix<Input> x = Matrix<Input>::Zero(9, packed.depth());
  for (Index k = 0; k < width; ++k) {
    for (Index row = 0; row < 9; ++row) {
      x(row, k) = kernels::convert<Input>(static_cast<float>((row * k) % 7 - 3));
    }
  }
  const Input* rows[9];
  for (Index row = 0; row < 9; ++row) {
    rows[row] = &x.coeffRef(row, 0);
  }
  Matrix<float> sums(9, cols);
  Matrix<Input> buffer(1, PackedMatrix<fp8>::buffer_size);
  kernels::multiply_panels<PackedMatrix<fp8>>(
      rows, packed, {}, {sums.data(), buffer.data()}, [&](const kernels::Finished<float>& tile) {
        for (Index row = 0; row < tile.count; ++row) {
          float want = 0.0f;
          for (Index k = 0; k < width; k += 128) {
            float partial = 0.0f;
            for (Index i = k; i < std::min(width, k + 128); ++i) {
              partial += 448.0f * kernels::convert<float>(x(tile.row + row, i));
            }
            want = kernels::multiply_add(*packed.scales(0, k), partial, want);
          }
          for (Index col = 0; col < cols; ++col) {
            EXPECT_EQ(tile.sums[row * cols + col], want) << tile.row + row;
          }
        }
      });
}

}  // namespace
}  // namespace moe::fp8_test
