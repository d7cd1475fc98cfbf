// SPDX-License-Identifier: Apache-2.0
#include "moe/train/schedule.hpp"

#include <gtest/gtest.h>

#include "../support/throws.hpp"

namespace moe::schedule_test {
namespace {

constexpr CosineSchedule run{.warm_up = 10, .total = 110, .floor = 0.05};

TEST(CosineFactor, RisesInALineAndFallsAsHalfACosineToItsFloor) {
  EXPECT_DOUBLE_EQ(cosine_factor(1, run), 0.1);
  EXPECT_DOUBLE_EQ(cosine_factor(10, run), 1.0);
  EXPECT_DOUBLE_EQ(cosine_factor(60, run), 0.05 + 0.95 * 0.5);
  EXPECT_DOUBLE_EQ(cosine_factor(110, run), 0.05);
  EXPECT_DOUBLE_EQ(cosine_factor(500, run), 0.05);
}

TEST(CosineFactor, NeedsNoWarmUp) {
  EXPECT_DOUBLE_EQ(cosine_factor(1, {.total = 1}), 0.0);
  EXPECT_DOUBLE_EQ(cosine_factor(1, {.warm_up = 1, .total = 1}), 1.0);
  EXPECT_DOUBLE_EQ(cosine_factor(1, {.total = 2}), 0.5);
}

TEST(CosineFactor, RefusesStepsAndSettingsOutOfTheirRange) {
  EXPECT_EQ(testing::message_of([] { cosine_factor(0, run); }),
            "cosine_factor: step = 0, expected at least 1");
  EXPECT_EQ(testing::message_of([] { cosine_factor(1, {.warm_up = 3, .total = 2}); }),
            "CosineSchedule: warm_up = 3, expected in [0, total = 2]");
  EXPECT_EQ(testing::message_of([] { cosine_factor(1, {.total = 2, .floor = 2.0}); }),
            "CosineSchedule: floor = 2, expected in [0, 1]");
}

}  // namespace
}  // namespace moe::schedule_test
