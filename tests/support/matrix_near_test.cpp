// SPDX-License-Identifier: Apache-2.0
// Tests of the comparators and of finite differences themselves: what must fail does fail.
#include "support/matrix_near.hpp"

#include <string>

#include "support/finite_difference.hpp"

namespace moe::testing::matrix_near_test {
namespace {

const double inf = std::numeric_limits<double>::infinity();
const double nan = std::numeric_limits<double>::quiet_NaN();

Matrix<double> sample() {
  Matrix<double> m(2, 3);
  m << 1, -2, 3, 4, -5, 6;
  return m;
}

Matrix<double> with(Index row, Index col, double value) {
  Matrix<double> m = sample();
  m(row, col) = value;
  return m;
}

TEST(MatrixNear, AcceptsEqualMatricesAtToleranceZero) {
  EXPECT_TRUE(matrix_near(sample(), sample(), 0.0));
  EXPECT_TRUE(matrix_near(Matrix<double>::Zero(2, 2), Matrix<double>::Zero(2, 2), 0.0));
}

TEST(MatrixNear, MeasuresAgainstTheLargestReference) {
  EXPECT_DOUBLE_EQ(matrix_error(with(0, 0, 1.6), sample()).relative, 0.1);
  EXPECT_TRUE(matrix_near(with(0, 0, 1.5), sample(), 0.1));
  EXPECT_FALSE(matrix_near(with(0, 0, 1.7), sample(), 0.1));
}

TEST(MatrixNear, RejectsNanWhereverItIs) {
  for (Index i = 0; i < 6; ++i) {
    const Matrix<double> m = with(i / 3, i % 3, nan);
    EXPECT_FALSE(matrix_near(m, sample(), inf));
    EXPECT_FALSE(matrix_near(sample(), m, 1e300));
    EXPECT_FALSE(matrix_near(m, m, 1e300));
  }
}

TEST(MatrixNear, RejectsInfinityOnEitherSide) {
  const Matrix<double> m = with(1, 1, inf);
  EXPECT_FALSE(matrix_near(m, sample(), 1e300));
  EXPECT_FALSE(matrix_near(sample(), m, 1e300)) << "an infinite reference would forgive everything";
  EXPECT_FALSE(matrix_near(m, m, 1e300));
}

TEST(MatrixNear, RejectsAnotherShape) {
  EXPECT_FALSE(matrix_near(sample().leftCols(2), sample(), inf));
  EXPECT_FALSE(matrix_near(sample().transpose(), sample(), inf));
  EXPECT_FALSE(matrix_near(Matrix<double>(0, 3), Matrix<double>(0, 2), inf));
}

TEST(MatrixNear, AcceptsEmptyMatricesOfOneShape) {
  EXPECT_TRUE(matrix_near(Matrix<double>(0, 3), Matrix<double>(0, 3), 0.0));
}

TEST(MatrixNear, RejectsAnythingButZeroForZero) {
  const Matrix<double> zero = Matrix<double>::Zero(2, 3);
  EXPECT_FALSE(matrix_near(sample(), zero, 1e300));
}

TEST(MatrixNear, RejectsANanTolerance) { EXPECT_FALSE(matrix_near(sample(), sample(), nan)); }

TEST(MatrixNear, NamesTheWorstElement) {
  Matrix<double> got = with(1, 2, 7.0);
  got(0, 1) = -2.5;
  const std::string message = matrix_near(got, sample(), 0.01).message();
  EXPECT_NE(message.find("(1, 2): got 7, want 6"), std::string::npos) << message;
}

TEST(MatrixNear, ComparesNarrowScalars) {
  EXPECT_TRUE(matrix_near(sample().cast<Eigen::bfloat16>(), sample(), 0.0));
}

TEST(MatrixWithin, HoldsEachElementToItsOwnBound) {
  const Matrix<double> bound = Matrix<double>::Constant(2, 3, 0.5);
  EXPECT_TRUE(matrix_within(with(0, 0, 1.5), sample(), bound));
  EXPECT_FALSE(matrix_within(with(0, 0, 1.6), sample(), bound));
  EXPECT_FALSE(matrix_within(with(0, 0, nan), sample(), bound));
  EXPECT_FALSE(matrix_within(with(0, 0, inf), sample(), bound * inf));
  EXPECT_FALSE(matrix_within(sample(), sample(), bound * nan));
  EXPECT_FALSE(matrix_within(sample(), sample(), bound.leftCols(2)));
  EXPECT_FALSE(matrix_within(sample().topRows(1), sample(), bound));
}

TEST(SameBits, TellsWhatEqualityDoesNot) {
  EXPECT_TRUE(same_bits(with(0, 0, nan), with(0, 0, nan)));
  EXPECT_FALSE(same_bits(with(0, 0, 0.0), with(0, 0, -0.0)));
  EXPECT_FALSE(same_bits(with(0, 0, std::nextafter(1.0, 2.0)), sample()));
  EXPECT_FALSE(same_bits(sample().topRows(1), sample()));
}

TEST(FiniteDifference, FindsTheGradientOfASmoothFunction) {
  Matrix<double> x = sample();
  const auto f = [&] { return (x.array().sin() * 3.0).sum() + x.squaredNorm(); };
  const Matrix<double> gradient = 3.0 * x.array().cos().matrix() + 2.0 * x;
  EXPECT_LT(gradient_error(f, x, gradient), 1e-10);
  EXPECT_TRUE(same_bits(x, sample())) << "the parameter must come back as it was";
}

TEST(FiniteDifference, FindsOneWrongElement) {
  Matrix<double> x = sample();
  Matrix<double> gradient = 2.0 * x;
  gradient(1, 0) *= 1.0 + 1e-6;
  EXPECT_GT(gradient_error([&] { return x.squaredNorm(); }, x, gradient), 5e-7);
}

TEST(FiniteDifference, RejectsNanAndOtherShapes) {
  Matrix<double> x = sample();
  const auto f = [&] { return x.squaredNorm(); };
  EXPECT_EQ(gradient_error(f, x, with(0, 1, nan)), inf);
  EXPECT_EQ(gradient_error([&] { return nan; }, x, sample()), inf);
  EXPECT_EQ(gradient_error(f, x, Matrix<double>(3, 2)), inf);
}

}  // namespace
}  // namespace moe::testing::matrix_near_test
