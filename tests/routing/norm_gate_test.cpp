// SPDX-License-Identifier: Apache-2.0
// A gate behind RMSNorm: values by hand and of plain loops, gradients, bits.
#include "moe/routing/norm_gate.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/gate_step.hpp"
#include "../support/throws.hpp"
#include "moe/routing/concepts.hpp"

namespace moe::norm_gate_test {
namespace {

using testing::expect_logits;
using testing::message_of;
using testing::random_matrix;

constexpr Index N = 3, D = 5, E = 4;

static_assert(TrainableGate<NormGate<float>, float> && TrainableGate<NormGate<bf16>, bf16>);

std::vector<InputNormConfig> norms() {
  return {{}, {.scale = false}, {.epsilon = 0.5, .scale = false, .factor = 0.3}, {.factor = 0.25}};
}
const LogitsConfig all_of_it{.input_jitter = 0.2, .bias = true, .softcap = 2.0, .noisy = true};

TEST(NormGate, ProjectsTokensOfUnitMeanSquare) {
  const NormGate<double> gate(2, 2, {}, {.epsilon = 0.0, .factor = 0.5});
  NormGate<double>::Params params;
  params.weight.setIdentity(2, 2);
  params.norm_scale.resize(1, 2);
  params.norm_scale << 2.0, 10.0;
  Matrix<double> x(1, 2);
  x << 1.0, -7.0;  // the mean square is 25
  NormGate<double>::Table table;
  gate.forward(params, x, {}, table);
  EXPECT_NEAR(table.logits(0, 0), 0.2, 1e-15);
  EXPECT_NEAR(table.logits(0, 1), -7.0, 1e-14);
}

TEST(NormGate, AgreesWithPlainLoops) {
  for (const InputNormConfig& norm : norms()) {
    const LogitsConfig config{.bias = true, .softcap = 3.0};
    expect_logits(NormGate<double>(D, E, config, norm), [&](const auto& params, const auto& x) {
      return reference::logits(params, config, norm, x);
    });
  }
}

TEST(NormGate, HasTheGradientsOfCentralDifferences) {
  for (const InputNormConfig& norm : norms()) {
    for (const bool masked : {false, true}) {
      EXPECT_LT(testing::gate_gradient_error(NormGate<double>(D, E, {}, norm), masked), 1e-7);
      const LogitsConfig capped{.bias = true, .softcap = 2.0};
      EXPECT_LT(testing::gate_gradient_error(NormGate<double>(D, E, capped, norm), masked), 1e-7);
      EXPECT_LT(testing::gate_gradient_error(NormGate<double>(D, E, all_of_it, norm), masked),
                1e-7);
    }
  }
}

TEST(NormGate, HasTheSameBitsForAnyThreads) {
  testing::expect_gate_has_same_bits_for_any_threads(NormGate<float>(70, 9, {.bias = true}, {}));
}

TEST(NormGate, SeesNarrowTokensInFloat) {
  const NormGate<bf16> narrow(D, E, {}, {});
  const NormGate<float> wide(D, E, {}, {});
  const Matrix<bf16> x = random_matrix<bf16>(N, D, 3);
  NormGate<bf16>::Table table;
  NormGate<float>::Table wide_table;
  narrow.forward(narrow.initial_params(1), x, {}, table);
  wide.forward(wide.initial_params(1), Matrix<float>(x.cast<float>()), {}, wide_table);
  EXPECT_TRUE(testing::same_bits(table.logits, wide_table.logits));
}

TEST(NormGate, MakesNoNumberOfNaNAndInf) {
  const NormGate<double> gate(D, E, {}, {});
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    Matrix<double> x = random_matrix<double>(N, D, 3);
    x(1, 2) = bad;
    NormGate<double>::Table table;
    gate.forward(gate.initial_params(1), x, {}, table);
    EXPECT_TRUE(table.logits.row(1).array().isNaN().all());
    EXPECT_TRUE(table.logits.row(0).allFinite() && table.logits.row(2).allFinite());
  }
}

TEST(NormGate, ThrowsOnValuesOutOfRangeAndNamesThem) {
  EXPECT_EQ(message_of([] { NormGate<double>(D, E, {}, {.epsilon = -1.0}); }),
            "InputNorm: epsilon = -1, expected 0 or positive and finite");
  EXPECT_EQ(message_of([] { NormGate<double>(D, E, {}, {.factor = 0.0}); }),
            "InputNorm: factor = 0, expected positive and finite");
  EXPECT_EQ(NormGate<double>(D, E, {}, {.scale = false}).initial_params(1).norm_scale.size(), 0);
}

}  // namespace
}  // namespace moe::norm_gate_test
