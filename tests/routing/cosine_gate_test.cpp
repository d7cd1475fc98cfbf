// SPDX-License-Identifier: Apache-2.0
// A gate of cosines: values by hand and of plain loops, gradients, bits.
#include "moe/routing/cosine_gate.hpp"

#include <gtest/gtest.h>

#include "../support/gate_step.hpp"
#include "../support/throws.hpp"
#include "moe/routing/concepts.hpp"

namespace moe::cosine_gate_test {
namespace {

using testing::expect_logits;
using testing::message_of;

constexpr Index N = 3, D = 5, E = 4;

static_assert(TrainableGate<CosineGate<float>, float> && TrainableGate<CosineGate<bf16>, bf16>);

TEST(CosineGate, IsTheCosineOverTheTemperatureWhateverTheLengths) {
  const CosineGate<double> gate(2, 2, {.width = 2, .temperature = 0.25, .bias = false});
  CosineGate<double>::Params params = gate.initial_params(1);
  params.projection.weight << 3.0, 0.0, 0.0, 4.0;
  params.direction << 7.0, 0.0, 0.0, -0.1;
  Matrix<double> x(2, 2);
  x << 1.0, 1.0, 100.0, 100.0;  // projected to the direction (3, 4)
  CosineGate<double>::Table table;
  gate.forward(params, x, {}, table);
  for (Index t = 0; t < 2; ++t) {
    EXPECT_NEAR(table.logits(t, 0), 4.0 * 0.6, 1e-14);
    EXPECT_NEAR(table.logits(t, 1), 4.0 * -0.8, 1e-14);
  }
  params.log_sharpness(0, 0) = 50.0;
  gate.forward(params, x, {}, table);
  EXPECT_NEAR(table.logits(0, 0), 60.0, 1e-12) << "no sharper than 100";
}

TEST(CosineGate, AgreesWithPlainLoops) {
  for (const bool bias : {false, true}) {
    expect_logits(CosineGate<double>(D, E, {.width = 6, .bias = bias}),
                  [](const auto& params, const auto& x) { return reference::logits(params, x); });
  }
}

TEST(CosineGate, HasTheGradientsOfCentralDifferences) {
  for (const bool bias : {false, true}) {
    for (const bool masked : {false, true}) {
      const CosineGate<double> gate(D, E, {.width = 6, .bias = bias});
      EXPECT_LT(testing::gate_gradient_error(gate, masked), 1e-7);
    }
  }
}

TEST(CosineGate, HasTheSameBitsForAnyThreads) {
  testing::expect_gate_has_same_bits_for_any_threads(CosineGate<float>(70, 9, {.width = 24}));
}

TEST(CosineGate, OfATokenOfZerosIsZeroAndNotNaN) {
  const CosineGate<double> gate(D, E, {.width = 6, .bias = false});
  CosineGate<double>::Table table;
  gate.forward(gate.initial_params(1), Matrix<double>::Zero(N, D), {}, table);
  EXPECT_TRUE(table.logits.isZero(0));
}

TEST(CosineGate, ThrowsOnValuesOutOfRangeAndNamesThem) {
  EXPECT_EQ(message_of([] { CosineGate<double>(D, E, {.width = 0}); }),
            "CosineGate: width = 0, expected at least 1");
  EXPECT_EQ(message_of([] { CosineGate<double>(D, E, {.temperature = 0.0}); }),
            "CosineGate: temperature = 0, expected finite and at least 0.01");
}

}  // namespace
}  // namespace moe::cosine_gate_test
