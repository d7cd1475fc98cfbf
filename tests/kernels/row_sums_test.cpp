// SPDX-License-Identifier: Apache-2.0
// Tests of the sums of whole rows: scaling, combining, adding and the dot product.
#include "moe/kernels/row_sums.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels::row_sums_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class T>
Matrix<T> combined(const Matrix<T>& rows, const std::vector<Index>& slot,
                   const std::vector<Wide<T>>& weight, const T* base = nullptr) {
  Matrix<T> y = Matrix<T>::Constant(1, rows.cols(), Eigen::NumTraits<T>::quiet_NaN());
  combine_row<T>(rows, std::span<const Index>(slot), weight.empty() ? nullptr : weight.data(), base,
                 y.data());
  return y;
}

template <class T>
class RowSums : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RowSums, Scalars);

TYPED_TEST(RowSums, ScaleRowMultipliesEachElement) {
  using T = TypeParam;
  Matrix<T> row(1, 3), want(1, 3);
  row << 1, -2, 4;
  want << T(0.5), -1, 2;
  scale_row<T>(T(0.5), 3, row.data());
  EXPECT_TRUE(same_bits(row, want));
}

TYPED_TEST(RowSums, MixRowsIsCombineRowOfRowsInAnyOrder) {
  using T = TypeParam;
  const Matrix<T> weight = random_matrix<T>(1, 4, 1);
  const std::vector<ExpertId> chosen = {2, 0, none, 2};
  for (const Index size : {1, 7, 512, 1030}) {
    const Matrix<T> rows = random_matrix<T>(3, size, 2), base = random_matrix<T>(2, size, 3);
    const Matrix<double> w = weight.template cast<double>(), r = rows.template cast<double>();
    const Matrix<double> sum = (w(0, 0) + w(0, 3)) * r.row(2) + w(0, 1) * r.row(0);
    for (const int bases : {0, 1, 2}) {
      Matrix<double> want = sum;
      for (int i = 0; i < bases; ++i) {
        want += base.row(i).template cast<double>();
      }
      const BaseRows<T> under(bases > 0 ? &base(0, 0) : nullptr, bases > 1 ? &base(1, 0) : nullptr);
      Matrix<T> got = Matrix<T>::Constant(1, size, Eigen::NumTraits<T>::quiet_NaN());
      mix_rows<T, ExpertId, T>(rows, chosen, weight.data(), under, got.data());
      EXPECT_TRUE(testing::matrix_near(got.template cast<double>(), want,
                                       8 * double(std::numeric_limits<T>::epsilon())));
      for (Index col = 0; col < size; col += 5) {
        Matrix<T> alone(1, 1);
        const BaseRows<T> one(bases > 0 ? &base(0, col) : nullptr,
                              bases > 1 ? &base(1, col) : nullptr);
        mix_rows<T, ExpertId, T>(rows.col(col), chosen, weight.data(), one, alone.data());
        EXPECT_TRUE(same_bits(alone, Matrix<T>(got.col(col)))) << size << " columns";
      }
    }
  }
}

TYPED_TEST(RowSums, AddRowsAddsWeightedRowsWithTheSameBitsForEachColumnAlone) {
  using T = TypeParam;
  const Matrix<T> weight = random_matrix<T>(1, 5, 1), ones = Matrix<T>::Ones(1, 5);
  for (Index size = 1; size <= 2 * Lanes<T>::size + 1; ++size) {
    const Matrix<T> rows = random_matrix<T>(5, size, 2), start = random_matrix<T>(1, size, 3);
    for (const bool weighted : {false, true}) {
      const T* weights = weighted ? weight.data() : nullptr;
      Matrix<T> got = start;
      add_rows<T>(rows, weights, got.data());
      const Matrix<double> want =
          start.template cast<double>() +
          (weighted ? weight : ones).template cast<double>() * rows.template cast<double>();
      EXPECT_TRUE(testing::matrix_near(got.template cast<double>(), want,
                                       8 * double(std::numeric_limits<T>::epsilon())));
      for (Index col = 0; col < size; ++col) {
        Matrix<T> alone = start.col(col);
        add_rows<T>(rows.col(col), weights, alone.data());
        EXPECT_TRUE(same_bits(alone, Matrix<T>(got.col(col)))) << size << " columns";
      }
    }
  }
}

TYPED_TEST(RowSums, CombineRowAddsWeightedRows) {
  using T = TypeParam;
  Matrix<T> rows(3, 2), want(1, 2);
  rows << 1, 2, 10, 20, 100, 200;
  want << 2 * 100 + 3 * 1, 2 * 200 + 3 * 2;
  EXPECT_TRUE(same_bits(combined<T>(rows, {2, 0}, {3, 7, 2}), want));
  want << 101, 202;
  EXPECT_TRUE(same_bits(combined<T>(rows, {2, 0}, {}), want)) << "no weights are ones";
}

TYPED_TEST(RowSums, CombineRowReadsNoRowButThoseOfItsSlots) {
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  Matrix<T> rows(3, 2), want(1, 2);
  rows << nan, nan, 3, 4, nan, nan;
  want << 6, 8;
  EXPECT_TRUE(same_bits(combined<T>(rows, {1}, {nan, 2, nan}), want));
  EXPECT_TRUE(same_bits(combined<T>(rows, {}, {1, 1, 1}), Matrix<T>::Zero(1, 2)));
}

