// SPDX-License-Identifier: Apache-2.0
// A gate of cosines with a scale: values by hand and of plain loops, gradients, bits.
#include "moe/routing/unit_gate.hpp"

#include <gtest/gtest.h>

#include "../support/gate_step.hpp"
#include "../support/throws.hpp"
#include "moe/routing/concepts.hpp"

namespace moe::unit_gate_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;

constexpr Index N = 3, D = 5, E = 4;

static_assert(TrainableGate<UnitGate<float>, float> && TrainableGate<UnitGate<bf16>, bf16>);

TEST(UnitGate, GivesTheScaleTimesTheCosine) {
  const UnitGate<double> gate(2, 3, {.epsilon = 1e-12});
  UnitGate<double>::Params params;
  params.direction.weight.resize(3, 2);
  params.direction.weight << 2.0, 0.0, 0.0, -0.1, 3.0, 4.0;
  params.scale.setConstant(1, 1, 10.0);
  const Matrix<double> x = (Matrix<double>(1, 2) << 30.0, 40.0).finished();
  UnitGate<double>::Table table;
  gate.forward(params, x, {}, table);
  EXPECT_TRUE(
      matrix_near(table.logits, (Matrix<double>(1, 3) << 6.0, -8.0, 10.0).finished(), 1e-11));
}

TEST(UnitGate, AgreesWithPlainLoops) {
  for (const double epsilon : {1e-6, 0.5}) {
    const UnitGate<double> gate(D, E, {.epsilon = epsilon});
    testing::expect_logits(gate, [&](const auto& params, const auto& x) {
      return reference::logits(params, gate.config(), x);
    });
  }
}

TEST(UnitGate, HasTheGradientsOfCentralDifferences) {
  for (const double epsilon : {1e-6, 0.5}) {
    for (const bool masked : {false, true}) {
      const UnitGate<double> gate(D, E, {.epsilon = epsilon, .scale = 1.5});
      EXPECT_LT(testing::gate_gradient_error(gate, masked), 1e-7) << epsilon << masked;
    }
  }
}

TEST(UnitGate, OfZerosHasALogitOfZeroAndAFiniteGradient) {
  const UnitGate<double> gate(D, E, {.epsilon = 0.25});
  UnitGate<double>::Params params = testing::random_params_of(gate);
  params.direction.weight.row(1).setZero();
  const Matrix<double> x = Matrix<double>::Zero(1, D);
  UnitGate<double>::Table table;
  gate.forward(params, x, {}, table);
  EXPECT_TRUE(table.logits.isZero(0));
  RoutingGradient<double> gradient;
  gradient.logits.setOnes(1, E);
  Matrix<double> dx(1, D);
  gate.backward_input(params, x, table, gradient, dx);
  auto grads = zeros_like(params);
  gate.backward_params(params, x, table, gradient, grads);
  Eigen::RowVectorXd want = Eigen::RowVectorXd::Zero(D);
  for (const Index e : {0, 2, 3}) {
    const auto w = params.direction.weight.row(e);
    want += params.scale(0, 0) / 0.25 / (w.norm() + 0.25) * w;
  }
  EXPECT_TRUE(matrix_near(dx, want, 1e-13));
  EXPECT_TRUE(grads.direction.weight.isZero(0));
}

TEST(UnitGate, HasTheSameBitsForAnyThreads) {
  testing::expect_gate_has_same_bits_for_any_threads(UnitGate<float>(70, 9, {}));
}

TEST(UnitGate, SeesNarrowTokensInFloat) {
  const UnitGate<bf16> narrow(D, E, {});
  const UnitGate<float> wide = narrow.cast<float>();
  const Matrix<bf16> x = random_matrix<bf16>(N, D, 3);
  UnitGate<bf16>::Table table;
  UnitGate<float>::Table wide_table;
  narrow.forward(narrow.initial_params(1), x, {}, table);
  wide.forward(wide.initial_params(1), Matrix<float>(x.cast<float>()), {}, wide_table);
  EXPECT_TRUE(testing::same_bits(table.logits, wide_table.logits));
}

TEST(UnitGate, MakesNoNumberOfNaNAndInf) {
  const UnitGate<double> gate(D, E, {});
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    Matrix<double> x = random_matrix<double>(N, D, 3);
    x(1, 2) = bad;
    UnitGate<double>::Table table;
    gate.forward(gate.initial_params(1), x, {}, table);
    EXPECT_TRUE(table.logits.row(1).array().isNaN().all());
    EXPECT_TRUE(table.logits.row(0).allFinite() && table.logits.row(2).allFinite());
  }
}

TEST(UnitGate, ThrowsOnValuesOutOfRangeAndNamesThem) {
  EXPECT_EQ(message_of([] { UnitGate<double>(D, E, {.epsilon = 0.0}); }),
            "UnitGate: epsilon = 0, expected positive and finite");
  EXPECT_EQ(message_of([] { UnitGate<double>(D, E, {.scale = HUGE_VAL}); }),
            "UnitGate: scale = inf, expected finite");
}

}  // namespace
}  // namespace moe::unit_gate_test
