// SPDX-License-Identifier: Apache-2.0
// Router::backward against central differences, for every combination of its options, and what it
// promises beyond: += for parameters, exactly 0 where masked.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/table_scalar.hpp"
#include "moe/routing/router.hpp"

namespace moe::router_gradient_test {
namespace {

using testing::gradient_error;
using testing::random_matrix;
using testing::same_bits;
using testing::scalar_of;
using Table = Router<double>::Table;
using Gradient = RoutingGradient<double>;

constexpr Index N = 4, D = 3, E = 5, K = 2;

enum class Mask { off, layer, token };

ExpertMask mask_of(Mask kind) {
  ExpertMask mask = ExpertMask::Ones(kind == Mask::layer ? 1 : N, E);
  if (kind == Mask::layer) {
    mask(0, 1) = 0;
  } else {
    mask.row(0) << 0, 1, 1, 0, 1;
    mask.row(1) << 0, 0, 0, 1, 0;  // fewer than K
    mask.row(2).setZero();         // none at all
  }
  return mask;
}

struct Combination {
  RouterConfig config;
  Mask mask;

  std::string name() const {
    return std::string(config.score == Score::softmax ? "softmax" : "sigmoid") +
           (config.weight.source == WeightSource::score ? " score"
            : config.weight.source == WeightSource::one ? " one"
                                                        : " softmax_of_chosen") +
           (config.weight.renormalises(K) ? " renormalise" : "") +
           (config.weight.scale != 1.0 ? " scale" : "") + (config.logits.bias ? " bias" : "") +
           (config.logits.input_jitter > 0 ? " jitter" : "") +
           (config.logits.noisy ? " noisy" : "") +
           (config.selection.bias ? " selection bias" : "") + " mask " +
           std::to_string(static_cast<int>(mask));
  }
};

std::vector<Combination> all_combinations() {
  std::vector<Combination> all;
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const auto weight :
         {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
      for (int bits = 0; bits < 64; ++bits) {
        for (const Mask mask : {Mask::off, Mask::layer, Mask::token}) {
          all.push_back({{.logits = {.input_jitter = (bits & 1) != 0 ? 0.3 : 0.0,
                                     .bias = (bits & 2) != 0,
                                     .noisy = (bits & 4) != 0},
                          .score = score,
                          .selection = {.bias = (bits & 32) != 0},
                          .weight = {.source = weight,
                                     .renormalise = (bits & 8) != 0,
                                     .scale = (bits & 16) != 0 ? 2.5 : 1.0}},
                         mask});
        }
      }
    }
  }
  return all;
}

/// The distance of the closest two of what a token's experts are ranked by, masked ones left out.
double smallest_gap(const Router<double>& router, const Table& table) {
  Matrix<double> rank = table.logits;
  if (router.config().selection.bias) {
    rank = table.probs.rowwise() + Eigen::RowVectorXd(router.params().selection_bias.row(0));
    rank = table.logits.array().isFinite().select(rank, table.logits);
  }
  double gap = 1e9;
  for (Index t = 0; t < rank.rows(); ++t) {
    for (Index a = 0; a < E; ++a) {
      for (Index b = 0; b < a; ++b) {
        const double distance = std::abs(rank(t, a) - rank(t, b));
        gap = std::isfinite(distance) ? std::min(gap, distance) : gap;
      }
    }
  }
  return gap;
}

Gradient random_slope(const Table& table) {
  return {.weight = random_matrix<double>(N, K, 71),
          .probs = random_matrix<double>(N, E, 72),
          .logits = random_matrix<double>(N, E, 73),
          .noise_scale = random_matrix<double>(table.noise_scale.rows(), E, 74)};
}

Router<double> make_router(const RouterConfig& config, std::uint64_t seed) {
  Router<double> router(D, E, K, config, seed);
  testing::randomise(router.params(), seed, 0.8);
  return router;
}

TEST(RouterGradient, MatchesCentralDifferencesForEveryCombinationOfOptions) {
  for (const Combination& c : all_combinations()) {
    const ExpertMask mask = mask_of(c.mask);
    const CallOptions call{
        .num_threads = 1, .expert_mask = c.mask == Mask::off ? nullptr : &mask, .noise_seed = 5};
    // Selection is piecewise constant: take the first numbers that are not close to a step.
    Table table;
    std::uint64_t seed = 1;
    Router<double> router = make_router(c.config, seed);
    Matrix<double> x = random_matrix<double>(N, D, seed + 1000);
    router.route(x, call, table);
    while (smallest_gap(router, table) < 0.01) {
      ++seed;
      router = make_router(c.config, seed);
      x = random_matrix<double>(N, D, seed + 1000);
      router.route(x, call, table);
    }

    const Gradient slope = random_slope(table);
    Gradient gradient = slope;
    Matrix<double> dx(N, D);
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);

    Table again;
    const auto f = [&] {
      router.route(x, call, again);
      return scalar_of(again, slope);
    };
    const double error = std::max(gradient_error(f, x, dx),
                                  testing::gradient_error_of_list(f, router.params(), grads));
    EXPECT_LT(error, 1e-7) << c.name();
  }
}

