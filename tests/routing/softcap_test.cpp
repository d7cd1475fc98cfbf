// SPDX-License-Identifier: Apache-2.0
// The cap of logits, by itself: values by hand, the ends of the numbers, and its gradient.
#include "moe/routing/softcap.hpp"

#include <gtest/gtest.h>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"

namespace moe::softcap_test {
namespace {

TEST(Softcap, BendsLogitsIntoItsRangeAndMakesNoNumberOfAnInfiniteOne) {
  const double inf = std::numeric_limits<double>::infinity();
  double logits[] = {0.0, 3.0 * std::log(3.0), -1e9, 1e-12, inf, -inf, std::nan("")};
  cap_logits(6.0, logits, 7);
  EXPECT_EQ(logits[0], 0.0);
  EXPECT_NEAR(logits[1], 3.0, 1e-15) << "tanh(log(3) / 2) is 1/2";
  EXPECT_EQ(logits[2], -6.0);
  EXPECT_NEAR(logits[3], 1e-12, 1e-27);
  EXPECT_TRUE(std::isnan(logits[4]) && std::isnan(logits[5]) && std::isnan(logits[6]));
}

TEST(SoftcapGradient, IsThatOfTheLogitsAndLeavesAMaskedExpert) {
  Matrix<double> logits = testing::random_matrix<double>(1, 5, 1, 3.0);
  const Matrix<double> slope = testing::random_matrix<double>(1, 5, 2);
  const auto capped = [&] {
    Matrix<double> z = logits;
    cap_logits(2.0, z.data(), 5);
    return z;
  };
  Matrix<double> gradient = slope, z = capped();
  cap_logits_backward(2.0, z.data(), nullptr, 5, gradient.data());
  const auto f = [&] { return (capped().array() * slope.array()).sum(); };
  EXPECT_LT(testing::gradient_error(f, logits, gradient), 1e-9);

  const std::uint8_t allowed[] = {1, 0, 1, 1, 1};
  Matrix<double> masked = slope;
  masked(0, 1) = 0.0;
  z(0, 1) = -std::numeric_limits<double>::infinity();
  cap_logits_backward(2.0, z.data(), allowed, 5, masked.data());
  EXPECT_EQ(masked(0, 1), 0.0);
  EXPECT_EQ(masked(0, 4), gradient(0, 4));
}

}  // namespace
}  // namespace moe::softcap_test
