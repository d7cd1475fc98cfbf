// SPDX-License-Identifier: Apache-2.0
// LinearGate by itself, without a rule: logits, and what it makes of their gradient. What it does
// in a router is tested in router_test, noise_test and router_gradient_test.
#include "moe/routing/gate.hpp"

#include <gtest/gtest.h>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/concepts.hpp"

namespace moe::gate_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using Gate = LinearGate<double>;

constexpr Index N = 5, D = 4, E = 3;

Gate::Params random_params(const Gate& gate) {
  Gate::Params params = gate.initial_params(1);
  testing::randomise(params, 2);
  return params;
}

class LinearGateGradient : public ::testing::TestWithParam<LogitsConfig> {};

TEST_P(LinearGateGradient, IsTakenBackFromTheLogitsToInputAndParameters) {
  const Gate gate(D, E, GetParam());
  Gate::Params params = random_params(gate);
  Matrix<double> x = random_matrix<double>(N, D, 3), dx(N, D);
  const Matrix<double> slope = random_matrix<double>(N, E, 4);
  Gate::Table table;
  table.noise_seed = 5;
  const auto f = [&] {
    gate.forward(params, x, {}, table);
    return (table.logits.array() * slope.array()).sum();
  };
  f();
  RoutingGradient<double> gradient{.logits = slope};
  gradient.noise_scale.setZero(table.noise_scale.rows(), table.noise_scale.cols());
  Gate::Params grads = zeros_like(params);
  gate.backward_input(params, x, table, gradient, dx);
  gate.backward_params(params, x, table, gradient, grads);
  EXPECT_LT(testing::gradient_error(f, x, dx), 1e-7);
  EXPECT_LT(testing::gradient_error_of_list(f, params, grads), 1e-7);
}

INSTANTIATE_TEST_SUITE_P(
    Options, LinearGateGradient,
    ::testing::Values(LogitsConfig{.input_jitter = 0.3, .bias = true, .noisy = true},
                      LogitsConfig{.bias = true, .softcap = 2.0},
                      LogitsConfig{.input_jitter = 0.3, .softcap = 1.5, .noisy = true}));

TEST(LinearGate, CapsWhatIsProjectedAndPutsTheNoiseOnTop) {
  const LogitsConfig capped{.bias = true, .softcap = 0.5, .noisy = true};
  const Gate gate(D, E, capped), plain(D, E, {.bias = true, .noisy = true});
  const Gate::Params params = random_params(gate);
  const Matrix<double> x = random_matrix<double>(N, D, 3);
  Gate::Table table, uncapped;
  table.noise_seed = uncapped.noise_seed = 7;
  gate.forward(params, x, {}, table);
  plain.forward(params, x, {}, uncapped);
  const Matrix<double> want = 0.5 * (uncapped.clean_logits.array() / 0.5).tanh();
  EXPECT_TRUE(matrix_near(table.clean_logits, want, 1e-15));
  const Matrix<double> noise = uncapped.logits - uncapped.clean_logits;
  EXPECT_TRUE(matrix_near(table.logits - table.clean_logits, noise, 1e-14));
}

TEST(LinearGate, ProjectsXItselfUnlessThereIsJitterPaddingOrANarrowScalar) {
  const Matrix<double> x = random_matrix<double>(N, D, 3);
  const auto copies = [&](double jitter, std::vector<std::uint8_t> padding) {
    const Gate gate(D, E, {.input_jitter = jitter});
    Gate::Table table;
    table.noise_seed = 1;
    table.padding = std::move(padding);
    gate.forward(random_params(gate), x, {}, table);
    return table.projects_input;
  };
  EXPECT_FALSE(copies(0.0, {}));
  EXPECT_FALSE(copies(0.0, {0, 0, 0, 0, 0})) << "no token of these is padding";
  EXPECT_TRUE(copies(0.0, {0, 0, 1, 0, 0}));
  EXPECT_TRUE(copies(0.1, {}));

  const LinearGate<bf16> narrow(D, E, {});
  LinearGate<bf16>::Table table;
  narrow.forward(narrow.initial_params(1), x.cast<bf16>(), {}, table);
  EXPECT_TRUE(table.projects_input);
}

TEST(LinearGate, ProjectsZerosForPadding) {
  const Gate gate(D, E, {.bias = true});
  const Gate::Params params = random_params(gate);
  Matrix<double> x = random_matrix<double>(N, D, 3);
  x.row(2).setConstant(std::nan(""));
  Gate::Table table;
  table.padding = {0, 0, 1, 0, 0};
  gate.forward(params, x, {}, table);
  EXPECT_TRUE(table.input.row(2).isZero(0));
  EXPECT_TRUE(same_bits(table.input.topRows(2), x.topRows(2)));
  EXPECT_TRUE(same_bits(table.logits.row(2), params.bias.row(0)));
}

TEST(LinearGate, BeginsWithWeightsOfUnitVarianceAndZeros) {
  const Gate gate(400, 50, {.bias = true, .noisy = true});
  const Gate::Params params = gate.initial_params(7);
  EXPECT_NEAR(params.weight.array().square().mean() * 400, 1.0, 0.04);
  EXPECT_NEAR(params.weight.mean(), 0.0, 1e-3);
  EXPECT_TRUE(params.bias.isZero(0) && params.noise.isZero(0));
  EXPECT_TRUE(same_bits(params.weight, gate.initial_params(7).weight));
  EXPECT_FALSE(same_bits(params.weight, gate.initial_params(8).weight));
}

TEST(LinearGate, ThrowsOnSizesThatDoNotFitAndNamesThem) {
  EXPECT_EQ(message_of([] { Gate(0, 3, {}); }),
            "Router: d_model = 0 and num_experts = 3, expected at least 1 of each");
  EXPECT_EQ(message_of([] { Gate(2, 3, {.input_jitter = -1.0}); }),
            "RouterConfig: logits.input_jitter = -1, expected in [0, 1)");
  EXPECT_EQ(message_of([] {
              check_shapes<Gate::Params>({.weight = Matrix<double>(3, 1)}, Gate(2, 3, {}).shapes(),
                                         {"Router"});
            }),
            "parameter Router.weight is (3, 1), expected (3, 2)");
}

}  // namespace
}  // namespace moe::gate_test
