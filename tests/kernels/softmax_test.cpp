// SPDX-License-Identifier: Apache-2.0
// Tests of softmax, sigmoid and log-sum-exp: known values, extreme values, NaN, and the gradient.
#include "moe/kernels/softmax.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "support/finite_difference.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels {
namespace {

template <class T>
Matrix<T> softmax_of(const Matrix<T>& logit) {
  Matrix<T> prob(logit.rows(), logit.cols());
  for (Index row = 0; row < logit.rows(); ++row) {
    softmax(&logit.coeffRef(row, 0), logit.cols(), &prob.coeffRef(row, 0));
  }
  return prob;
}

template <class T>
Matrix<T> row(std::initializer_list<double> values) {
  Matrix<T> m(1, static_cast<Index>(values.size()));
  std::transform(values.begin(), values.end(), m.data(), [](double v) { return T(v); });
  return m;
}

template <class T>
class Softmax : public ::testing::Test {
 public:
  static constexpr T inf = std::numeric_limits<T>::infinity();
  static constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  static constexpr double tolerance = 4.0 * std::numeric_limits<T>::epsilon();
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Softmax, Scalars);

TYPED_TEST(Softmax, HasKnownValues) {
  using T = TypeParam;
  // exp(0), exp(log 2), exp(log 5) over their sum 8.
  EXPECT_TRUE(testing::matrix_near(softmax_of(row<T>({0.0, std::log(2.0), std::log(5.0)})),
                                   row<double>({0.125, 0.25, 0.625}), this->tolerance));
  EXPECT_TRUE(testing::same_bits(softmax_of(row<T>({-7.5})), row<T>({1.0})));
}

TYPED_TEST(Softmax, DoesNotOverflow) {
  using T = TypeParam;
  const T big = std::numeric_limits<T>::max();
  EXPECT_TRUE(testing::same_bits(softmax_of(row<T>({big, -big})), row<T>({1.0, 0.0})));
  EXPECT_TRUE(testing::same_bits(softmax_of(row<T>({1e4, 1e4})), row<T>({0.5, 0.5})));
}

TYPED_TEST(Softmax, GivesExactlyZeroForMinusInfinity) {
  using T = TypeParam;
  EXPECT_TRUE(testing::same_bits(softmax_of(row<T>({-this->inf, 3.0, 3.0, -this->inf})),
                                 row<T>({0.0, 0.5, 0.5, 0.0})));
}

TYPED_TEST(Softmax, HasTheSameBitsInEveryPlaceOfARow) {
  using T = TypeParam;
  for (Index size = 1; size <= 67; ++size) {
    Matrix<T> logit = Matrix<T>::Constant(1, size, T(0.3));
    logit(0, size / 2) = T(1.7);  // so that the exp of the others is not exp(0)
    const Matrix<T> prob = softmax_of(logit);
    for (Index i = 0; i < size; ++i) {
      ASSERT_TRUE(i == size / 2 || prob(0, i) == prob(0, size / 2 == 0 ? size - 1 : 0));
    }
  }
}

TYPED_TEST(Softmax, SumsToOneAndMayBeInPlace) {
  using T = TypeParam;
  const Matrix<T> logit = testing::random_matrix<T>(20, 65, 1);
  Matrix<T> prob = logit;
  for (Index r = 0; r < prob.rows(); ++r) {
    softmax(&prob.coeffRef(r, 0), prob.cols(), &prob.coeffRef(r, 0));
  }
  EXPECT_TRUE(testing::same_bits(prob, softmax_of(logit)));
  EXPECT_TRUE(
      testing::matrix_near(prob.rowwise().sum(), Matrix<T>::Ones(20, 1), 16 * this->tolerance));
}

TYPED_TEST(Softmax, LetsNanAndInfinitySpoilTheWholeRow) {
  using T = TypeParam;
  EXPECT_TRUE(softmax_of(row<T>({1.0, this->nan, 2.0})).array().isNaN().all());
  EXPECT_TRUE(softmax_of(row<T>({1.0, this->inf, 2.0})).array().isNaN().all());
}

TYPED_TEST(Softmax, RowMaxFindsTheLargestOrNan) {
  using T = TypeParam;
  const auto max = [](const Matrix<T>& m) { return row_max(m.data(), m.size()); };
  EXPECT_EQ(max(row<T>({-3.0, -1.0, -2.0})), T(-1));
  EXPECT_EQ(max(row<T>({-this->inf, -this->inf})), -this->inf);
  EXPECT_EQ(max(Matrix<T>(1, 0)), -this->inf);
  for (Index at = 0; at < 3; ++at) {
    Matrix<T> m = row<T>({-3.0, this->inf, -2.0});
    m(0, at) = this->nan;
    EXPECT_TRUE(std::isnan(max(m))) << at;
  }
}

TYPED_TEST(Softmax, LogSumExpHasKnownValues) {
  using T = TypeParam;
  const auto lse = [](const Matrix<T>& m) {
    return static_cast<double>(log_sum_exp(m.data(), m.size()));
  };
  EXPECT_NEAR(lse(row<T>({0.0, std::log(2.0), std::log(5.0)})), std::log(8.0), this->tolerance);
  EXPECT_NEAR(lse(row<T>({1000.0, 1000.0})), 1000.0 + std::log(2.0), 1000.0 * this->tolerance);
  EXPECT_NEAR(lse(row<T>({-this->inf, 2.0})), 2.0, this->tolerance);
  EXPECT_TRUE(std::isnan(lse(row<T>({1.0, this->nan}))));
}

TYPED_TEST(Softmax, SigmoidHasKnownAndLimitValues) {
  using T = TypeParam;
  EXPECT_EQ(sigmoid(T(0)), T(0.5));
  EXPECT_NEAR(static_cast<double>(sigmoid(T(std::log(3.0)))), 0.75, this->tolerance);
  EXPECT_EQ(sigmoid(this->inf), T(1));
  EXPECT_EQ(sigmoid(-this->inf), T(0));
  EXPECT_EQ(sigmoid(std::numeric_limits<T>::lowest()), T(0));
  EXPECT_TRUE(std::isnan(sigmoid(this->nan)));
}

TEST(SoftmaxBackward, IsTheGradient) {
  Matrix<double> logit = testing::random_matrix<double>(1, 7, 2);
  const Matrix<double> c = testing::random_matrix<double>(1, 7, 3);  // f = c . softmax(logit)
  const Matrix<double> prob = softmax_of(logit);
  Matrix<double> gradient = c;
  softmax_backward(prob.data(), prob.size(), gradient.data());
  const auto f = [&] { return softmax_of(logit).cwiseProduct(c).sum(); };
  EXPECT_LT(testing::gradient_error(f, logit, gradient), 1e-9);
}

TEST(SoftmaxBackward, IsExactlyZeroWhereTheProbabilityIs) {
  const Matrix<double> prob = row<double>({0.25, 0.0, 0.75});
  Matrix<double> gradient = row<double>({3.0, 5.0, 1.0});
  softmax_backward(prob.data(), 3, gradient.data());
  // mean = 0.25 * 3 + 0.75 * 1 = 1.5
  EXPECT_TRUE(testing::same_bits(gradient, row<double>({0.375, 0.0, -0.375})));
}

}  // namespace
}  // namespace moe::kernels
