// SPDX-License-Identifier: Apache-2.0
// What all storages in integers keep: how far they are from the weights and from the layer, the
// same bits alone and in any batch, NaN and infinity.
#include "moe/storage/coded.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "../support/layer_step.hpp"
#include "../support/storages.hpp"
#include "moe/io/checksum.hpp"
#include "moe/layers/packed_layer.hpp"
#include "moe/reference.hpp"

namespace moe::coded_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::same_bits;

template <class S>
class Coded : public ::testing::Test {};
TYPED_TEST_SUITE(Coded, testing::CodedStorages);

template <class S>
class CodedWithoutMinima : public ::testing::Test {};
using WithoutMinima = ::testing::Types<q8, q4, mxfp4>;
TYPED_TEST_SUITE(CodedWithoutMinima, WithoutMinima);

static_assert(Storage<q8> && Storage<q4> && Storage<q4_k> && Storage<mxfp4>);

/// The relative error of the weights of a normal distribution, root of the mean square: as measured
/// for each format elsewhere, and a little.
template <class S>
double error_of_weights() {
  return std::is_same_v<S, q8>     ? 0.0058
         : std::is_same_v<S, q4>   ? 0.084
         : std::is_same_v<S, q4_k> ? 0.074
                                   : 0.118;
}

/// Widths that are not whole blocks, with and without a gate, biases, a shared expert and its gate.
std::vector<MoEConfig> configs() {
  MoEConfig narrow{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 2};
  narrow.expert.bias = true;
  narrow.shared = SharedExpertConfig{.d_ff = 71, .output_gate = true};
  MoEConfig plain{.d_model = 96, .d_ff = 130, .num_experts = 3, .top_k = 1};
  plain.expert.gated = false;
  plain.expert.activation = Activation::relu_squared;
  return {narrow, plain, {.d_model = 128, .d_ff = 64, .num_experts = 4, .top_k = 2}};
}

template <class S>
Matrix<float> forward(const PackedLayer<S>& layer, const Matrix<float>& x, int threads = 1) {
  Matrix<float> y(x.rows(), layer.d_out());
  typename PackedLayer<S>::Scratch scratch;
  detail::with_team(threads, [&] { layer.forward(x, y, scratch, {.num_threads = threads}); });
  return y;
}

/// Of no order, and of sizes from 2^-18 to 8.
Matrix<float> uneven_weights() {
  std::mt19937 random(5);
  Matrix<float> w(128, 2048);
  for (Index i = 0; i < w.size(); ++i) {
    const int number = static_cast<int>(random() % 20001) - 10000;
    w.data()[i] = std::ldexp(static_cast<float>(number) / 9973.0f, 3 - static_cast<int>(i % 7 * 3));
  }
  return w;
}

template <class S>
std::uint64_t checksum_of_codes() {
  const Matrix<float> w = uneven_weights();
  const PackedMatrix<S> packed({&w});
  std::uint64_t sum = 0;
  for (Index panel = 0; panel < packed.num_panels(); ++panel) {
    sum ^= io::detail::checksum(packed.source(panel, 0, packed.depth())) +
           static_cast<std::uint64_t>(panel);
  }
  return sum;
}
// Instruction sets differ in whether they round between a product and a sum.
TEST(Encoders, MakeTheSameCodesOnEveryInstructionSet) {
  EXPECT_EQ(checksum_of_codes<q8>(), 0x412D9C674E0C97A8U);
  EXPECT_EQ(checksum_of_codes<q4>(), 0xD2E5D01FF992C139U);
  EXPECT_EQ(checksum_of_codes<q4_k>(), 0x61580C6E7B92F842U);
  EXPECT_EQ(checksum_of_codes<mxfp4>(), 0x797EE5B7B7286275U);
  EXPECT_EQ(checksum_of_codes<fp8>(), 0x825AE042F7D6FA2FU);
}

TYPED_TEST(Coded, WeightsAreAsNearAsTheFormatAllows) {
  Matrix<float> w = random_matrix<float>(64, 512, 3);
  const Matrix<float> got = PackedMatrix<TypeParam>({&w}).unpack(0);
  EXPECT_LT((got - w).norm() / w.norm(), error_of_weights<TypeParam>());
}

TYPED_TEST(CodedWithoutMinima, WeightsThatTheirCodesSayStayAsTheyAre) {
  const Matrix<float> w = random_matrix<float>(70, 100, 4), v = random_matrix<float>(70, 100, 5);
  const Matrix<float> stored_w = PackedMatrix<TypeParam>({&w}).unpack(0);
  const Matrix<float> stored_v = PackedMatrix<TypeParam>({&v}).unpack(0);
  const PackedMatrix<TypeParam> both({&stored_w, &stored_v});
  EXPECT_TRUE(testing::matrix_near(both.unpack(0), stored_w, 1e-3));
  EXPECT_TRUE(testing::matrix_near(both.unpack(1), stored_v, 1e-3));
}

// Hidden rows and x are off by 1/254 of the largest of 32 at most, weights not at all.
TYPED_TEST(Coded, LayersAreNearTheLayersOfTheirWeights) {
  for (const MoEConfig& config : configs()) {
    const auto packed = pack<TypeParam>(make_layer<float>(config, 7));
    const MoELayer<float> unpacked = unpack<TypeParam>(packed);
    const Matrix<float> x = random_matrix<float>(40, config.d_model, 3);
    const Matrix<float> want = reference::forward(unpacked, x).template cast<float>();
    EXPECT_LT((forward<TypeParam>(packed, x) - want).norm(), 0.02 * want.norm());
  }
}