TYPED_TEST(RowSums, CombineRowAddsTheBaseLastAndInPlace) {
  using T = TypeParam;
  Matrix<T> rows(2, 1), base(1, 1);
  const T half_ulp = std::numeric_limits<T>::epsilon() / 2;
  rows << half_ulp, half_ulp;
  base << 1;  // base first would lose both halves
  combine_row<T>(rows, std::vector<Index>{0, 1}, nullptr, base.data(), base.data());
  EXPECT_EQ(base(0, 0), T(1) + 2 * half_ulp);
}

TYPED_TEST(RowSums, CombineRowIsRightForEveryWidth) {
  using T = TypeParam;
  for (Index cols = 0; cols <= 70; ++cols) {
    const Matrix<T> rows = random_matrix<T>(5, cols, 1), base = random_matrix<T>(1, cols, 2);
    const Matrix<double> r = rows.template cast<double>();
    const Matrix<double> want = base.template cast<double>() + 0.25 * r.row(4) - 2.0 * r.row(1);
    const auto got = combined<T>(rows, {4, 1}, {T(9), T(-2), T(9), T(9), T(0.25)}, base.data());
    EXPECT_TRUE(testing::matrix_near(got, want, 4 * std::numeric_limits<T>::epsilon())) << cols;
  }
}

TYPED_TEST(RowSums, CombineRowGivesAnElementTheSameBitsInEveryColumn) {
  using T = TypeParam;
  const Matrix<T> rows = random_matrix<T>(3, 80, 3), base = random_matrix<T>(1, 80, 4);
  const std::vector<Index> slot{2, 0, 1};
  const std::vector<T> weight{T(0.3), T(0.1), T(-0.7)};
  const Matrix<T> whole = combined<T>(rows, slot, weight, base.data());
  for (Index begin = 0; begin < 17; ++begin) {
    for (Index cols = 1; cols + begin <= 80; ++cols) {
      const Matrix<T> part = rows.middleCols(begin, cols);
      const Matrix<T> got = combined<T>(part, slot, weight, base.data() + begin);
      ASSERT_TRUE(same_bits(got, Matrix<T>(whole.middleCols(begin, cols)))) << begin << ' ' << cols;
    }
  }
}

TYPED_TEST(RowSums, TouchesNothingOutsideTheRow) {
  using T = TypeParam;
  for (Index cols = 1; cols <= 40; ++cols) {
    const Matrix<T> row = random_matrix<T>(1, cols, 5);
    for (const auto flush : {testing::Flush::front, testing::Flush::back}) {
      testing::Guarded<T> base(row, flush), y(row, flush);
      combine_row<T>(row, std::vector<Index>{0}, nullptr, base.map().data(), y.map().data());
      EXPECT_TRUE(same_bits(y.map(), Matrix<T>(row + row))) << cols;
      scale_row<T>(T(0.5), cols, y.map().data());
      EXPECT_TRUE(same_bits(y.map(), row)) << cols;
    }
  }
}

TYPED_TEST(RowSums, DotIsRightWithTheSameBitsAtAnyAddressAndReadsNothingOutside) {
  using T = TypeParam;
  for (Index size = 0; size <= 70; ++size) {
    const Matrix<T> a = random_matrix<T>(1, size, 6), b = random_matrix<T>(1, size, 7);
    long double sum = 0, magnitude = 0;
    for (Index i = 0; i < size; ++i) {
      const long double product = static_cast<long double>(a(0, i)) * b(0, i);
      sum += product;
      magnitude += std::abs(product);
    }
    const T got = dot(a.data(), b.data(), size);
    const long double bound =
        magnitude * static_cast<long double>(size + 1) * std::numeric_limits<T>::epsilon();
    ASSERT_LE(std::abs(static_cast<long double>(got) - sum), bound) << size;
    for (const auto flush : {testing::Flush::front, testing::Flush::back}) {
      testing::Guarded<T> ga(a, flush), gb(b, flush);
      ASSERT_EQ(dot(ga.map().data(), gb.map().data(), size), got) << size;
    }
  }
}

TEST(RowSumsOfNarrow, SumsInFloatAndRoundsOnce) {
  using T = Eigen::bfloat16;
  Matrix<T> rows = Matrix<T>::Constant(3, 70, T(1));
  rows.row(0).setConstant(T(256));  // 256 + 1 is 256 in bfloat16
  const Matrix<T> got = combined<T>(rows, {0, 1, 2}, {1.0f, 1.0f, 1.0f});
  EXPECT_TRUE(same_bits(got, Matrix<T>::Constant(1, 70, T(258))));
  EXPECT_EQ(dot(&rows(0, 0), &rows(1, 0), 70), 256.0f * 70.0f);
}

TEST(RowSumsOfNarrow, UsesTheWeightInFloat) {
  using T = Eigen::bfloat16;
  const Matrix<T> rows = Matrix<T>::Constant(2, 1, T(1));
  const float weight = 1.001f;  // 1 in bfloat16
  const Matrix<T> got = combined<T>(rows, {0, 1}, {weight * 128.0f, -128.0f});
  EXPECT_EQ(got(0, 0), T(weight * 128.0f - 128.0f));
}

}  // namespace
}  // namespace moe::kernels::row_sums_test
