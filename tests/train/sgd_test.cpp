// SPDX-License-Identifier: Apache-2.0
// Momentum by hand.
#include "moe/train/sgd.hpp"

#include <gtest/gtest.h>

#include "../support/throws.hpp"

namespace moe::sgd_test {
namespace {

TEST(Sgd, AddsUpGradientsThatFadeAndTheDecayOfTheWeight) {
  Matrix<double> w(1, 1), g(1, 1);
  w << 2.0;
  Sgd<double> sgd({.momentum = 0.5, .decay = 0.25});
  const auto step = [&](double gradient, double rate) {
    g << gradient;
    sgd.step([&](auto&& visit) { visit("w", w, g); }, {.rate = rate});
    return w(0);
  };
  EXPECT_DOUBLE_EQ(step(1.0, 0.1), 2.0 - 0.1 * 1.5);                      // m = 1 + 0.25 * 2
  EXPECT_DOUBLE_EQ(step(-1.0, 0.2), 1.85 - 0.2 * (0.75 - 1.0 + 0.4625));  // and 0.25 * 1.85
}

TEST(Sgd, RefusesSettingsOutOfTheirRange) {
  EXPECT_EQ(testing::message_of([] { Sgd<float>({.momentum = 1.0}); }),
            "SgdConfig: momentum = 1, expected in [0, 1)");
  EXPECT_EQ(testing::message_of([] { Sgd<float>({.decay = -1.0}); }),
            "SgdConfig: decay = -1, expected finite and at least 0");
}

}  // namespace
}  // namespace moe::sgd_test
