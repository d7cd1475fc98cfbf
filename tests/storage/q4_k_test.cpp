// SPDX-License-Identifier: Apache-2.0
// Weights with a scale and a minimum for every 32: how large they are, how near, and how near their
// products.
#include "moe/storage/q4_k.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "moe/storage/q4.hpp"
#include "support/random_matrix.hpp"

namespace moe::q4_k_test {
namespace {

using testing::random_matrix;

template <class S>
double relative_error(const Matrix<float>& w) {
  return static_cast<double>((PackedMatrix<S>({&w}).unpack(0) - w).norm() / w.norm());
}

TEST(Q4K, TakesFourAndFiveEighthsBitsOfAWeight) {
  const Matrix<float> w = random_matrix<float>(128, 512, 1);
  EXPECT_EQ(PackedMatrix<q4_k>({&w}).bytes() * 8 * 8, std::size_t{128 * 512 * 37});
}

TEST(Q4K, ErrsLessThanQ4OfANormalDistribution) {
  const Matrix<float> w = random_matrix<float>(64, 1024, 3);
  EXPECT_LT(relative_error<q4_k>(w), 0.074);
  EXPECT_LT(relative_error<q4_k>(w), 0.9 * relative_error<q4>(w));
}

TEST(Q4K, ErrsFarLessThanQ4WhereWeightsHaveOneSign) {
  const Matrix<float> w = random_matrix<float>(64, 1024, 3).cwiseAbs();
  EXPECT_LT(relative_error<q4_k>(w), 0.6 * relative_error<q4>(w));
  EXPECT_LT(relative_error<q4_k>(-w), 0.6 * relative_error<q4>(-w));
}

TEST(Q4K, HasNearlyWhatIsTheSameInAllOfABlock) {
  for (const float value : {0.0f, 1.0f, -1.0f, 0.03f, -700.0f}) {
    const Matrix<float> w = Matrix<float>::Constant(3, 256, value);
    const Matrix<float> got = PackedMatrix<q4_k>({&w}).unpack(0);
    EXPECT_LE((got - w).cwiseAbs().maxCoeff(), 1e-3f * std::abs(value)) << value;
  }
}

TEST(Q4K, HasNoNumberForWeightsThatItsHalvesCannotReach) {
  for (const float value : {1e9f, -1e9f, 3e38f}) {
    Matrix<float> w = Matrix<float>::Constant(1, 256, value);
    w.col(7) *= -1.0f;
    EXPECT_TRUE(PackedMatrix<q4_k>({&w}).unpack(0).array().isNaN().all()) << value;
  }
}

// Rows are off by half a step, and each block rounds two products and two sums.
TEST(Q4K, ProductsAreWithinTheRoundingOfRowsOfThoseOfTheStoredWeights) {
  constexpr Index depth = 608, blocks = depth / 32;
  const Matrix<float> w = random_matrix<float>(64, depth, 5).array() - 0.3f;
  const Matrix<float> x = random_matrix<float>(1, depth, 6, 3.0);
  const PackedMatrix<q4_k> packed({&w});
  const Matrix<float> stored = packed.unpack(0);
  kernels::CodedInput row[blocks];
  PackedMatrix<q4_k>::store(x.data(), depth, 1.0f, 0, row);
  const kernels::CodedInput* rows[] = {row};
  float sums[64];
  kernels::multiply_tile(1, kernels::RowPointers<kernels::CodedInput>{rows, 1},
                         kernels::Panel<kernels::CodedInput, PackedMatrix<q4_k>::Weight>{
                             packed.panel(0, 0, depth, nullptr)},
                         depth,
                         kernels::Sums<kernels::CodedInput>{sums, 64, kernels::Update::assign},
                         kernels::Ahead{});
  for (Index out = 0; out < 64; ++out) {
    double want = 0.0, off = 0.0, terms = 0.0;
    for (Index b = 0; b < blocks; ++b) {
      const auto block = kernels::block_at(packed.stored(0, 0), b);
      double product = 0.0, sum = 0.0;
      for (Index k = 32 * b; k < 32 * b + 32; ++k) {
        const double weight = static_cast<double>(stored(out, k));
        const double value = static_cast<double>(row[b].scale) * row[b].code[k - 32 * b];
        want += weight * static_cast<double>(x(0, k));
        off += std::abs(weight) * static_cast<double>(row[b].scale) / 2 * (1 + 1e-5);
        product += (weight + static_cast<double>(block.minimum[out])) * value;
        sum += value;
      }
      terms += std::abs(product) + std::abs(static_cast<double>(block.minimum[out]) * sum);
    }
    EXPECT_LE(std::abs(static_cast<double>(sums[out]) - want),
              off + (2 * blocks + 2) * 0x1p-24 * terms)
        << out;
  }
}

}  // namespace
}  // namespace moe::q4_k_test
