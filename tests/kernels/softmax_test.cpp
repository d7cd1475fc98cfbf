// SPDX-License-Identifier: Apache-2.0
// Tests of softmax, sigmoid and log-sum-exp of rows: known values, extreme values, NaN, rows of
// every size against plain sums in double, the same bits wherever a row stands, and the gradients.
#include "moe/kernels/softmax.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "support/finite_difference.hpp"
#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels::softmax_test {
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

/// Every tail of a vector, and a long row.
std::vector<Index> sizes() {
  std::vector<Index> all{4096};
  for (Index size = 1; size <= 70; ++size) {
    all.push_back(size);
  }
  return all;
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
  for (Index size = 1; size <= 40; ++size) {
    for (Index at = 0; at < size; ++at) {
      for (const T bad : {this->nan, this->inf}) {
        Matrix<T> logit = testing::random_matrix<T>(1, size, 1);
        logit(0, at) = bad;
        ASSERT_TRUE(softmax_of(logit).array().isNaN().all()) << at << " of " << size;
      }
    }
  }
  EXPECT_TRUE(softmax_of(row<T>({-this->inf, -this->inf})).array().isNaN().all());
}

TYPED_TEST(Softmax, AgreesWithPlainSumsForEverySize) {
  using T = TypeParam;
  for (const Index size : sizes()) {
    const Matrix<T> logit = testing::random_matrix<T>(1, size, 4, 2.0);
    const Matrix<T> dprob = testing::random_matrix<T>(1, size, 5);
    const Matrix<double> e =
        (logit.template cast<double>().array() - static_cast<double>(logit.maxCoeff())).exp();
    const Matrix<double> want = e / e.sum();
    const Matrix<T> prob = softmax_of(logit);
    EXPECT_TRUE(testing::matrix_near(prob, want, 4 * this->tolerance)) << size;

    const double max = static_cast<double>(logit.maxCoeff());
    EXPECT_NEAR(static_cast<double>(log_sum_exp(logit.data(), size)), max + std::log(e.sum()),
                10 * this->tolerance);

    Matrix<T> gradient = dprob;
    softmax_backward(prob.data(), size, gradient.data());
    const Matrix<double> p = prob.template cast<double>(), g = dprob.template cast<double>();
    const Matrix<double> dlogit = p.array() * (g.array() - p.cwiseProduct(g).sum());
    const Matrix<double> magnitude =
        p.array() * (g.array().abs() + p.cwiseProduct(g.cwiseAbs()).sum());
    EXPECT_TRUE(testing::matrix_within(gradient, dlogit, this->tolerance * magnitude)) << size;
  }
}

TYPED_TEST(Softmax, HasTheSameBitsWhereverTheRowStands) {
  using T = TypeParam;
  for (const Index size : sizes()) {
    const Matrix<T> logit = testing::random_matrix<T>(1, size, 6);
    const Matrix<T> dprob = testing::random_matrix<T>(1, size, 7);
    const Matrix<T> prob = softmax_of(logit);
    Matrix<T> gradient = dprob;
    softmax_backward(prob.data(), size, gradient.data());
    for (Index shift = 1; shift < 16; ++shift) {
      const Index other = 16 - shift;
      Matrix<T> from(1, size + 16), to = from;
      from.middleCols(shift, size) = logit;
      softmax(from.data() + shift, size, to.data() + other);
      const Matrix<T> moved = to.middleCols(other, size);
      ASSERT_TRUE(testing::same_bits(moved, prob)) << size << " at " << shift;
      from.middleCols(other, size) = dprob;
      softmax_backward(to.data() + other, size, from.data() + other);
      const Matrix<T> moved_gradient = from.middleCols(other, size);
      ASSERT_TRUE(testing::same_bits(moved_gradient, gradient)) << size << " at " << other;
      from.middleCols(shift, size) = logit;
      ASSERT_EQ(log_sum_exp(from.data() + shift, size), log_sum_exp(logit.data(), size));
    }
  }
}

TYPED_TEST(Softmax, IsNotChangedByMinusInfinityAtTheEnd) {
  using T = TypeParam;
  for (const Index size : {1, 3, 8, 15, 16, 17, 64, 100}) {
    const Matrix<T> logit = testing::random_matrix<T>(1, size, 8);
    for (Index more = 1; more < 40; ++more) {
      Matrix<T> longer = Matrix<T>::Constant(1, size + more, -this->inf), want = longer;
      longer.leftCols(size) = logit;
      want << softmax_of(logit), Matrix<T>::Zero(1, more);
      ASSERT_TRUE(testing::same_bits(softmax_of(longer), want)) << size << " and " << more;
      ASSERT_EQ(log_sum_exp(longer.data(), size + more), log_sum_exp(logit.data(), size));
    }
  }
}

