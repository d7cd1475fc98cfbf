// SPDX-License-Identifier: Apache-2.0
// A gate alone, with random parameters, against plain loops; and in a router of its own: a forward
// and a backward of a few tokens, one of them padding, with masks, against central differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>

#include "finite_difference.hpp"
#include "matrix_near.hpp"
#include "moe/reference/gate.hpp"
#include "moe/routing/gated_router.hpp"
#include "moe/routing/top_k.hpp"
#include "random_matrix.hpp"
#include "table_scalar.hpp"

namespace moe::testing {

template <class Gate>
typename Gate::Params random_params_of(const Gate& gate) {
  typename Gate::Params params = gate.initial_params(1);
  randomise(params, 2);
  return params;
}

/// Logits of a gate with random parameters, and what `want` (params, x) makes of each token.
template <class Gate, class Want>
void expect_logits(const Gate& gate, Want&& want) {
  constexpr Index N = 3;
  const typename Gate::Params params = random_params_of(gate);
  const Matrix<double> x = random_matrix<double>(N, gate.d_model(), 3);
  typename Gate::Table table;
  gate.forward(params, x, {}, table);
  for (Index t = 0; t < N; ++t) {
    const reference::Row z = want(params, reference::row_of(x, t));
    EXPECT_TRUE(matrix_near(table.logits.row(t),
                            Eigen::Map<const Eigen::RowVectorXd>(z.data(), gate.num_experts()),
                            1e-13));
  }
}

/// The scalar that the gradients are of has random slopes for all of the table.
template <class Gate>
double gate_gradient_error(const Gate& gate, bool masked) {
  using Router = GatedRouter<double, Gate, TopK<double>>;
  const Index N = 4, D = gate.d_model(), E = gate.num_experts(), K = 2;
  const TopK<double> rule(E, K, {.score = Score::sigmoid});
  Router router(gate, rule, {gate.initial_params(1), rule.initial_params()});
  randomise(router.params(), 2);
  Matrix<double> x = random_matrix<double>(N, D, 3), dx(N, D);
  x.row(2).setConstant(std::nan(""));
  const std::vector<std::uint8_t> padding{0, 0, 1, 0};
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask(0, 1) = mask(3, 0) = 0;
  CallOptions call{.num_threads = 1,
                   .tokens = {.padding = padding},
                   .expert_mask = masked ? &mask : nullptr,
                   .noise_seed = 5};
  typename Router::Table table, again;
  router.route(x, call, table);
  RoutingGradient<double> slope{.weight = random_matrix<double>(N, K, 6),
                                .probs = random_matrix<double>(N, E, 7),
                                .logits = random_matrix<double>(N, E, 8)};
  slope.clear(2);
  RoutingGradient<double> gradient = slope;
  auto grads = zeros_like(router.params());
  router.backward(x, table, gradient, dx, grads);
  EXPECT_TRUE(dx.row(2).isZero(0));
  x.row(2).setZero();  // what a difference may read

  const Matrix<ExpertId> chosen = table.expert;
  call.experts = &chosen;
  const auto f = [&] {
    router.route(x, call, again);
    return scalar_of(again, slope);
  };
  return std::max(gradient_error(f, x, dx), gradient_error_of_list(f, router.params(), grads));
}

/// Whether logits, dx and gradients of many tokens in float have the same bits for any threads.
template <class Gate>
void expect_gate_has_same_bits_for_any_threads(const Gate& gate) {
  using Router = GatedRouter<float, Gate, TopK<float>>;
  const Index N = 150;
  const TopK<float> rule(gate.num_experts(), 2, {});
  Router router(gate, rule, {gate.initial_params(1), rule.initial_params()});
  const Matrix<float> x = random_matrix<float>(N, gate.d_model(), 3);
  Matrix<float> logits, dx_one;
  auto grads_one = zeros_like(router.params());
  for (const int threads : {1, 3}) {
    typename Router::Table table;
    detail::with_team(threads, [&] { router.route(x, {.num_threads = threads}, table); });
    RoutingGradient<float> gradient;
    gradient.logits = random_matrix<float>(N, gate.num_experts(), 4);
    Matrix<float> dx(N, gate.d_model());
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);
    if (threads == 1) {
      logits = table.logits;
      dx_one = dx;
      grads_one = grads;
    }
    EXPECT_TRUE(same_bits(table.logits, logits));
    EXPECT_TRUE(same_bits(dx, dx_one));
    Router::Params::for_each([](std::string_view name, const Matrix<float>& a,
                                const Matrix<float>& b) { EXPECT_TRUE(same_bits(a, b)) << name; },
                             grads, grads_one);
    typename Router::Table one;
    router.route(x.middleRows(70, 1), {.num_threads = 1}, one);
    EXPECT_TRUE(same_bits(one.logits, logits.middleRows(70, 1))) << "a token alone";
  }
}

}  // namespace moe::testing
