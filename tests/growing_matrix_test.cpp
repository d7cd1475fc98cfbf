// SPDX-License-Identifier: Apache-2.0
// Tests of the matrix that keeps its memory: it is a matrix for all that reads or writes it, and
// allocates only for more elements than it ever had.
#include "moe/growing_matrix.hpp"

#include <gtest/gtest.h>

#include <type_traits>
#include <utility>

#include "support/count_allocations.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::growing_matrix_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

static_assert(std::is_nothrow_move_constructible_v<GrowingMatrix<float>>);
static_assert(std::is_nothrow_move_assignable_v<GrowingMatrix<float>>);

TEST(GrowingMatrix, HasExactlyTheSizeAskedForAndIsEmptyAtFirst) {
  GrowingMatrix<float> m;
  EXPECT_EQ(m.size(), 0);
  for (const auto& [rows, cols] : {std::pair(3, 4), std::pair(0, 4), std::pair(2, 5)}) {
    m.resize(rows, cols);
    EXPECT_EQ(m.rows(), rows);
    EXPECT_EQ(m.cols(), cols);
    EXPECT_EQ(m.outerStride(), cols);
  }
}

TEST(GrowingMatrix, KeepsItsMemoryForAnyShapeThatFits) {
  GrowingMatrix<float> m(8, 4);
  const float* memory = m.data();
  for (const auto& [rows, cols] :
       {std::pair(8, 4), std::pair(1, 4), std::pair(0, 4), std::pair(4, 8), std::pair(7, 4)}) {
    m.resize(rows, cols);
    EXPECT_EQ(m.data(), memory);
    m = Matrix<float>::Ones(rows, cols);
    EXPECT_EQ(m.data(), memory);
    m.setZero(rows, cols);
    EXPECT_EQ(m.data(), memory);
  }
}

TEST(GrowingMatrix, TakesTheShapeAndTheElementsOfWhatItIsAssigned) {
  GrowingMatrix<double> m(2, 2);
  for (const Index rows : {1, 9, 4, 30}) {  // smaller and larger than before
    const Matrix<double> want = random_matrix<double>(rows, 5, static_cast<std::uint64_t>(rows));
    m = want;
    EXPECT_TRUE(same_bits(m, want));
    m = 2.0 * want.leftCols(3);
    EXPECT_TRUE(same_bits(m, Matrix<double>(2.0 * want.leftCols(3))));
    m = want * want.transpose();
    EXPECT_TRUE(same_bits(m, Matrix<double>(want * want.transpose())));
  }
}

TEST(GrowingMatrix, MayBeAssignedAnExpressionOfItself) {
  const Matrix<double> a = random_matrix<double>(6, 3, 1), b = random_matrix<double>(3, 8, 2);
  GrowingMatrix<double> m = a;
  m = 3.0 * m;
  EXPECT_TRUE(same_bits(m, Matrix<double>(3.0 * a)));
  m = m * b;  // grows
  EXPECT_TRUE(same_bits(m, Matrix<double>(Matrix<double>(3.0 * a) * b)));
  const Matrix<double> before = m;
  m = m.topRows(2);
  EXPECT_TRUE(same_bits(m, before.topRows(2)));
}

TEST(GrowingMatrix, CopiesAreApartAndAMoveTakesTheMemory) {
  const Matrix<float> want = random_matrix<float>(4, 3, 5);
  GrowingMatrix<float> a = want, b = a, c;
  b(0, 0) += 1;
  c = a;
  c(1, 1) += 1;
  EXPECT_TRUE(same_bits(a, want));
  EXPECT_EQ(b(0, 0), want(0, 0) + 1);
  const float* memory = a.data();
  GrowingMatrix<float> d = std::move(a);
  EXPECT_EQ(d.data(), memory);
  b = std::move(d);
  EXPECT_EQ(b.data(), memory);
  EXPECT_TRUE(same_bits(b, want));
  std::swap(b, c);
  EXPECT_EQ(c.data(), memory);
  EXPECT_EQ(b(1, 1), want(1, 1) + 1);
}

TEST(GrowingMatrix, IsSeenThroughRefsWithoutACopy) {
  GrowingMatrix<float> m = random_matrix<float>(5, 4, 6);
  const GrowingMatrix<float>& constant = m;
  static_assert(std::is_same_v<decltype(constant(0, 0)), const float&>);
  static_assert(std::is_same_v<decltype(constant.data()), const float*>);
  EXPECT_EQ(ConstMatrixRef<float>(constant).data(), m.data());
  EXPECT_EQ(ConstMatrixRef<float>(constant.middleRows(1, 2)).data(), m.data() + 4);
  MatrixRef<float> ref = m;
  ref(2, 3) = 7.0f;
  EXPECT_EQ(m(2, 3), 7.0f);
  m.row(2) << 1, 2, 3, 4;
  EXPECT_EQ(ref(2, 3), 4.0f);
}

#if MOE_COUNTS_ALLOCATIONS
TEST(GrowingMatrix, AllocatesOnlyForMoreElementsThanItEverHad) {
  const Matrix<float> large = random_matrix<float>(64, 8, 7);
  GrowingMatrix<float> m;
  EXPECT_EQ(testing::count_allocations([&] { m = large; }), 1);
  EXPECT_EQ(testing::count_allocations([&] {
              for (Index rows = 0; rows <= 64; ++rows) {
                m.resize(rows, 8);
                m = large.topRows(64 - rows);
                m.setConstant(8, rows, 1.0f);
              }
            }),
            0);
}
#endif

}  // namespace
}  // namespace moe::growing_matrix_test
