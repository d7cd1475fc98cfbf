// SPDX-License-Identifier: Apache-2.0
// The vocabulary: which scalars a layer may have, what sums are made in, and views of matrices.
#include "moe/types.hpp"

#include <gtest/gtest.h>

#include <complex>
#include <string>
#include <type_traits>

#include "support/counting_scalar.hpp"

namespace moe::types_test {
namespace {

static_assert(Real<float> && Real<double> && Real<long double> && Real<Eigen::half> && Real<bf16>);
static_assert(Real<testing::Counting>, "a scalar of a user's own");
static_assert(!Real<int> && !Real<bool> && !Real<std::complex<float>> && !Real<std::string>);

static_assert(std::is_same_v<Wide<float>, float> && std::is_same_v<Wide<double>, double>);
static_assert(std::is_same_v<Wide<bf16>, float> && std::is_same_v<Wide<Eigen::half>, float>);
static_assert(std::is_same_v<Wide<testing::Counting>, testing::Counting>);

TEST(Types, AMatrixIsRowMajorAndAViewTakesAnyRowStride) {
  Matrix<float> m(2, 3);
  m << 1, 2, 3, 4, 5, 6;
  EXPECT_EQ(m.data()[1], 2.0f);
  MatrixRef<float> right = m.rightCols(2);
  right(1, 0) = 7;
  EXPECT_EQ(m(1, 1), 7.0f);
  const ConstMatrixRef<float> same = m.middleCols(1, 2);
  EXPECT_EQ(same.data(), right.data()) << "nothing is copied";
}

TEST(Types, NoExpertIsNoIndex) { EXPECT_LT(none, 0); }

}  // namespace
}  // namespace moe::types_test
