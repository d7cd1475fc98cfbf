// SPDX-License-Identifier: Apache-2.0
// Views with strides in both directions, and the copy of rows.
#include "moe/kernels/view.hpp"

#include <gtest/gtest.h>

#include "../support/random_matrix.hpp"

namespace moe::kernels::view_test {
namespace {

using testing::random_matrix;

template <class T>
T at(View<T> v, Index row, Index col) {
  return v.data[row * v.row_stride + col * v.col_stride];
}

TEST(View, ReadsABlockAndItsTransposeInPlace) {
  const auto m = random_matrix<float>(5, 7, 1);
  const View<float> block = view(m).block(1, 2, 3, 4);
  EXPECT_EQ(block.rows, 3);
  EXPECT_EQ(block.cols, 4);
  const View<float> turned = block.transpose();
  EXPECT_EQ(turned.rows, 4);
  EXPECT_EQ(turned.cols, 3);
  const View<float> inner = turned.block(1, 1, 3, 2);
  for (Index row = 0; row < 3; ++row) {
    for (Index col = 0; col < 4; ++col) {
      EXPECT_EQ(&block.data[row * block.row_stride + col], &m(1 + row, 2 + col));
      EXPECT_EQ(at(turned, col, row), m(1 + row, 2 + col));
    }
  }
  EXPECT_EQ(at(inner, 0, 0), m(2, 3));
  EXPECT_EQ(at(inner, 2, 1), m(3, 5));
}

TEST(View, OfPartOfAMatrixHasTheStrideOfTheWhole) {
  const auto m = random_matrix<double>(4, 6, 2);
  const View<double> v = view(m.block(1, 2, 2, 3));
  EXPECT_EQ(v.row_stride, 6);
  EXPECT_EQ(at(v, 1, 2), m(2, 4));
}

TEST(CopyRows, RoundsEachElementOnceAndLeavesTheGapsAlone) {
  for (const Index cols : {0, 1, 7, 16, 33}) {
    const auto from = random_matrix<float>(3, cols + 2, 3);
    const Index stride = cols + 5;
    std::vector<bf16> to(static_cast<std::size_t>(3 * stride), bf16(9.0f));
    copy_rows(view(from).block(0, 1, 3, cols), to.data(), stride);
    for (Index row = 0; row < 3; ++row) {
      for (Index col = 0; col < stride; ++col) {
        const bf16 want = col < cols ? bf16(from(row, 1 + col)) : bf16(9.0f);
        ASSERT_EQ(to[static_cast<std::size_t>(row * stride + col)].value, want.value)
            << row << ", " << col << " of " << cols;
      }
    }
  }
}

TEST(CopyRows, WidensExactly) {
  const Matrix<bf16> from = random_matrix<float>(2, 19, 4).cast<bf16>();
  Matrix<float> to(2, 19);
  copy_rows(view(from), to.data(), 19);
  EXPECT_EQ(to, from.cast<float>());
}

}  // namespace
}  // namespace moe::kernels::view_test