TYPED_TEST(Softmax, TouchesNothingOutsideTheRow) {
  using T = TypeParam;
  for (Index size = 1; size <= 40; ++size) {
    const Matrix<T> logit = testing::random_matrix<T>(1, size, 9);
    for (const auto flush : {testing::Flush::front, testing::Flush::back}) {
      testing::Guarded<T> from(logit, flush), to(logit, flush);
      softmax(from.map().data(), size, to.map().data());
      EXPECT_TRUE(testing::same_bits(to.map(), softmax_of(logit))) << size;
      softmax_backward(from.map().data(), size, to.map().data());
      sigmoid(from.map().data(), size, to.map().data());
      sigmoid_backward(from.map().data(), size, to.map().data());
      EXPECT_FALSE(std::isnan(log_sum_exp(from.map().data(), size)));
    }
  }
}

TYPED_TEST(Softmax, RowMaxFindsTheLargest) {
  using T = TypeParam;
  const auto max = [](const Matrix<T>& m) { return row_max(m.data(), m.size()); };
  EXPECT_EQ(max(row<T>({-this->inf, -this->inf})), -this->inf);
  EXPECT_EQ(max(Matrix<T>(1, 0)), -this->inf);
  for (Index size = 1; size <= 40; ++size) {
    for (Index at = 0; at < size; ++at) {
      Matrix<T> m = Matrix<T>::Constant(1, size, T(-3));  // a padded tail must not show as 0
      m(0, at) = T(-1);
      ASSERT_EQ(max(m), T(-1)) << at << " of " << size;
    }
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
  EXPECT_EQ(lse(row<T>({-this->inf, -this->inf})), -std::numeric_limits<double>::infinity());
  for (Index at = 0; at < 20; ++at) {
    Matrix<T> m = Matrix<T>::Constant(1, 20, -this->inf);
    m(0, at) = this->nan;
    EXPECT_TRUE(std::isnan(lse(m))) << at;
  }
}

TYPED_TEST(Softmax, SigmoidOfARowIsThatOfEachElement) {
  using T = TypeParam;
  for (const Index size : sizes()) {
    Matrix<T> prob = testing::random_matrix<T>(1, size, 10, 3.0);
    const Matrix<double> logit = prob.template cast<double>();
    const Matrix<double> want = 1.0 / (1.0 + (-logit.array()).exp());
    sigmoid(prob.data(), size, prob.data());
    EXPECT_TRUE(testing::matrix_near(prob, want, this->tolerance)) << size;

    Matrix<T> gradient = testing::random_matrix<T>(1, size, 11);
    const Matrix<double> dlogit =
        gradient.template cast<double>().array() * want.array() * (1.0 - want.array());
    sigmoid_backward(prob.data(), size, gradient.data());
    EXPECT_TRUE(testing::matrix_near(gradient, dlogit, 4 * this->tolerance)) << size;
  }
  Matrix<T> ends = row<T>({-this->inf, this->inf, this->nan, 0.0});
  sigmoid(ends.data(), 4, ends.data());
  EXPECT_EQ(ends(0, 0), T(0));
  EXPECT_EQ(ends(0, 1), T(1));
  EXPECT_TRUE(std::isnan(ends(0, 2)));
  EXPECT_EQ(ends(0, 3), T(0.5));
}

TEST(SoftmaxOfScalarsWithoutLanes, IsInPlainLoops) {
  using T = long double;
  const T log2 = std::log(T(2)), inf = std::numeric_limits<T>::infinity();
  Matrix<T> row(1, 4), gradient(1, 4);
  row << 0, log2, -inf, log2;
  EXPECT_NEAR(static_cast<double>(log_sum_exp(row.data(), 4)), std::log(5.0), 1e-15);
  softmax(row.data(), 4, row.data());
  EXPECT_NEAR(static_cast<double>(row(0, 0)), 0.2, 1e-15);
  EXPECT_NEAR(static_cast<double>(row(0, 3)), 0.4, 1e-15);
  EXPECT_EQ(row(0, 2), T(0));
  gradient << 5, 0, 7, 0;  // mean = 0.2 * 5 = 1
  softmax_backward(row.data(), 4, gradient.data());
  EXPECT_NEAR(static_cast<double>(gradient(0, 0)), 0.8, 1e-15);
  EXPECT_NEAR(static_cast<double>(gradient(0, 1)), -0.4, 1e-15);
  EXPECT_EQ(gradient(0, 2), T(0));
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
}  // namespace moe::kernels::softmax_test
