// SPDX-License-Identifier: Apache-2.0
// Parameters in another scalar: every tensor, rounded once.
#include "moe/kernels/cast_params.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"

namespace moe::cast_params_test {
namespace {

template <class T>
struct TwoTensors {
  Matrix<T> a, b;

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("a"), p.a...);
    visit(std::string_view("b"), p.b...);
  }
};

TEST(CastParams, HasEveryTensorInTheOtherScalar) {
  const TwoTensors<double> wide{testing::random_matrix<double>(3, 5, 1),
                                testing::random_matrix<double>(1, 4, 2)};
  const auto narrow = cast_params<TwoTensors<float>>(wide);
  EXPECT_TRUE(testing::same_bits(narrow.a, Matrix<float>(wide.a.cast<float>())));
  EXPECT_TRUE(testing::same_bits(narrow.b, Matrix<float>(wide.b.cast<float>())));
}

TEST(CastParams, RoundsOnceFromDoubleToBfloat16) {
  // Next to the middle of 1 and its neighbour. A float would hold the middle, which is a tie.
  const TwoTensors<double> wide{Matrix<double>::Constant(1, 1, 1.0 + 0x1p-8 + 0x1p-40),
                                Matrix<double>::Constant(1, 1, 1.0 + 0x1p-8 - 0x1p-40)};
  const auto narrow = cast_params<TwoTensors<bf16>>(wide);
  EXPECT_EQ(static_cast<float>(narrow.a(0, 0)), 1.0f + 0x1p-7f);
  EXPECT_EQ(static_cast<float>(narrow.b(0, 0)), 1.0f);
}

}  // namespace
}  // namespace moe::cast_params_test
