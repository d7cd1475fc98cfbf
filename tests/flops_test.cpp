// SPDX-License-Identifier: Apache-2.0
// Tests of the sum of FLOPs. That parts perform those that they state: cost/.
#include "moe/flops.hpp"

#include <gtest/gtest.h>

namespace moe::flops_test {
namespace {

TEST(Flops, AddUp) {
  const Flops sum = Flops{1, 2} + 3 * Flops{10, 100};
  EXPECT_EQ(sum.matmul, 31);
  EXPECT_EQ(sum.other, 302);
  EXPECT_EQ(sum.total(), 333);
  EXPECT_EQ(detail::flops_of_one(5, 7).total(), 12);
}

TEST(Flops, OfMoreThanAnIntegerHoldsAreThoseOfADouble) {
  const Flops all = Index{14'800'000'000'000} * Flops{5e10, 1e9};
  EXPECT_NEAR(all.total() / (14.8e12 * 5.1e10), 1.0, 1e-15);
}

}  // namespace
}  // namespace moe::flops_test
