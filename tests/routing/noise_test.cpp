// SPDX-License-Identifier: Apache-2.0
// What a router draws in training (jitter, noise of noisy top-k), and what it computes in where
// tokens are narrower than float.
#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/routing/router.hpp"

namespace moe::noise_test {
namespace {

using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;
using Table = Router<double>::Table;

Router<double> make_router(const RouterConfig& config) {
  Router<double> router(20, 30, 4, config, 1);
  testing::randomise(router.params(), 2);
  return router;
}

Table route(const Router<double>& router, const Matrix<double>& x, const CallOptions& call) {
  Table table;
  detail::with_team(detail::num_threads(call.num_threads), [&] { router.route(x, call, table); });
  return table;
}

TEST(RouterNoise, IsDrawnOnlyWithASeed) {
  const Matrix<double> x = random_matrix<double>(50, 20, 3);
  const auto noisy = make_router({.logits = {.input_jitter = 0.2, .noisy = true}});
  RouterParams<double> params = noisy.params();
  params.noise.resize(0, 20);
  const Router<double> plain(params, 4, {});
  const Table a = route(noisy, x, {}), b = route(plain, x, {});
  EXPECT_TRUE(same_bits(a.logits, b.logits));
  EXPECT_EQ(a.clean_logits.rows(), 0);
  EXPECT_EQ(a.noise_scale.rows(), 0);
  EXPECT_FALSE(same_bits(route(noisy, x, {.noise_seed = 1}).logits, b.logits));
  EXPECT_TRUE(same_bits(route(plain, x, {.noise_seed = 1}).logits, b.logits))
      << "a seed alone makes no noise";
}

TEST(RouterNoise, IsTheSameForASeedAndAnotherForAnotherOne) {
  const Matrix<double> x = random_matrix<double>(150, 20, 3);
  for (const RouterConfig& config :
       {RouterConfig{.logits = {.input_jitter = 0.2}}, RouterConfig{.logits = {.noisy = true}}}) {
    const auto router = make_router(config);
    const Table first = route(router, x, {.num_threads = 1, .noise_seed = 7});
    for (const int threads : {1, 2, 3, 8}) {
      const Table again = route(router, x, {.num_threads = threads, .noise_seed = 7});
      EXPECT_TRUE(same_bits(again.logits, first.logits));
      EXPECT_EQ(again.expert, first.expert);
      // Threads share the experts of few tokens.
      const Table few = route(router, x.topRows(3), {.num_threads = threads, .noise_seed = 7});
      EXPECT_TRUE(same_bits(few.logits, first.logits.topRows(3)));
      EXPECT_TRUE(same_bits(few.noise_scale, first.noise_scale.topRows(few.noise_scale.rows())));
    }
    EXPECT_FALSE(same_bits(route(router, x, {.noise_seed = 8}).logits, first.logits));
  }
}

double correlation(const Matrix<double>& a, const Matrix<double>& b) {
  const Eigen::ArrayXXd x = a.array() - a.mean(), y = b.array() - b.mean();
  return (x * y).sum() / std::sqrt(x.square().sum() * y.square().sum());
}

TEST(RouterNoise, OfLayersWithSeedsOfTheirOwnIsUncorrelatedAlsoWhereTheSeedsFollowEachOther) {
  const RouterConfig config{.logits = {.input_jitter = 0.5, .noisy = true}};
  const Matrix<double> x = Matrix<double>::Ones(400, 20);
  const auto drawn = [&](std::uint64_t weights, std::uint64_t noise) {
    const Router<double> layer(20, 30, 4, config, weights);  // its noise has one width everywhere
    const Table table = route(layer, x, {.noise_seed = noise});
    return std::pair<Matrix<double>, Matrix<double>>(table.logits - table.clean_logits,
                                                     table.input);
  };
  const std::uint64_t num_layers = 2;
  const auto [noise, jitter] = drawn(1, 5 * num_layers);
  for (const std::uint64_t other : {5 * num_layers + 1, 6 * num_layers}) {  // layer, step
    const auto [other_noise, other_jitter] = drawn(2, other);
    // 12000 and 8000 draws: four standard errors and more.
    EXPECT_LT(std::abs(correlation(noise, other_noise)), 0.045) << other;
    EXPECT_LT(std::abs(correlation(jitter, other_jitter)), 0.045) << other;
  }
  const auto [same_noise, same_jitter] = drawn(2, 5 * num_layers);
  EXPECT_GT(correlation(noise, same_noise), 0.999) << "layers of one seed draw the same";
  EXPECT_GT(correlation(jitter, same_jitter), 0.999);
}

TEST(RouterNoise, JitterStaysInItsRangeAndFillsIt) {
  const auto router = make_router({.logits = {.input_jitter = 0.25}});
  const Matrix<double> x = random_matrix<double>(300, 20, 4);
  const Table table = route(router, x, {.noise_seed = 9});
  const Matrix<double> factor = table.input.array() / x.array();
  EXPECT_GE(factor.minCoeff(), 0.75 - 1e-12);
  EXPECT_LE(factor.maxCoeff(), 1.25 + 1e-12);
  EXPECT_LT(factor.minCoeff(), 0.751);
  EXPECT_GT(factor.maxCoeff(), 1.249);
  EXPECT_NEAR(factor.mean(), 1.0, 0.01);
  const Matrix<double> logits = table.input * router.params().weight.transpose();
  EXPECT_TRUE(matrix_near(table.logits, logits, 1e-13));
}

TEST(RouterNoise, LogitsAreCleanOnesPlusNormalTimesSoftplus) {
  const auto router = make_router({.logits = {.bias = true, .noisy = true}});
  const Matrix<double> x = random_matrix<double>(60, 20, 5);
  const Table table = route(router, x, {.noise_seed = 10});
  const auto& p = router.params();
  const Matrix<double> clean =
      (x * p.weight.transpose()).rowwise() + Eigen::RowVectorXd(p.bias.row(0));
  const Matrix<double> scale =
      (x * p.noise.transpose()).unaryExpr([](double n) { return std::log1p(std::exp(n)); });
  EXPECT_TRUE(matrix_near(table.clean_logits, clean, 1e-13));
  EXPECT_TRUE(matrix_near(table.noise_scale, scale, 1e-13));

  // Another router, the same seed: the same normals.
  Router<double> other(20, 30, 4, {.logits = {.noisy = true}}, 11);
  const Table unit = route(other, x, {.noise_seed = 10});  // its noise projection is 0
  EXPECT_TRUE(
      matrix_near(unit.noise_scale, Matrix<double>::Constant(60, 30, std::log(2.0)), 1e-15));
  const Matrix<double> normal = (unit.logits - unit.clean_logits) / std::log(2.0);
  EXPECT_TRUE(matrix_near(table.logits, clean.array() + normal.array() * scale.array(), 1e-12));
  EXPECT_NEAR(normal.mean(), 0.0, 0.08);  // 1800 draws: 3.4 standard errors
  EXPECT_NEAR(normal.array().square().mean(), 1.0, 0.12);
}

TEST(RouterNoise, SoftplusOfLargeValuesNeitherOverflowsNorVanishes) {
  RouterParams<double> params{{Matrix<double>::Zero(2, 1), {}, Matrix<double>(2, 1)}, {}};
  params.noise << 800.0, -700.0;
  const Router<double> router(params, 1, {.logits = {.noisy = true}});
  const Table table = route(router, Matrix<double>::Ones(1, 1), {.noise_seed = 1});
  EXPECT_EQ(table.noise_scale(0, 0), 800.0);
  EXPECT_GT(table.noise_scale(0, 1), 0.0);
}

TEST(RouterNoise, AMaskedExpertStaysMasked) {
  const auto router = make_router({.logits = {.noisy = true}});
  ExpertMask mask = ExpertMask::Ones(1, 30);
  mask(0, 4) = 0;
  const Table table =
      route(router, random_matrix<double>(40, 20, 6), {.expert_mask = &mask, .noise_seed = 12});
  EXPECT_FALSE((table.expert.array() == 4).any());
  EXPECT_TRUE(table.probs.col(4).isZero(0));
}

TEST(RouterOfNarrowTokens, RoutesInFloatAsAFloatRouterRoutesTheRoundedTokens) {
  for (const RouterConfig& config :
       {RouterConfig{.logits = {.bias = true}},
        RouterConfig{.logits = {.input_jitter = 0.1, .noisy = true}}}) {
    Router<Eigen::bfloat16> narrow(133, 7, 2, config, 13);
    testing::randomise(narrow.params(), 14);
    const Router<float> wide(narrow.params(), 2, config);
    const Matrix<Eigen::bfloat16> x = random_matrix<float>(70, 133, 15).cast<Eigen::bfloat16>();
    Router<Eigen::bfloat16>::Table a;
    Router<float>::Table b;
    narrow.route(x, {.noise_seed = 16}, a);
    wide.route(x.cast<float>(), {.noise_seed = 16}, b);
    EXPECT_TRUE(same_bits(a.logits, b.logits));
    EXPECT_TRUE(same_bits(a.probs, b.probs));
    EXPECT_TRUE(same_bits(a.weight, b.weight));
    EXPECT_EQ(a.expert, b.expert);

    RoutingGradient<float> ga, gb;
    ga.weight = gb.weight = random_matrix<float>(70, 2, 17);
    Matrix<Eigen::bfloat16> dx_narrow(70, 133);
    Matrix<float> dx_wide(70, 133);
    auto grads_a = zeros_like(narrow.params()), grads_b = zeros_like(wide.params());
    const Matrix<float> wide_x = x.cast<float>();
    narrow.backward(x, a, ga, dx_narrow, grads_a);
    wide.backward(wide_x, b, gb, dx_wide, grads_b);
    EXPECT_TRUE(same_bits(grads_a.weight, grads_b.weight));
    EXPECT_TRUE(matrix_near(dx_narrow.cast<float>(), dx_wide, 0.01)) << "rounded to bfloat16";
  }
}

}  // namespace
}  // namespace moe::noise_test
