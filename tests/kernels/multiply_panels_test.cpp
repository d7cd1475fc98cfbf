// SPDX-License-Identifier: Apache-2.0
// The product with packed weights in every storage: right for every remainder, the same bits for
// each of its parts and for any number of rows, and nothing touched outside.
#include "moe/kernels/multiply_panels.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "moe/detail/part.hpp"
#include "moe/storage.hpp"
#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/product_sizes.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels::multiply_panels_test {
namespace {

using testing::depths;
using testing::max_rows;
using testing::random_matrix;
using testing::row_counts;
using testing::same_bits;
using testing::widths;

template <class S>
using InputOf = typename PackedMatrix<S>::Input;
template <class S>
using WeightOf = typename PackedMatrix<S>::Weight;
template <class S>
constexpr Index block_depth = RegisterTile<InputOf<S>, WeightOf<S>>::depth;

/// x (rows, packed depth) of values that S holds, zero behind the width, as a product needs it.
template <class S>
Matrix<InputOf<S>> random_rows(Index rows, Index width, std::uint64_t seed) {
  Matrix<InputOf<S>> x = Matrix<InputOf<S>>::Zero(rows, RegisterTile<S>::whole_steps(width));
  x.leftCols(width) = random_matrix<S>(rows, width, seed).template cast<InputOf<S>>();
  return x;
}

/// product (rows, outputs of all weights side by side), in the columns that a part of the panels
/// holds. sums (rows, tile cols).
template <class S>
void multiply(ConstMatrixRef<InputOf<S>> x, const PackedMatrix<S>& weight, detail::Part part,
              MatrixRef<Wide<S>> sums, Matrix<Wide<S>>& product) {
  std::vector<const InputOf<S>*> rows;
  for (Index row = 0; row < x.rows(); ++row) {
    rows.push_back(x.data() + row * x.outerStride());
  }
  const testing::Guarded<WeightOf<S>> buffer(Matrix<WeightOf<S>>(1, PackedMatrix<S>::buffer_size),
                                             testing::Flush::back);
  const Index share = weight.share(), outputs = weight.num_outputs();
  multiply_panels<PackedMatrix<S>>(
      rows, weight, part, {sums.data(), buffer.map().data()}, [&](const Finished<Wide<S>>& tile) {
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
Matrix<Wide<S>> product(const Matrix<InputOf<S>>& x, const PackedMatrix<S>& weight,
                        detail::Part part = {}) {
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
::testing::AssertionResult is_near_product(const Matrix<Wide<S>>& got, const Matrix<InputOf<S>>& x,
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
class MultiplyPanels : public ::testing::Test {};
using Storages = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(MultiplyPanels, Storages);

// Products of the greatest size are held against sums in double; every smaller one, of one weight
// or of two side by side, must then have the bits of its part.
TYPED_TEST(MultiplyPanels, GivesTheRightProductWithTheSameBitsForEveryRemainder) {
  using S = TypeParam;
  const Index cols = PackedMatrix<S>::cols, outputs = 2 * cols + 1;
  const std::vector<Index> some = {1, cols / 2 + 1, outputs};  // for long k, which take longer
  for (const Index depth : depths<WeightOf<S>>()) {
    const Matrix<InputOf<S>> x = random_rows<S>(max_rows, depth, 1);
    const Matrix<S> w = random_matrix<S>(outputs, depth, 2),
                    v = random_matrix<S>(outputs, depth, 3);
    const auto with_w = product<S>(x, {&w}), with_v = product<S>(x, {&v});
    ASSERT_TRUE(is_near_product<S>(with_w, x, w)) << "K = " << depth;
    ASSERT_TRUE(is_near_product<S>(with_v, x, v)) << "K = " << depth;
    for (const Index few : depth < 100 ? widths<WeightOf<S>>(depth) : some) {
      const Matrix<S> few_w = w.topRows(few), few_v = v.topRows(few);
      const PackedMatrix<S> one({&few_w}), two({&few_w, &few_v});
      for (const Index rows : row_counts(depth)) {
        const Matrix<InputOf<S>> few_x = x.topRows(rows);
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

TYPED_TEST(MultiplyPanels, FinishesThePanelsOfAPartAndNoOther) {
  using S = TypeParam;
  using W = Wide<S>;
  const Index cols = PackedMatrix<S>::cols, outputs = 4 * cols + 1;
  for (const Index depth : {Index(19), block_depth<S> + 1}) {
    const Matrix<S> w = random_matrix<S>(outputs, depth, 4);
    const Matrix<InputOf<S>> x = random_rows<S>(max_rows, depth, 5);
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

TYPED_TEST(MultiplyPanels, TouchesNoMemoryOutsideItsRowsAndSums) {
  using S = TypeParam;
  using W = Wide<S>;
  const Index cols = PackedMatrix<S>::cols;
  for (const Index depth : {Index(1), Index(33), block_depth<S> + 1}) {
    const Matrix<S> w = random_matrix<S>(cols + 1, depth, 6);
    const PackedMatrix<S> packed({&w});
    for (const Index rows : {1, 6, 7, 13}) {
      const Matrix<InputOf<S>> x = random_rows<S>(rows, depth, 7);
      const Matrix<W> want = product(x, packed);
      for (const testing::Flush flush : {testing::Flush::front, testing::Flush::back}) {
        testing::Guarded<InputOf<S>> guarded_x(x, flush);
        testing::Guarded<W> sums(Matrix<W>::Zero(rows, cols), flush);
        Matrix<W> got(rows, cols + 1);
        multiply<S>(guarded_x.map(), packed, detail::Part{}, sums.map(), got);
        ASSERT_TRUE(same_bits(got, want)) << rows << " rows, K = " << depth;
      }
    }
  }
}

// More rows than any storage asks for before it decodes a panel for them.
TYPED_TEST(MultiplyPanels, GivesARowTheSameBitsAloneAndAmongSoManyThatPanelsAreDecodedForThem) {
  using S = TypeParam;
  const Index many = 270, cols = PackedMatrix<S>::cols;
  for (const Index depth : {Index(1), Index(45), block_depth<S> + 3}) {
    const Matrix<S> w = random_matrix<S>(cols + 3, depth, 10);
    const PackedMatrix<S> packed({&w});
    const Matrix<InputOf<S>> x = random_rows<S>(many, depth, 11);
    const Matrix<Wide<S>> all = product(x, packed);
    ASSERT_TRUE(is_near_product<S>(all, x, w)) << "K = " << depth;
    for (const Index rows : {1, 2, 15, 16, 17, 255, 256, 257}) {
      const Matrix<InputOf<S>> few_x = x.topRows(rows);
      ASSERT_TRUE(same_bits(product(few_x, packed), all.topRows(rows)))
          << rows << " rows, K = " << depth;
    }
  }
}

}  // namespace
}  // namespace moe::kernels::multiply_panels_test
