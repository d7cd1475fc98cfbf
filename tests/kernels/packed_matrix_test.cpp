// SPDX-License-Identifier: Apache-2.0
// Tests of packed weights: products right for every remainder and the same bits for each of their
// parts, nothing touched outside, and the weights as they were stored.
#include "moe/kernels/packed_matrix.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "moe/detail/part.hpp"
#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/product_sizes.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels {
namespace {

using testing::depths;
using testing::max_rows;
using testing::random_matrix;
using testing::same_bits;
using testing::widths;

/// x (rows, packed depth), zero behind the width, as a product needs it.
template <class S>
Matrix<S> random_rows(Index rows, Index width, std::uint64_t seed) {
  const Index step = PackedMatrix<S>::step;
  Matrix<S> x = Matrix<S>::Zero(rows, (width + step - 1) / step * step);
  x.leftCols(width) = random_matrix<S>(rows, width, seed);
  return x;
}

/// product (rows, outputs of all weights side by side), in the columns that a part of the panels
/// holds. sums (rows, tile cols).
template <class S>
void multiply(ConstMatrixRef<S> x, const PackedMatrix<S>& weight, detail::Part part,
              MatrixRef<Wide<S>> sums, Matrix<Wide<S>>& product) {
  std::vector<const S*> rows;
  for (Index row = 0; row < x.rows(); ++row) {
    rows.push_back(x.data() + row * x.outerStride());
  }
  const Index panels = weight.num_panels(), share = weight.share(), outputs = weight.num_outputs();
  multiply_panels<S>(
      rows, weight, part.begin(panels), part.end(panels), sums.data(),
      [&](const Finished<S>& tile) {
        const Eigen::Map<const Matrix<Wide<S>>> of_all(tile.sums, tile.count, weight.cols);
        const Index begin = tile.panel * share, size = std::min(share, outputs - begin);
        for (Index number = 0; number < weight.cols / share; ++number) {
          product.block(tile.row, number * outputs + begin, tile.count, size) =
              of_all.middleCols(number * share, size);
        }
      });
}

/// NaN where nothing was written.
template <class S>
Matrix<Wide<S>> product(const Matrix<S>& x, const PackedMatrix<S>& weight, detail::Part part = {}) {
  using W = Wide<S>;
  Matrix<W> sums(x.rows(), weight.cols);
  Matrix<W> result =
      Matrix<W>::Constant(x.rows(), weight.cols / weight.share() * weight.num_outputs(),
                          std::numeric_limits<W>::quiet_NaN());
  multiply<S>(x, weight, part, sums, result);
  return result;
}

/// |got - x w^T| <= 2 (K + 2) eps sum |x w|: both sums round each product and each addition.
template <class S>
::testing::AssertionResult is_near_product(const Matrix<Wide<S>>& got, const Matrix<S>& x,
                                           const Matrix<S>& w) {
  const Matrix<double> wide_x = x.leftCols(w.cols()).template cast<double>();
  const Matrix<double> wide_w = w.template cast<double>();
  const Matrix<double> want = wide_x.lazyProduct(wide_w.transpose());
  const double rounding = static_cast<double>(std::numeric_limits<Wide<S>>::epsilon()) *
                          static_cast<double>(w.cols() + 2);
  const Matrix<double> bound =
      2.0 * rounding * wide_x.cwiseAbs().lazyProduct(wide_w.cwiseAbs().transpose());
  return testing::matrix_within(got, want, bound);
}

template <class S>
class PackedMatrixOf : public ::testing::Test {};
using Storages = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(PackedMatrixOf, Storages);

// Products of the greatest size are held against sums in double; every smaller one, of one weight
// or of two side by side, must then have the bits of its part.
TYPED_TEST(PackedMatrixOf, GivesTheRightProductWithTheSameBitsForEveryRemainder) {
  using S = TypeParam;
  const Index cols = PackedMatrix<S>::cols, outputs = 2 * cols + 1;
  const std::vector<Index> some = {1, cols / 2 + 1, outputs};  // for long k, which take longer
  for (const Index depth : depths<S>()) {
    const Matrix<S> x = random_rows<S>(max_rows, depth, 1);
    const Matrix<S> w = random_matrix<S>(outputs, depth, 2),
                    v = random_matrix<S>(outputs, depth, 3);
    const auto with_w = product<S>(x, {&w}), with_v = product<S>(x, {&v});
    ASSERT_TRUE(is_near_product(with_w, x, w)) << "K = " << depth;
    ASSERT_TRUE(is_near_product(with_v, x, v)) << "K = " << depth;
    for (const Index few : depth < 100 ? widths<S>(depth) : some) {
      const Matrix<S> few_w = w.topRows(few), few_v = v.topRows(few);
      const PackedMatrix<S> one({&few_w}), two({&few_w, &few_v});
      for (Index rows = 1; rows <= max_rows; ++rows) {
        const Matrix<S> few_x = x.topRows(rows);
        const auto of_two = product(few_x, two);
        ASSERT_TRUE(same_bits(product(few_x, one), with_w.topLeftCorner(rows, few)))
            << rows << " rows, " << few << " outputs, K = " << depth;
        ASSERT_TRUE(same_bits(of_two.leftCols(few), with_w.topLeftCorner(rows, few)))
            << rows << " rows, twice " << few << " outputs, K = " << depth;
        ASSERT_TRUE(same_bits(of_two.rightCols(few), with_v.topLeftCorner(rows, few)))
            << rows << " rows, twice " << few << " outputs, K = " << depth;
      }
    }
  }
}

TYPED_TEST(PackedMatrixOf, FinishesThePanelsOfAPartAndNoOther) {
  using S = TypeParam;
  using W = Wide<S>;
  const Index cols = PackedMatrix<S>::cols, outputs = 4 * cols + 1;
  for (const Index depth : {Index(19), RegisterTile<S>::depth + 1}) {
    const Matrix<S> w = random_matrix<S>(outputs, depth, 4);
    const Matrix<S> x = random_rows<S>(max_rows, depth, 5);
    const PackedMatrix<S> packed({&w});
    const Matrix<W> whole = product(x, packed);
    for (const Index parts : {2, 3, 5, 7}) {
      for (Index number = 0; number < parts; ++number) {
        const detail::Part part{number, parts};
        const Index begin = part.begin(outputs, cols), end = part.end(outputs, cols);
        Matrix<W> got = product(x, packed, part);
        ASSERT_TRUE(
            same_bits(got.middleCols(begin, end - begin), whole.middleCols(begin, end - begin)))
            << number << " of " << parts;
        got.middleCols(begin, end - begin).setConstant(std::numeric_limits<W>::quiet_NaN());
        ASSERT_TRUE(got.array().isNaN().all()) << number << " of " << parts;
      }
    }
  }
}

TYPED_TEST(PackedMatrixOf, TouchesNoMemoryOutsideItsRowsAndSums) {
  using S = TypeParam;
  using W = Wide<S>;
  const Index cols = PackedMatrix<S>::cols;
  for (const Index depth : {Index(1), Index(33), RegisterTile<S>::depth + 1}) {
    const Matrix<S> w = random_matrix<S>(cols + 1, depth, 6);
    const PackedMatrix<S> packed({&w});
    for (const Index rows : {1, 6, 7, 13}) {
      const Matrix<S> x = random_rows<S>(rows, depth, 7);
      const Matrix<W> want = product(x, packed);
      for (const testing::Flush flush : {testing::Flush::front, testing::Flush::back}) {
        testing::Guarded<S> guarded_x(x, flush);
        testing::Guarded<W> sums(Matrix<W>::Zero(rows, cols), flush);
        Matrix<W> got(rows, cols + 1);
        multiply<S>(guarded_x.map(), packed, detail::Part{}, sums.map(), got);
        ASSERT_TRUE(same_bits(got, want)) << rows << " rows, K = " << depth;
      }
    }
  }
}

TYPED_TEST(PackedMatrixOf, UnpacksToTheWeightsRoundedOnce) {
  using S = TypeParam;
  using W = Wide<S>;
  for (Index depth = 1; depth <= 67; ++depth) {
    for (const Index outputs : widths<S>(depth)) {
      const Matrix<W> w = random_matrix<W>(outputs, depth, 8);
      const Matrix<W> v = random_matrix<W>(outputs, depth, 9);
      const Matrix<W> rounded_w = w.template cast<S>().template cast<W>();
      const Matrix<W> rounded_v = v.template cast<S>().template cast<W>();
      const PackedMatrix<S> one({&w}), two({&w, &v});
      ASSERT_TRUE(same_bits(one.unpack(0), rounded_w)) << outputs << " x " << depth;
      ASSERT_TRUE(same_bits(two.unpack(0), rounded_w)) << outputs << " x " << depth;
      ASSERT_TRUE(same_bits(two.unpack(1), rounded_v)) << outputs << " x " << depth;
    }
  }
}

TYPED_TEST(PackedMatrixOf, FillsItsPanelsUpWithZeros) {
  using S = TypeParam;
  const Matrix<S> w = Matrix<S>::Ones(PackedMatrix<S>::cols + 1, 5);
  const PackedMatrix<S> packed({&w, &w});
  const Index size = packed.num_panels() * packed.depth() * packed.cols;
  EXPECT_EQ(packed.num_panels(), 3);
  EXPECT_EQ(packed.bytes(), static_cast<std::size_t>(size) * sizeof(S));
  const Eigen::Map<const Matrix<S>> panels(packed.panel(0), 1, size);
  EXPECT_EQ((panels.array() == S(1)).count(), 2 * w.size());
  EXPECT_EQ((panels.array() == S(0)).count(), size - 2 * w.size());
}

}  // namespace
}  // namespace moe::kernels
