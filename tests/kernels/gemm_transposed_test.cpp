// SPDX-License-Identifier: Apache-2.0
// Tests of products with an operand that is transposed in memory: x W^T of the forward and dy^T x
// of the backward give the bits of row-major operands, which gemm_test.cpp holds against the
// oracle.
#include "moe/kernels/gemm.hpp"

#include <gtest/gtest.h>

#include "moe/detail/reserve.hpp"
#include "support/guarded.hpp"
#include "support/matrix_near.hpp"
#include "support/multiply.hpp"
#include "support/product_sizes.hpp"
#include "support/random_matrix.hpp"

namespace moe::kernels::gemm_transposed_test {
namespace {

using testing::depths;
using testing::max_rows;
using testing::multiply;
using testing::random_matrix;
using testing::row_counts;
using testing::same_bits;
using testing::widths;

/// A copy with a gap of NaN behind each row: who reads a gap spoils the result.
template <class T>
Matrix<T> with_gaps(const Matrix<T>& m, Index gap) {
  Matrix<T> memory =
      Matrix<T>::Constant(m.rows(), m.cols() + gap, Eigen::NumTraits<T>::quiet_NaN());
  memory.leftCols(m.cols()) = m;
  return memory;
}

template <class T>
Matrix<T> row_major(View<T> m) {
  using Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  return Eigen::Map<const Matrix<T>, 0, Strides>(m.data, m.rows, m.cols,
                                                 Strides(m.row_stride, m.col_stride));
}

/// For many numbers of rows and of columns, the first of them. Every third depth is assigned,
/// the others are added: each remainder meets both, at half the cost.
template <class T>
void expect_the_bits_of_row_major_operands(View<T> a, View<T> b) {
  const Update update = a.cols % 3 == 0 ? Update::assign : Update::add;
  const Matrix<T> plain_a = row_major(a), plain_b = row_major(b);
  const Matrix<T> start = random_matrix<T>(a.rows, b.cols, 1);
  Matrix<T> whole = start;
  multiply<T>(view(plain_a), view(plain_b), whole, update);
  for (const Index cols : widths<T>(a.cols)) {
    for (const Index rows : row_counts(a.cols)) {
      Matrix<T> c = start.topLeftCorner(rows, cols);
      multiply<T>(a.block(0, 0, rows, a.cols), b.block(0, 0, b.rows, cols), c, update);
      ASSERT_TRUE(same_bits(c, whole.topLeftCorner(rows, cols)))
          << rows << " x " << a.cols << " x " << cols;
    }
  }
}

template <class T>
class GemmTransposed : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(GemmTransposed, Scalars);

// A few rows read the weight where it is, more of them pack it.
TYPED_TEST(GemmTransposed, TakesAWeightWithTheSameBitsForEveryRemainder) {
  using T = TypeParam;
  for (const Index depth : depths<T>()) {
    const Matrix<T> x = random_matrix<T>(max_rows, depth, 2);
    const Matrix<T> w = with_gaps(random_matrix<T>(2 * RegisterTile<T>::cols + 1, depth, 3), 3);
    expect_the_bits_of_row_major_operands<T>(view(x), view(w.leftCols(depth)).transpose());
  }
}

// The rows of x are read in place where they are an odd number of cache lines apart, else packed;
// those of bfloat16 are packed always.
TYPED_TEST(GemmTransposed, TakesAGradientWithTheSameBitsForEveryRemainder) {
  using T = TypeParam;
  const Index cols = 2 * RegisterTile<T>::cols + 1, gap = detail::spread_width<T>(cols) - cols;
  for (const Index depth : depths<T>()) {
    const Matrix<T> dy = with_gaps(random_matrix<T>(depth, max_rows, 4), 3);
    const Matrix<T> x = random_matrix<T>(depth, cols, 5);
    for (const bool in_place : {true, false}) {
      const Matrix<T> memory = with_gaps(x, in_place ? gap : gap + RegisterTile<T>::line);
      ASSERT_EQ(readable_in_place(view(memory)), in_place);
      expect_the_bits_of_row_major_operands<T>(view(dy.leftCols(max_rows)).transpose(),
                                               view(memory.leftCols(cols)));
    }
  }
}

// More rows than are packed at a time, and less than a panel left.
TYPED_TEST(GemmTransposed, TakesAGradientOfManyRowsAndTouchesNothingOutside) {
  using T = TypeParam;
  using testing::Flush;
  using testing::Guarded;
  const Index cols = detail::spread_width<T>(2 * RegisterTile<T>::cols + 1);
  for (const Index depth : {Index(1), Index(37), RegisterTile<T>::depth + 5}) {
    const Matrix<T> b = random_matrix<T>(depth, cols, 18);
    ASSERT_TRUE(readable_in_place(view(b)));
    for (const Index rows : {1, 6, 7, 11, 13, 66, 125}) {
      const Matrix<T> a = random_matrix<T>(rows, depth, 19);
      const Matrix<T> start = random_matrix<T>(rows, cols, 20);
      for (const Update update : {Update::assign, Update::add}) {
        Matrix<T> want = start;
        multiply<T>(view(a), view(b), want, update);
        for (const Flush flush : {Flush::front, Flush::back}) {
          Guarded<T> transposed(a.transpose(), flush), gb(b, flush), c(start, flush);
          multiply<T>(view(transposed.map()).transpose(), view(gb.map()), c.map(), update);
          ASSERT_TRUE(same_bits(c.map(), want)) << rows << " x " << depth;
        }
      }
    }
  }
}

}  // namespace
}  // namespace moe::kernels::gemm_transposed_test
