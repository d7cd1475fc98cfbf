// SPDX-License-Identifier: Apache-2.0
// How near codes are to weights that are random, at the ends of their range, or made to hurt: each
// is the nearest one that its scale has.
#include <gtest/gtest.h>

#include <cmath>

#include "support/random_matrix.hpp"
#include "support/storages.hpp"

namespace moe::coded_bounds_test {
namespace {

using testing::random_matrix;

/// (4, 96) each: every row has three blocks.
std::vector<Matrix<float>> hard_weights() {
  std::vector<Matrix<float>> all;
  for (const float magnitude : {1e-8f, 1e-7f, 1e-6f, 1e-5f, 1e-4f, 1e-2f, 1.0f, 1e2f, 1e3f}) {
    const Matrix<float> w = magnitude * random_matrix<float>(4, 96, 5);
    all.push_back(w);
    all.push_back(Matrix<float>::Constant(4, 96, magnitude));
    all.push_back(Matrix<float>::Constant(4, 96, -magnitude));
    Matrix<float> outlier = w, in_turn = w;
    for (Index k = 0; k < 96; ++k) {
      in_turn.col(k).setConstant(k % 2 == 0 ? magnitude : -magnitude);
      if (k % 32 == 7) {
        outlier.col(k) *= 20.0f;
      }
    }
    all.push_back(outlier);
    all.push_back(in_turn);
  }
  all.push_back(Matrix<float>::Zero(4, 96));
  return all;
}

template <class S>
class CodedBounds : public ::testing::Test {};
TYPED_TEST_SUITE(CodedBounds, testing::CodedStorages);

TYPED_TEST(CodedBounds, WeightsThatNoScaleReachesAreNaN) {
  for (const float magnitude : {1e9f, 3e38f}) {
    Matrix<float> w = Matrix<float>::Constant(4, 256, magnitude);
    w.rightCols(128) *= -1.0f;
    const Matrix<float> got = PackedMatrix<TypeParam>({&w}).unpack(0);
    for (Index i = 0; i < w.size(); ++i) {
      const float number = got.data()[i], weight = w.data()[i];
      EXPECT_TRUE(std::isnan(number) || std::abs(number - weight) <= 0.25f * magnitude)
          << number << " for " << weight;
    }
  }
}
TYPED_TEST(CodedBounds, EachWeightHasTheNearestNumberOfItsScale) {
  using F = typename PackedMatrix<TypeParam>::Format;
  for (const Matrix<float>& w : hard_weights()) {
    const PackedMatrix<TypeParam> packed({&w});
    const Matrix<float> got = packed.unpack(0);
    for (Index out = 0; out < w.rows(); ++out) {
      for (Index k = 0; k < w.cols(); ++k) {
        const auto& block = kernels::block_at(packed.stored(0, 0), k / 32);
        const double scale = static_cast<double>(F::scale_of(block.scale[out]));
        const double weight = static_cast<double>(w(out, k));
        double nearest = HUGE_VAL;
        for (unsigned code = 0; code < 1u << F::bits; ++code) {
          double number = scale * static_cast<double>(F::unit) * (F::number(code) - F::bias);
          if constexpr (kernels::HasMinima<F>) {
            number -= static_cast<double>(block.minimum[out]);
          }
          nearest = std::min(nearest, std::abs(weight - number));
        }
        ASSERT_LE(std::abs(weight - static_cast<double>(got(out, k))),
                  nearest + 1e-5 * std::abs(scale))
            << weight << " by steps of " << scale;
      }
    }
  }
}

// Scales are rounded up, also where half has few digits, so that nothing is clipped.
TEST(CodedBounds, OfQ8IsHalfAStep) {
  for (const Matrix<float>& w : hard_weights()) {
    const PackedMatrix<q8> packed({&w});
    const Matrix<float> got = packed.unpack(0);
    for (Index i = 0; i < w.size(); ++i) {
      const Index out = i / 96, k = i % 96;
      const float scale = Q8Format::scale_of(packed.panel(0, k / 32 * 32, 32, nullptr)->scale[out]);
      ASSERT_LE(std::abs(w(out, k) - got(out, k)), 0.5f * scale * (1.0f + 1e-5f)) << w(out, k);
    }
  }
}

}  // namespace
}  // namespace moe::coded_bounds_test
