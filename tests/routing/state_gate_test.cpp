// SPDX-License-Identifier: Apache-2.0
// The gate with a state: alone and in a chain of layers, against plain loops and central
// differences.
#include "moe/routing/state_gate.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/experts/zero.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/reference/state_gate.hpp"

namespace moe::state_gate_test {
namespace {

using testing::gradient_error;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

constexpr Index N = 6, D = 5, R = 4, E = 4;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <Real T>
using StateRouter = GatedRouter<T, StateGate<T>, TopK<Wide<T>>>;

StateGateConfig gate_config(bool takes_state) {
  return {.d_state = R, .takes_state = takes_state, .epsilon = 0.01};
}

/// Random in all of its tensors, also the bias of the selection.
template <Real T>
StateRouter<T> make_router(bool takes_state, std::uint64_t seed, Index top_k = 2) {
  const StateGate<T> gate(D, E, gate_config(takes_state));
  const RouterConfig config{.selection = {.bias = true}, .weight = {.renormalise = false}};
  const TopK<Wide<T>> rule(E, top_k, config);
  StateRouter<T> router(gate, rule, {gate.initial_params(seed), rule.initial_params()});
  testing::randomise(router.params(), seed + 1, 0.9);
  return router;
}

template <Real T>
Matrix<T> side_by_side(const Matrix<T>& x, const Matrix<T>& state) {
  Matrix<T> both(x.rows(), x.cols() + state.cols());
  both << x, state;
  return both;
}

template <class T>
class StateGateOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(StateGateOf, Scalars);

TYPED_TEST(StateGateOf, EqualsTheReferenceWithAndWithoutAStateThatComesIn) {
  using T = TypeParam;
  const double bound = sizeof(T) == 8 ? 1e-13 : 1e-5;
  for (const bool takes_state : {false, true}) {
    const auto router = make_router<T>(takes_state, 3);
    const Matrix<T> x = random_matrix<T>(N, router.d_model(), 4);
    typename StateRouter<T>::Table table;
    router.route(x, {}, table);
    Matrix<double> logits(N, E), state(N, R);
    for (Index t = 0; t < N; ++t) {
      const reference::Row all = reference::row_of(x, t);
      const auto token = reference::state_gate(router.params().gate_part(), router.gate().config(),
                                               reference::Row(all.begin(), all.begin() + D),
                                               reference::Row(all.begin() + D, all.end()));
      for (Index e = 0; e < E; ++e) {
        logits(t, e) = token.logits[static_cast<std::size_t>(e)];
      }
      for (Index i = 0; i < R; ++i) {
        state(t, i) = token.state[static_cast<std::size_t>(i)];
      }
    }
    EXPECT_TRUE(matrix_near(Matrix<T>(table.logits), logits, bound));
    EXPECT_TRUE(matrix_near(Matrix<T>(table.state), state, bound));
  }
}

TEST(StateGate, OfASingleLayerMatchesCentralDifferencesAlsoOfTheStateThatGoesOn) {
  for (const bool takes_state : {false, true}) {
    auto router = make_router<double>(takes_state, 3);
    Matrix<double> x = random_matrix<double>(N, router.d_model(), 4);
    const Matrix<double> dweight = random_matrix<double>(N, 2, 5);
    const Matrix<double> dstate = random_matrix<double>(N, R, 6);
    StateRouter<double>::Table table;
    const auto f = [&] {
      router.route(x, {.num_threads = 1}, table);
      return (table.weight.array() * dweight.array()).sum() +
             (table.state.array() * dstate.array()).sum();
    };
    f();
    RoutingGradient<double> gradient;
    gradient.weight = dweight;
    gradient.state = dstate;
    Matrix<double> dx(N, router.d_model());
    auto grads = zero_grads_of(router);
    router.backward(x, table, gradient, dx, grads);
    EXPECT_LT(gradient_error(f, x, dx), 1e-7);
    StateRouter<double>::Params::for_each(
        [&](std::string_view name, Matrix<double>& parameter, const Matrix<double>& grad) {
          if (name == "selection_bias") {
            EXPECT_TRUE(grad.isZero(0));
          } else if (parameter.size() > 0) {
            EXPECT_LT(gradient_error(f, parameter, grad), 1e-7) << name;
          }
        },
        router.params(), grads);
  }
}

using Layer = MoELayer<double, StateRouter<double>, ZeroExperts<double>>;

/// Three experts, and one that a token takes to skip the layer.
Layer make_layer(bool takes_state, std::uint64_t seed) {
  std::vector<Expert<double>> experts;
  for (Index e = 0; e + 1 < E; ++e) {
    experts.emplace_back(Expert<double>::Sizes{D, 3, D}, ExpertConfig{},
                         seed + static_cast<std::uint64_t>(e));
  }
  return {make_router<double>(takes_state, seed, 1),
          ZeroExperts<double>(FfnExperts<double>(std::move(experts)), {.zeros = 1}, 0)};
}

// Two layers with a residual around each, as in a model.
TEST(StateGate, HandsItsStateAndTheGradientOfItFromLayerToLayer) {
  Layer first = make_layer(false, 11), second = make_layer(true, 22);
  for (Layer* layer : {&first, &second}) {
    layer->router().params().selection_bias.setZero();
  }
  Matrix<double> x = random_matrix<double>(N, D, 4);
  const Matrix<double> dy = random_matrix<double>(N, D, 5);
  const CallOptions call{.num_threads = 1};
  Layer::Tape tape1, tape2;
  Matrix<double> inner(N, D), middle, both, y(N, D);
  const auto f = [&] {
    first.forward(x, inner, tape1, call);
    middle = x + inner;
    both = side_by_side<double>(middle, tape1.routing.state);
    second.forward({middle, both}, y, tape2, call);
    y += middle;
    return (y.array() * dy.array()).sum();
  };
  f();
  EXPECT_GT((tape1.routing.expert.array() == E - 1).count() +
                (tape2.routing.expert.array() == E - 1).count(),
            0)
      << "no token skips";
  Matrix<double> dmiddle(N, D), dboth(N, D + R), dx(N, D);
  auto grads1 = first.zero_grads(), grads2 = second.zero_grads();
  second.backward({middle, both}, dy, tape2, {dmiddle, dboth}, grads2);
  dmiddle += dy + dboth.leftCols(D);
  RoutingGradient<double> from_next;
  from_next.state = dboth.rightCols(R);
  first.backward(x, dmiddle, tape1, dx, grads1, from_next);
  dx += dmiddle;
  EXPECT_LT(gradient_error(f, x, dx), 1e-7);
  const auto check = [&](const std::string& name, auto& parameter, const auto& grad) {
    if (name != "router.selection_bias") {
      EXPECT_LT(gradient_error(f, parameter, grad), 1e-7) << name;
    }
  };
  first.for_each_parameter(check, grads1);
  second.for_each_parameter(check, grads2);
}

TEST(StateGate, GivesATokenThatSkipsTheLayerNothing) {
  Layer layer = make_layer(false, 11);
  layer.router().params().selection_bias << 0, 0, 0, 9;
  const Matrix<double> x = random_matrix<double>(N, D, 4);
  Matrix<double> y(N, D);
  Layer::Scratch scratch;
  layer.forward(x, y, scratch);
  EXPECT_TRUE((scratch.routing.expert.array() == E - 1).all());
  EXPECT_TRUE(y.isZero(0));
}

TEST(StateGate, HasTheSameBitsForAnyNumberOfThreadsAndLeavesOutPadding) {
  const auto router = make_router<double>(true, 3);
  Matrix<double> x = random_matrix<double>(40, D + R, 4);
  x.row(7).setConstant(nan);
  std::vector<std::uint8_t> padding(40, 0);
  padding[7] = 1;
  const auto step = [&](int threads) {
    StateRouter<double>::Table table;
    router.route(x, {.num_threads = threads, .tokens = {.padding = padding}}, table);
    EXPECT_TRUE(table.state.row(7).isZero(0));
    RoutingGradient<double> gradient;
    gradient.weight = random_matrix<double>(40, 2, 5);
    gradient.state = random_matrix<double>(40, R, 6);
    gradient.state.row(7).setConstant(nan);
    Matrix<double> dx(40, D + R);
    auto grads = zero_grads_of(router);
    router.backward(x, table, gradient, dx, grads);
    EXPECT_TRUE(dx.allFinite());
    EXPECT_TRUE(dx.row(7).isZero(0));
    StateRouter<double>::Params::for_each(
        [](std::string_view name, const Matrix<double>& grad) {
          EXPECT_TRUE(grad.allFinite()) << name;
        },
        grads);
    return std::pair(dx, grads.down.weight);
  };
  const auto one = step(1), two = step(2);
  EXPECT_TRUE(same_bits(one.first, two.first));
  EXPECT_TRUE(same_bits(one.second, two.second));
}

TEST(StateGate, RefusesRowsWithoutTheirState) {
  const Layer layer = make_layer(true, 11);
  const Matrix<double> x = random_matrix<double>(N, D, 4),
                       both = random_matrix<double>(N, D + R, 5);
  Matrix<double> y(N, D), dx(N, D);
  Layer::Scratch scratch;
  EXPECT_THROW(layer.forward(x, y, scratch), std::invalid_argument);
  EXPECT_THROW(layer.forward({both, both}, y, scratch), std::invalid_argument);
  Layer::Tape tape;
  layer.forward({x, both}, y, tape);
  auto grads = layer.zero_grads();
  EXPECT_THROW(layer.backward({x, both}, y, tape, dx, grads), std::invalid_argument);
  EXPECT_THROW(StateGate<float>(D, E, {}), std::invalid_argument);
  EXPECT_THROW(StateGate<float>(D, E, {.d_state = 2, .epsilon = nan}), std::invalid_argument);
}

}  // namespace
}  // namespace moe::state_gate_test