TYPED_TEST(Coded, RowsHaveTheirBitsAloneInAnyBatchAndWithAnyThreads) {
  for (const MoEConfig& config : configs()) {
    const auto packed = pack<TypeParam>(make_layer<float>(config, 7));
    const Matrix<float> x = random_matrix<float>(300, config.d_model, 3);
    const Matrix<float> all = forward<TypeParam>(packed, x);
    for (const Index tokens : {0, 1, 2, 5, 37}) {
      for (const int threads : {1, 3}) {
        const Matrix<float> some = x.middleRows(11, tokens);
        EXPECT_TRUE(same_bits(forward<TypeParam>(packed, some, threads),
                              Matrix<float>(all.middleRows(11, tokens))))
            << tokens << " tokens, " << threads << " threads";
      }
    }
  }
}

TYPED_TEST(Coded, NanAndInfinityOfATokenReachItAlone) {
  const MoEConfig config = configs().back();
  const auto packed = pack<TypeParam>(make_layer<float>(config, 7));
  Matrix<float> x = random_matrix<float>(9, config.d_model, 3);
  const Matrix<float> clean = forward<TypeParam>(packed, x);
  x(2, 17) = std::numeric_limits<float>::quiet_NaN();
  x(6, 120) = std::numeric_limits<float>::infinity();
  const Matrix<float> got = forward<TypeParam>(packed, x);
  for (Index row = 0; row < 9; ++row) {
    const Matrix<float> one = got.row(row);
    if (row == 2 || row == 6) {
      EXPECT_TRUE(one.array().isNaN().all()) << row;
    } else {
      EXPECT_TRUE(same_bits(one, Matrix<float>(clean.row(row)))) << row;
    }
  }
}

TYPED_TEST(Coded, NanAndInfinityOfAWeightReachItsOutputAlone) {
  constexpr Index depth = PackedMatrix<TypeParam>::Weight::depth, first = 40 / depth * depth;
  constexpr Index reached = std::min(depth, 100 - first);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Matrix<float> w = random_matrix<float>(70, 100, 4);
    w(66, 40) = bad;
    const Matrix<float> got = PackedMatrix<TypeParam>({&w}).unpack(0);
    EXPECT_TRUE(got.row(66).middleCols(first, reached).array().isNaN().all());
    EXPECT_EQ(got.array().isNaN().count(), reached);
  }
}

TYPED_TEST(Coded, BlocksAreWholeCacheLines) {
  using Block = typename PackedMatrix<TypeParam>::Weight;
  EXPECT_EQ(sizeof(Block) % 64, 0u);
  const Matrix<float> w = random_matrix<float>(64, 64, 4);
  EXPECT_EQ(PackedMatrix<TypeParam>({&w}).bytes(), (Block::depth > 32 ? 1 : 2) * sizeof(Block));
  EXPECT_EQ(
      reinterpret_cast<std::uintptr_t>(PackedMatrix<TypeParam>({&w}).panel(0, 32, 32, nullptr)) %
          64,
      0u);
}

TEST(Q8, IsOffByHalfAStepAtMostAtEveryMagnitude) {
  for (const float magnitude : {1e-7f, 1e-5f, 1e-3f, 1.0f, 1e4f, 1e6f}) {
    const Matrix<float> w = magnitude * random_matrix<float>(64, 96, 9);
    const PackedMatrix<q8> packed({&w});
    const Matrix<float> got = packed.unpack(0);
    for (Index out = 0; out < 64; ++out) {
      for (Index k = 0; k < 96; ++k) {
        const float scale = Q8Format::scale_of(packed.panel(0, k, 32, nullptr)->scale[out]);
        ASSERT_LE(std::abs(got(out, k) - w(out, k)), scale / 2 * (1 + 1e-6f)) << magnitude;
      }
    }
  }
}

TEST(Q8, HasNoNumberForWeightsThatItsScaleCannotReach) {
  const Matrix<float> w = Matrix<float>::Constant(1, 32, 1e8f);
  EXPECT_TRUE(PackedMatrix<q8>({&w}).unpack(0).array().isNaN().all());
}

TEST(Mxfp4, HoldsItsOwnNumbersExactly) {
  Matrix<float> w(1, 32);
  const float values[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  for (Index k = 0; k < 32; ++k) {
    w(0, k) = (k % 2 == 0 ? 1.0f : -1.0f) * values[k / 4] * 0x1p-9f;
  }
  EXPECT_TRUE((PackedMatrix<mxfp4>({&w}).unpack(0).array() == w.array()).all());
}

TEST(Q4, ErrsLessThanPlainRoundingByASixth) {
  const Matrix<float> w = random_matrix<float>(64, 512, 3);
  double plain = 0.0;
  for (Index out = 0; out < 64; ++out) {
    for (Index k = 0; k < 512; k += 32) {
      const auto block = w.row(out).segment(k, 32).array();
      const float scale = block.abs().maxCoeff() / 7;
      plain += static_cast<double>((block - (block / scale).round() * scale).square().sum());
    }
  }
  const double got = static_cast<double>((PackedMatrix<q4>({&w}).unpack(0) - w).squaredNorm());
  EXPECT_LT(std::sqrt(got), 0.86 * std::sqrt(plain));
}

}  // namespace
}  // namespace moe::coded_test