TEST(RouterGradient, OfHardWeightsIsZeroUnlessALossAsksForMore) {
  const Router<double> router = make_router({.weight = {.source = WeightSource::one}}, 3);
  const Matrix<double> x = random_matrix<double>(N, D, 4);
  Table table;
  router.route(x, {}, table);
  Gradient gradient;
  gradient.weight = random_matrix<double>(N, K, 5);
  Matrix<double> dx = Matrix<double>::Ones(N, D);
  auto grads = zeros_like(router.params());
  router.backward(x, table, gradient, dx, grads);
  EXPECT_TRUE(dx.isZero(0));
  EXPECT_TRUE(grads.weight.isZero(0));
}

TEST(RouterGradient, OfTheScalesOfExpertsIsThereWhereTheyAreLearned) {
  for (const ExpertScale kind : {ExpertScale::fixed, ExpertScale::learned}) {
    Router<double> router = make_router({.weight = {.scale = 2.5, .expert_scale = kind}}, 3);
    router.params().expert_scale.setConstant(0.5);
    router.params().expert_scale(0, 1) = 0.0;
    Matrix<double> x = random_matrix<double>(N, D, 4);
    x.row(1).setConstant(std::nan(""));
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    Table table;
    router.route(x, {.tokens = {.padding = padding}}, table);
    Gradient gradient;
    gradient.weight = Matrix<double>::Ones(N, K);
    gradient.weight.row(1).setConstant(std::nan(""));
    Matrix<double> dx(N, D);
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);
    // The weights of the three tokens add up to 2.5 each, before the scales.
    EXPECT_NEAR(grads.expert_scale.sum(), kind == ExpertScale::learned ? 7.5 : 0.0, 1e-14);
    EXPECT_TRUE(dx.allFinite());
  }
}

TEST(RouterGradient, OfASingleChoiceIsNotZeroUnlessItsWeightIsDividedByItself) {
  const auto norm_of = [](const WeightConfig& weight) {
    const Router<double> router(D, E, 1, {.weight = weight}, 3);
    const Matrix<double> x = random_matrix<double>(N, D, 4);
    Table table;
    router.route(x, {}, table);
    Gradient gradient;
    gradient.weight = random_matrix<double>(N, 1, 5);
    Matrix<double> dx(N, D);
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);
    return grads.weight.norm();
  };
  EXPECT_GT(norm_of({}), 1e-3);
  EXPECT_EQ(norm_of({}), norm_of({.renormalise = false}));
  EXPECT_LT(norm_of({.renormalise = true}), 1e-15);
}

TEST(RouterGradient, IsAddedToParametersAndAssignedToDx) {
  const Router<double> router =
      make_router({.logits = {.bias = true, .noisy = true}, .selection = {.bias = true}}, 6);
  const Matrix<double> x = random_matrix<double>(N, D, 7);
  Table table;
  router.route(x, {.noise_seed = 8}, table);
  const auto run = [&](double dx_before, double grads_before) {
    Gradient gradient = random_slope(table);
    Matrix<double> dx = Matrix<double>::Constant(N, D, dx_before);
    auto grads = zeros_like(router.params());
    Router<double>::Params::for_each(
        [&](std::string_view, Matrix<double>& m) { m.setConstant(grads_before); }, grads);
    router.backward(x, table, gradient, dx, grads);
    return std::pair(dx, grads);
  };
  const auto [dx, grads] = run(0.0, 0.0);
  const auto [dx_again, grads_again] = run(9.0, 2.0);
  EXPECT_TRUE(same_bits(dx, dx_again));
  EXPECT_TRUE(testing::matrix_near(grads_again.weight.array() - 2.0, grads.weight.array(), 1e-14));
  EXPECT_TRUE(testing::matrix_near(grads_again.bias.array() - 2.0, grads.bias.array(), 1e-14));
  EXPECT_TRUE(testing::matrix_near(grads_again.noise.array() - 2.0, grads.noise.array(), 1e-14));
  EXPECT_TRUE((grads_again.selection_bias.array() == 2.0).all()) << "it has no gradient";
}

TEST(RouterGradient, OfAMaskedLogitIsExactlyZeroAlsoInARowOfNaN) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const bool with_nan : {false, true}) {
      const Router<double> router = make_router({.score = score}, 9);
      Matrix<double> x = random_matrix<double>(N, D, 10);
      if (with_nan) {
        x(3, 0) = x(0, 1) = std::nan("");
      }
      ExpertMask mask = mask_of(Mask::token);
      mask(3, 2) = 0;
      Table table;
      router.route(x, {.expert_mask = &mask}, table);
      Gradient gradient = random_slope(table);
      Matrix<double> dx(N, D);
      auto grads = zeros_like(router.params());
      router.backward(x, table, gradient, dx, grads);
      for (Index t = 0; t < N; ++t) {
        for (Index e = 0; e < E; ++e) {
          if (mask(t, e) == 0) {
            EXPECT_EQ(gradient.logits(t, e), 0.0) << t << ", " << e;
          }
        }
      }
      EXPECT_TRUE(dx.row(2).isZero(0)) << "every expert is masked";
      EXPECT_EQ(dx.row(3).hasNaN(), with_nan);
    }
  }
}

