// SPDX-License-Identifier: Apache-2.0
// Tests of RMSNorm of a row: by hand, against central differences, and that bits do not depend on
// where an element stands.
#include "moe/kernels/rms_norm.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "support/counting_scalar.hpp"
#include "support/finite_difference.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels::rms_norm_test {
namespace {

using testing::Counting;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

constexpr Index D = 11;
constexpr double epsilon = 0.1, factor = 0.3;

template <class T>
Matrix<Wide<T>> normed(const Matrix<T>& x, const Matrix<Wide<T>>& scale) {
  Matrix<Wide<T>> y(x.rows(), x.cols());
  for (Index row = 0; row < x.rows(); ++row) {
    const T* from = &x.coeffRef(row, 0);
    scale_norm(from, x.cols(), inverse_rms(from, x.cols(), epsilon, factor),
               scale.size() > 0 ? scale.data() : nullptr, &y.coeffRef(row, 0));
  }
  return y;
}

TEST(RmsNorm, DividesByTheRootOfTheMeanSquare) {
  Matrix<double> x(1, 2), scale(1, 2), want(1, 2);
  x << 1, -7;  // the mean square is 25
  scale << 2, 10;
  want << 0.2, -7;
  Matrix<double> y(1, 2);
  const double inverse = inverse_rms(x.data(), 2, 0.0, 0.5);
  EXPECT_NEAR(inverse, 0.1, 1e-16);
  scale_norm(x.data(), 2, inverse, scale.data(), y.data());
  EXPECT_TRUE(matrix_near(y, want, 1e-14));
}

TEST(RmsNorm, HasTheGradientsOfCentralDifferences) {
  for (const bool scaled : {false, true}) {
    Matrix<double> x = random_matrix<double>(3, D, 1);
    Matrix<double> scale = random_matrix<double>(scaled ? 1 : 0, D, 2);
    const Matrix<double> dy = random_matrix<double>(3, D, 3);
    const auto loss = [&] { return normed(x, scale).cwiseProduct(dy).sum(); };
    Matrix<double> dx = dy, dscale = random_matrix<double>(1, D, 4);  // dy may be dx
    const Matrix<double> before = dscale;
    std::vector<double> inverse;
    for (Index row = 0; row < 3; ++row) {
      inverse.push_back(inverse_rms(&x.coeffRef(row, 0), D, epsilon, factor));
      double* const d = &dx.coeffRef(row, 0);
      rms_norm_backward(&x.coeffRef(row, 0), d, scaled ? scale.data() : nullptr, D, inverse.back(),
                        d, factor);
    }
    add_norm_scale_gradient(
        x, dy, inverse.data(), [](Index) { return false; }, dscale.data());
    EXPECT_LT(testing::gradient_error(loss, x, dx), 1e-7);
    if (scaled) {
      EXPECT_LT(testing::gradient_error(loss, scale, dscale - before), 1e-7);
    }
  }
}

TEST(RmsNorm, LeavesOutRowsThatAreSkipped) {
  Matrix<double> x = random_matrix<double>(3, D, 1);
  const Matrix<double> dy = random_matrix<double>(3, D, 3);
  x.row(1).setConstant(std::nan(""));
  const std::vector<double> inverse = {0.5, std::nan(""), 2.0};
  Matrix<double> grad = Matrix<double>::Zero(1, D);
  add_norm_scale_gradient(
      x, dy, inverse.data(), [](Index row) { return row == 1; }, grad.data());
  const Matrix<double> want =
      (0.5 * x.row(0).cwiseProduct(dy.row(0)) + 2.0 * x.row(2).cwiseProduct(dy.row(2)));
  EXPECT_TRUE(matrix_near(grad, want, 1e-14));
}

TEST(RmsNorm, HasTheSameBitsForTheColumnsOfAPartOfARow) {
  const Matrix<float> x = random_matrix<float>(2, D, 1), dy = random_matrix<float>(2, D, 2);
  const std::vector<float> inverse = {0.5F, 2.0F};
  Matrix<float> whole = Matrix<float>::Zero(1, D), parts = whole;
  const auto none_is = [](Index) { return false; };
  add_norm_scale_gradient(x, dy, inverse.data(), none_is, whole.data());
  for (Index col = 0; col < D; ++col) {
    add_norm_scale_gradient(x.col(col), dy.col(col), inverse.data(), none_is, &parts(0, col));
  }
  EXPECT_TRUE(same_bits(whole, parts));
}

TEST(RmsNorm, RoundsANarrowRowOnce) {
  const Matrix<bf16> x = random_matrix<float>(1, D, 1).cast<bf16>();
  const Matrix<float> scale = random_matrix<float>(1, D, 2);
  Matrix<bf16> y(1, D);
  scale_norm(x.data(), D, inverse_rms(x.data(), D, epsilon, factor), scale.data(), y.data());
  EXPECT_TRUE(same_bits(y, Matrix<bf16>(normed<bf16>(x, scale).cast<bf16>())));
}

TEST(RmsNorm, HasTheFlopsThatItStates) {
  const auto x = random_matrix<Counting>(1, D, 1), dy = random_matrix<Counting>(1, D, 2);
  Matrix<Counting> y(1, D), grad = Matrix<Counting>::Zero(1, D);
  for (const Counting* scale : {static_cast<const Counting*>(nullptr), dy.data()}) {
    Counting inverse(0);
    EXPECT_EQ(testing::count_flops([&] {
                inverse = inverse_rms(x.data(), D, epsilon, factor);
                scale_norm(x.data(), D, inverse, scale, y.data());
              }),
              rms_norm_flops(D, scale != nullptr));
    EXPECT_EQ(testing::count_flops([&] {
                rms_norm_backward(x.data(), dy.data(), scale, D, inverse, y.data(), factor);
                if (scale != nullptr) {
                  add_norm_scale_gradient(
                      x, dy, &inverse, [](Index) { return false; }, grad.data());
                }
              }),
              rms_norm_backward_flops(D, scale != nullptr));
  }
}

}  // namespace
}  // namespace moe::kernels::rms_norm_test
