// SPDX-License-Identifier: Apache-2.0
// What the test of every rule asks: its gradients against differences, its choices against those of
// plain loops, and the contract of a router in a layer.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "../support/count_allocations.hpp"
#include "../support/finite_difference.hpp"
#include "../support/layer_step.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/table_scalar.hpp"
#include "../support/throws.hpp"
#include "moe/reference/router.hpp"
#include "moe/routing/linear_router.hpp"

namespace moe::testing {

/// A router of a rule, all of whose tensors are random.
template <class Rule>
LinearRouter<double, Rule> random_router(Index d_model, Index num_experts, Rule rule,
                                         std::uint64_t seed) {
  LinearRouter<double, Rule> router =
      linear_router<double>(d_model, num_experts, std::move(rule), 1, {.bias = true});
  randomise(router.params(), seed, 0.8);
  return router;
}

inline std::vector<reference::Row> rows_of(const GrowingMatrix<double>& m) {
  std::vector<reference::Row> rows;
  for (Index t = 0; t < m.rows(); ++t) {
    rows.push_back(reference::row_of(m, t));
  }
  return rows;
}

/// The table has these choices in this order, and no others.
inline ::testing::AssertionResult has_choices(const RoutingTable<double>& table,
                                              const reference::Routing& want) {
  const auto failure = [](Index t) { return ::testing::AssertionFailure() << "token " << t; };
  for (Index t = 0; t < table.num_tokens(); ++t) {
    const auto& choices = want[static_cast<std::size_t>(t)];
    if (static_cast<Index>(choices.size()) > table.top_k()) {
      return failure(t) << " has at most " << table.top_k() << ", want " << choices.size();
    }
    for (Index k = 0; k < table.top_k(); ++k) {
      const bool used = k < static_cast<Index>(choices.size());
      const Index expert = used ? choices[static_cast<std::size_t>(k)].expert : none;
      const double weight = used ? choices[static_cast<std::size_t>(k)].weight : 0.0;
      const double error = std::abs(table.weight(t, k) - weight);
      if (table.expert(t, k) != expert || !(error <= 1e-12 * std::max(1.0, std::abs(weight)))) {
        return failure(t) << ", choice " << k << ": got " << table.expert(t, k) << " with "
                          << table.weight(t, k) << ", want " << expert << " with " << weight;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

/// The gradient of a table as if a layer and losses asked for it.
inline RoutingGradient<double> random_slope(const RoutingTable<double>& table) {
  return {.weight = random_matrix<double>(table.num_tokens(), table.top_k(), 21),
          .probs = random_matrix<double>(table.num_tokens(), table.probs.cols(), 22),
          .logits = random_matrix<double>(table.num_tokens(), table.probs.cols(), 23)};
}

/// The error of dx and of the gate's gradients against differences. The numbers must lie far from
/// where choices change: it fails if one does.
template <class Router>
double router_gradient_error(Router router, Matrix<double> x, const CallOptions& call = {}) {
  Matrix<double> dx(x.rows(), x.cols());
  typename Router::Table table, again;
  router.route(x, call, table);
  const RoutingGradient<double> slope = random_slope(table);
  RoutingGradient<double> gradient = slope;
  auto grads = zeros_like(router.params());
  router.backward(x, table, gradient, dx, grads);
  const auto f = [&] {
    router.route(x, call, again);
    const bool same = again.expert.cols() == table.expert.cols() && again.expert == table.expert;
    return same ? scalar_of(again, slope) : std::numeric_limits<double>::quiet_NaN();
  };
  return std::max(gradient_error(f, x, dx), gradient_error_of_list(f, router.params(), grads));
}

/// Central differences agree without and with masks, of one expert, of several tokens, of all
/// experts of a token; with padding; in two sequences.
template <class Router>
void expect_gradients(const Router& router, const Matrix<double>& x, CallOptions call = {}) {
  const Index N = x.rows(), E = router.num_experts();
  ExpertMask layer = ExpertMask::Ones(1, E), tokens = ExpertMask::Ones(N, E);
  layer(0, 1) = 0;
  tokens(0, 1) = tokens(1, 0) = tokens(1, 2) = 0;
  tokens.row(2).setZero();
  std::vector<std::uint8_t> padding(static_cast<std::size_t>(N), 0);
  padding[3] = 1;
  for (const ExpertMask* mask :
       {static_cast<const ExpertMask*>(nullptr), &std::as_const(layer), &std::as_const(tokens)}) {
    call.expert_mask = mask;
    for (const bool padded : {false, true}) {
      call.tokens.padding = padded ? std::span(padding) : std::span<const std::uint8_t>();
      for (const Index length : {Index(0), N / 2}) {
        call.tokens.sequence_length = length;
        EXPECT_LT(router_gradient_error(router, x, call), 1e-7)
            << "mask " << (mask == nullptr ? 0 : mask->rows()) << ", padding " << padded
            << ", sequences of " << length;
      }
    }
  }
}

/// Experts that a layer of the router would have.
template <class Router>
auto layer_of(Router router) {
  const MoEConfig config{
      .d_model = router.d_model(), .d_ff = 5, .num_experts = router.num_experts(), .top_k = 1};
  return MoELayer<double, Router>(std::move(router), make_experts<double>(config, 6));
}

/// In a layer the same bits for any number of threads, forward and backward.
template <class Router>
void expect_same_bits_for_any_threads(const Router& router, CallOptions call = {}) {
  const auto layer = layer_of(router);
  const Matrix<double> x = random_matrix<double>(150, router.d_model(), 7);
  call.num_threads = 1;
  const auto one = run_step(layer, x, call);
  EXPECT_TRUE(one.y.allFinite() && one.dx.allFinite());
  EXPECT_FALSE(one.y.isZero(0) || one.dx.isZero(0));
  for (const int threads : {2, 5}) {
    call.num_threads = threads;
    const auto more = run_step(layer, x, call);
    EXPECT_TRUE(same_bits(more.y, one.y));
    EXPECT_TRUE(same_bits(more.dx, one.dx));
    EXPECT_TRUE(same_grads(layer, more.grads, one.grads));
  }
}

/// A batch of none and of one, forward and backward.
template <class Router>
void expect_small_batches(const Router& router, const CallOptions& call = {}) {
  const auto layer = layer_of(router);
  for (const Index tokens : {0, 1}) {
    const auto step = run_step(layer, random_matrix<double>(tokens, router.d_model(), 7), call);
    EXPECT_TRUE(step.y.allFinite() && step.dx.allFinite());
  }
}

/// Padding whose x and gradient are NaN has no choice, no score and no gradient, and nothing else
/// becomes NaN. Where the place in the batch does not count, the others get what they get without
/// it.
template <class Router>
void expect_padding_is_no_token(const Router& router, CallOptions call = {},
                                bool goes_by_place = false) {
  constexpr Index N = 12;
  const std::vector<std::uint8_t> padding = {1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0};
  Matrix<double> x = random_matrix<double>(N, router.d_model(), 5), rest(9, x.cols());
  for (Index t = 0, row = 0; t < N; ++t) {
    if (padding[static_cast<std::size_t>(t)] != 0) {
      x.row(t).setConstant(std::nan(""));
    } else {
      rest.row(row++) = x.row(t);
    }
  }
  const auto layer = layer_of(router);
  typename decltype(layer_of(router))::Tape tape;
  const auto want = run_step(layer, rest, call);
  call.tokens.padding = padding;
  auto step = run_step(layer, x, call, &tape);
  EXPECT_TRUE(step.y.allFinite() && step.dx.allFinite());
  for (Index t = 0, row = 0; t < N; ++t) {
    if (padding[static_cast<std::size_t>(t)] != 0) {
      EXPECT_TRUE((tape.routing.expert.row(t).array() == none).all());
      EXPECT_TRUE(tape.routing.weight.row(t).isZero(0) && tape.routing.probs.row(t).isZero(0));
      EXPECT_TRUE(step.y.row(t).isZero(0) && step.dx.row(t).isZero(0));
    } else if (!goes_by_place) {
      EXPECT_TRUE(matrix_near(step.y.row(t), want.y.row(row), 1e-14));
      ++row;
    }
  }
}

/// Of a rule that looks at one token: a NaN reaches the y of its token, and no other row's bits.
template <class Router>
void expect_nan_stays_with_its_token(const Router& router, const CallOptions& call = {}) {
  const auto layer = layer_of(router);
  Matrix<double> x = random_matrix<double>(20, router.d_model(), 7), y(20, router.d_model()),
                 want = y;
  typename decltype(layer_of(router))::Scratch scratch;
  layer.forward(x, want, scratch, call);
  x(4, 1) = std::nan("");
  layer.forward(x, y, scratch, call);
  EXPECT_TRUE(y.row(4).array().isNaN().all());
  y.row(4) = want.row(4);
  EXPECT_TRUE(same_bits(y, want));
}

/// Neither forward nor backward allocates after the first, also when the batch shrinks and grows;
/// where the allocator is a sanitizer's, nothing is asked.
template <class Router>
void expect_no_allocation_in_a_steady_state([[maybe_unused]] const Router& router,
                                            [[maybe_unused]] CallOptions call = {}) {
#if MOE_COUNTS_ALLOCATIONS
  const auto layer = layer_of(router);
  const Matrix<double> x = random_matrix<double>(60, router.d_model(), 7);
  Matrix<double> y = x, dx = x;
  typename decltype(layer_of(router))::Tape tape;
  auto grads = layer.zero_grads();
  call.num_threads = 2;
  const auto step = [&](Index rows) {
    layer.forward(x.topRows(rows), y.topRows(rows), tape, call);
    layer.backward(x.topRows(rows), x.topRows(rows), tape, dx.topRows(rows), grads);
  };
  step(60);
  step(60);
  EXPECT_EQ(count_allocations([&] {
              step(60);
              step(17);
              step(60);
            }),
            0);
#endif
}

}  // namespace moe::testing
