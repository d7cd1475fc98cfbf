// SPDX-License-Identifier: Apache-2.0
// Tests of the rows' way into expert order.
#include "moe/experts/gather.hpp"

#include <gtest/gtest.h>

#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::gather_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class T>
class GatherRows : public ::testing::Test {
 protected:
  // Three experts: two rows, none, four rows.
  const std::vector<Index> offset{0, 2, 2, 6}, token{5, 0, 0, 3, 3, 6};
  const RowGroups groups{offset, token};
  const Matrix<T> x = random_matrix<T>(7, 9, 2);
  GrowingMatrix<T> memory;
};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(GatherRows, Scalars);

TYPED_TEST(GatherRows, TakesTheTokenOfEachRow) {
  const Matrix<TypeParam> rows = gather_rows<TypeParam>({this->x, this->groups}, this->memory, 2);
  ASSERT_EQ(rows.rows(), 6);
  for (Index row = 0; row < 6; ++row) {
    ASSERT_TRUE(same_bits(rows.row(row), this->x.row(this->groups.token_of(row))));
  }
}

TYPED_TEST(GatherRows, MultipliesEachRowByItsWeight) {
  using T = TypeParam;
  const std::vector<Wide<T>> weight{1, 2, -3, 0, Wide<T>(0.3), Wide<T>(1.7)};
  const Matrix<T> rows = gather_rows<T>({this->x, this->groups, weight}, this->memory, 2);
  for (Index row = 0; row < 6; ++row) {
    for (Index col = 0; col < 9; ++col) {
      const auto value = static_cast<Wide<T>>(this->x(this->groups.token_of(row), col));
      ASSERT_EQ(rows(row, col), static_cast<T>(weight[static_cast<std::size_t>(row)] * value));
    }
  }
}

TYPED_TEST(GatherRows, CopiesNothingWhereTheRowsLieInOrder) {
  const RowGroups in_order{this->offset};
  const auto rows = gather_rows<TypeParam>({this->x, in_order}, this->memory, 2);
  EXPECT_EQ(rows.data(), this->x.data());
  EXPECT_EQ(rows.rows(), 6);
  EXPECT_EQ(this->memory.size(), 0);
}

TYPED_TEST(GatherRows, KeepsItsMemoryForFewerRows) {
  gather_rows<TypeParam>({this->x, this->groups}, this->memory, 1);
  const TypeParam* before = this->memory.data();
  const std::vector<Index> one_row{0, 1}, third{2};
  const auto rows = gather_rows<TypeParam>({this->x, {one_row, third}}, this->memory, 1);
  EXPECT_EQ(rows.data(), before);
  EXPECT_TRUE(same_bits(Matrix<TypeParam>(rows), this->x.row(2)));
}

}  // namespace
}  // namespace moe::gather_test
