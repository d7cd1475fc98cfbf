// SPDX-License-Identifier: Apache-2.0
// Infinity in the router's input, and squares that overflow: neither becomes a plausible number
// behind a bounded function, in the library and in plain loops.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "../support/random_matrix.hpp"
#include "moe/experts/zero.hpp"
#include "moe/layers/depth.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/reference/gate.hpp"
#include "moe/reference/relu_routing.hpp"
#include "moe/reference/router.hpp"
#include "moe/routing/balanced_assignment.hpp"
#include "moe/routing/relu_routing.hpp"
#include "moe/routing/sequence_top_k.hpp"
#include "moe/routing/sinkhorn.hpp"
#include "moe/routing/state_gate.hpp"

namespace moe::infinity_test {
namespace {

using testing::random_matrix;

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr Index D = 3, E = 4;

FfnExperts<double> experts() {
  return FfnExperts<double>(
      make_experts<double>({.d_model = D, .d_ff = 4, .num_experts = E, .top_k = 2}, 1));
}

/// The first token, whose router_x is infinite, has no finite y; the second has.
template <class Layer>
void expect_it_reaches_y(const Layer& layer, const char* name) {
  const Matrix<double> x = random_matrix<double>(2, D, 1);
  for (const double bad : {inf, -inf, std::nan("")}) {
    for (Index col = 0; col < D; ++col) {
      Matrix<double> router_x = random_matrix<double>(2, D, 2), y(2, D);
      router_x(0, col) = bad;
      typename Layer::Scratch scratch;
      layer.forward({x, router_x}, y, scratch);
      EXPECT_FALSE(y.row(0).array().isFinite().any()) << name << ' ' << bad << ' ' << col;
      EXPECT_TRUE(y.row(1).allFinite()) << name << ' ' << bad << ' ' << col;
    }
  }
}

TEST(Infinity, ReachesYThroughEveryScore) {
  MoEConfig config{.d_model = D, .d_ff = 4, .num_experts = E, .top_k = 2};
  for (const Score score : all_scores) {
    for (const bool renormalise : {false, true}) {
      for (const Index top_k : {1, 2, 4}) {
        config.top_k = top_k;
        config.router.score = score;
        config.router.weight.renormalise = renormalise;
        expect_it_reaches_y(MoELayer<double>(config, 1),
                            std::to_string(static_cast<int>(score)).c_str());
      }
    }
  }
}

template <class Router>
void expect_through(const Router& router, const char* name) {
  expect_it_reaches_y(MoELayer<double, Router>(router, experts()), name);
}

TEST(Infinity, ReachesYThroughRulesWithBoundedScores) {
  expect_through(linear_router<double>(D, E, ReluRouting<double>(E), 1), "relu");
  expect_through(linear_router<double>(D, E, Sinkhorn<double>(E, {}), 1), "sinkhorn");
  expect_through(linear_router<double>(D, E, BalancedAssignment<double>({}), 1), "balanced");
  auto relu = linear_router<double>(D, E, ReluRouting<double>(E), 1);
  relu.params().weight << 1, 1, 1, 2, 1, 1, 3, 1, 1, 1, 1, 1;
  LinearRouter<double, ReluRouting<double>>::Table table;
  relu.route((Matrix<double>(1, D) << -inf, 0, 0).finished(), {}, table);
  EXPECT_TRUE(table.weight.array().isNaN().all()) << "all logits are -inf";
  const auto want = reference::relu_routing({-inf, -inf, -inf, -inf});
  ASSERT_EQ(want.size(), 4u);
  EXPECT_TRUE(std::isnan(want[0].weight));
}

TEST(Infinity, ReachesYThroughATanh) {
  const TwoLayerGate<double> gate(D, 5, E, {});
  using Rule = TopK<double>;
  using Router = GatedRouter<double, TwoLayerGate<double>, Rule>;
  const auto params = gate.initial_params(1);
  expect_through(Router(gate, Rule(E, 2, {}), {params, {}}), "two layers");
  const reference::Row logits = reference::logits(params, {}, {inf, 0.5, 0.25});
  for (const double z : logits) {
    EXPECT_TRUE(std::isnan(z));
  }
}

TEST(Infinity, LeavesAMaskedExpertExactlyZero) {
  const Matrix<double> x = (Matrix<double>(2, D) << inf, 0, 0, 1, 2, 3).finished();
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 2) = 0;
  for (const Score score : all_scores) {
    const Router<double> router(D, E, 2, {.score = score}, 1);
    Router<double>::Table table;
    router.route(x, {.expert_mask = &mask}, table);
    for (Index t = 0; t < 2; ++t) {
      EXPECT_EQ(table.probs(t, 2), 0.0);
      EXPECT_TRUE((table.expert.row(t).array() != 2).all());
      EXPECT_EQ(table.weight.row(t).allFinite(), t == 1);
    }
  }
}

TEST(Infinity, IsInThePlainLoopsWhatItIsInTheRouter) {
  const Matrix<double> x = (Matrix<double>(1, D) << inf, 0.5, -0.25).finished();
  for (const Score score : all_scores) {
    const RouterConfig config{.score = score};
    const Router<double> router(D, E, 2, config, 1);
    Router<double>::Table table;
    router.route(x, {}, table);
    reference::Row probs;
    const auto want = reference::route(router.params(), config, {.top_k = 2, .allowed = {}},
                                       {inf, 0.5, -0.25}, probs);
    for (Index e = 0; e < E; ++e) {
      EXPECT_EQ(std::isfinite(table.probs(0, e)),
                std::isfinite(probs[static_cast<std::size_t>(e)]));
    }
    for (Index k = 0; k < 2; ++k) {
      EXPECT_EQ(table.expert(0, k), want[static_cast<std::size_t>(k)].expert);
      EXPECT_FALSE(std::isfinite(want[static_cast<std::size_t>(k)].weight));
      EXPECT_FALSE(std::isfinite(table.weight(0, k)));
    }
  }
}

TEST(Infinity, SpoilsTheProbabilityOfATokenThatMayBeTakenAndNoMaskedOne) {
  auto router = linear_router<double>(D, 1, TopTokens<double>({.capacity = 1.0}), 1);
  router.params().weight.setConstant(inf);
  ExpertMask mask = ExpertMask::Ones(3, 1);
  mask(1, 0) = 0;
  LinearRouter<double, TopTokens<double>>::Table table;
  router.route(Matrix<double>::Ones(3, D), {.expert_mask = &mask}, table);
  EXPECT_TRUE(std::isnan(table.probs(0, 0)) && std::isnan(table.probs(2, 0)));
  EXPECT_EQ(table.probs(1, 0), 0.0);
}

/// Of float tokens of about 1e21, whose squares are more than float holds.
template <class Gate>
void expect_no_number_of_overflow(const Gate& gate, const char* name) {
  Matrix<float> x = random_matrix<float>(2, gate.d_model(), 1);
  x.row(0) *= 1e21F;
  typename Gate::Table table;
  gate.forward(gate.initial_params(1), x, {}, table);
  EXPECT_TRUE(table.logits.row(0).array().isNaN().all()) << name;
  EXPECT_TRUE(table.logits.row(1).allFinite()) << name;
  x.row(0) *= 1e-4F;
  gate.forward(gate.initial_params(1), x, {}, table);
  EXPECT_TRUE(table.logits.allFinite()) << name;
}

TEST(Overflow, OfTheSquaresOfATokenMakesItsLogitsNaN) {
  expect_no_number_of_overflow(NormGate<float>(8, E, {}, {}), "norm");
  expect_no_number_of_overflow(CosineGate<float>(8, E, {.width = 5}), "cosine");
  expect_no_number_of_overflow(UnitGate<float>(8, E, {}), "unit");
  expect_no_number_of_overflow(StateGate<float>(8, E, {.d_state = 5}), "state");
}

TEST(Overflow, OfTheSquaresIsNaNInThePlainLoopsToo) {
  const reference::Row x = {1e200, 2.0, -3.0};
  const UnitGate<double> unit(D, E, {});
  const NormGate<double> norm(D, E, {}, {});
  const CosineGate<double> cosine(D, E, {.width = 5});
  const auto expect_nan = [](const reference::Row& logits) {
    for (const double z : logits) {
      EXPECT_TRUE(std::isnan(z));
    }
  };
  expect_nan(reference::logits(unit.initial_params(1), unit.config(), x));
  expect_nan(reference::logits(norm.initial_params(1), {}, norm.norm(), x));
  expect_nan(reference::logits(cosine.initial_params(1), x));
}

TEST(Infinity, ReachesYThroughAnExpertOfZeros) {
  using Layer = MoELayer<double, Router<double>, ZeroExperts<double>>;
  Layer layer(Router<double>(D, 6, 1, {.score = Score::sigmoid}, 1),
              ZeroExperts<double>(experts(), {.zeros = 2}, std::uint64_t{1}));
  layer.router().params().weight.setZero();
  layer.router().params().weight(5, 0) = 1;
  Matrix<double> x = random_matrix<double>(2, D, 1), y(2, D);
  x(0, 0) = inf;
  Layer::Scratch scratch;
  layer.forward(x, y, scratch);
  EXPECT_FALSE(y.row(0).array().isFinite().any());
  EXPECT_TRUE(y.row(1).allFinite());
}

}  // namespace
}  // namespace moe::infinity_test