TEST(RouterGradient, OfAMaskedExpertIsExactlyZeroAlsoWhereItsNoiseIsNaN) {
  Router<double> router = make_router({.logits = {.noisy = true}}, 9);
  router.params().noise(2, 0) = std::nan("");
  const Matrix<double> x = random_matrix<double>(N, D, 10);
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 2) = 0;
  Table table;
  router.route(x, {.expert_mask = &mask, .noise_seed = 3}, table);
  Gradient gradient = random_slope(table);
  gradient.noise_scale.setZero();
  Matrix<double> dx(N, D);
  auto grads = zeros_like(router.params());
  router.backward(x, table, gradient, dx, grads);
  EXPECT_TRUE(dx.allFinite());
  EXPECT_TRUE(grads.noise.row(2).isZero(0));
  EXPECT_TRUE(grads.noise.allFinite());
}

TEST(RouterGradient, OfAnExpertMaskedForAllTokensIsExactlyZero) {
  const Router<double> router = make_router({.logits = {.bias = true, .noisy = true}}, 11);
  const Matrix<double> x = random_matrix<double>(N, D, 12);
  const ExpertMask mask = mask_of(Mask::layer);
  Table table;
  router.route(x, {.expert_mask = &mask, .noise_seed = 2}, table);
  Gradient gradient = random_slope(table);
  gradient.noise_scale.col(1).setZero();  // no loss asks for the noise of an expert that is out
  Matrix<double> dx(N, D);
  auto grads = zeros_like(router.params());
  router.backward(x, table, gradient, dx, grads);
  EXPECT_TRUE(grads.weight.row(1).isZero(0));
  EXPECT_TRUE(grads.noise.row(1).isZero(0));
  EXPECT_EQ(grads.bias(0, 1), 0.0);
  EXPECT_FALSE(grads.weight.row(0).isZero(0));
}

TEST(RouterGradient, OfNoTokensIsNothing) {
  const Router<double> router = make_router({.logits = {.bias = true}}, 13);
  Table table;
  Gradient gradient;
  Matrix<double> x(0, D), dx(0, D);
  auto grads = zeros_like(router.params());
  router.route(x, {}, table);
  router.backward(x, table, gradient, dx, grads);
  EXPECT_TRUE(grads.weight.isZero(0));
}

TEST(RouterGradient, ThrowsOnShapesThatDoNotFit) {
  const Router<double> router = make_router({}, 14);
  Matrix<double> x = random_matrix<double>(N, D, 15), dx(N, D), short_dx(N - 1, D);
  Table table;
  router.route(x, {}, table);
  auto grads = zeros_like(router.params());
  Gradient gradient;
  EXPECT_THROW(router.backward(x, table, gradient, short_dx, grads), std::invalid_argument);
  EXPECT_THROW(router.backward(x, table, gradient, x, grads), std::invalid_argument);
  EXPECT_THROW(router.backward(x.topRows(2), table, gradient, dx, grads), std::invalid_argument);
  gradient.weight.setZero(N, K + 1);
  EXPECT_THROW(router.backward(x, table, gradient, dx, grads), std::invalid_argument);
}

TEST(RouterGradient, HasTheSameBitsForAnyNumberOfThreads) {
  Router<float> router(70, 9, 3, {.logits = {.input_jitter = 0.1, .bias = true, .noisy = true}},
                       16);
  testing::randomise(router.params(), 17);
  const Matrix<float> x = random_matrix<float>(200, 70, 18);
  Matrix<float> dx_one;
  RouterParams<float> grads_one;
  for (const int threads : {1, 2, 3, 8}) {
    Router<float>::Table table;
    detail::with_team(threads,
                      [&] { router.route(x, {.num_threads = threads, .noise_seed = 19}, table); });
    RoutingGradient<float> gradient;
    gradient.weight = random_matrix<float>(200, 3, 20);
    gradient.probs = random_matrix<float>(200, 9, 21);
    Matrix<float> dx(200, 70);
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);
    if (threads == 1) {
      dx_one = dx;
      grads_one = grads;
    }
    EXPECT_TRUE(same_bits(dx, dx_one)) << threads;
    EXPECT_TRUE(same_bits(grads.weight, grads_one.weight)) << threads;
    EXPECT_TRUE(same_bits(grads.bias, grads_one.bias)) << threads;
    EXPECT_TRUE(same_bits(grads.noise, grads_one.noise)) << threads;
  }
}

}  // namespace
}  // namespace moe::router_gradient_test
