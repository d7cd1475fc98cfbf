// SPDX-License-Identifier: Apache-2.0
// Padding in Router<T>: no row of the table, no gradient and no bit of another token knows of it.
#include <gtest/gtest.h>

#include <vector>

#include "../support/count_allocations.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/routing/router.hpp"

namespace moe::padding_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

constexpr Index N = 70, D = 33, E = 40, K = 3;

std::vector<std::uint8_t> every_third() {
  std::vector<std::uint8_t> padding(static_cast<std::size_t>(N), 0);
  for (std::size_t t = 0; t < padding.size(); t += 3) {
    padding[t] = 1;
  }
  return padding;
}

template <class M>
M without_padding(const M& m, const std::vector<std::uint8_t>& padding) {
  M rest(m.rows(), m.cols());
  Index rows = 0;
  for (Index t = 0; t < m.rows(); ++t) {
    if (padding[static_cast<std::size_t>(t)] == 0) {
      rest.row(rows++) = m.row(t);
    }
  }
  return rest.topRows(rows);
}

template <class T>
Matrix<T> tokens() {
  return random_matrix<float>(N, D, 3).template cast<T>();
}

template <class M>
void set_nan(const std::vector<std::uint8_t>& padding, M& m) {
  for (Index t = 0; t < m.rows() && m.size() > 0; ++t) {
    if (padding[static_cast<std::size_t>(t)] != 0) {
      m.row(t).setConstant(typename M::Scalar(std::nanf("")));
    }
  }
}

template <class T>
Router<T> random_router(const RouterConfig& config) {
  Router<T> router(D, E, K, config, 1);
  testing::randomise(router.params(), 2);
  return router;
}

template <class T>
class RouterPadding : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(RouterPadding, Scalars);

TYPED_TEST(RouterPadding, HasNoExpertAndLeavesTheOtherRowsAndAllGradientsAsIfItWereNotThere) {
  using T = TypeParam;
  using W = Wide<T>;
  const auto padding = every_third();
  Matrix<T> x = tokens<T>();
  set_nan(padding, x);
  const Matrix<T> rest = without_padding(x, padding);
  for (const RouterConfig& config :
       {RouterConfig{.logits = {.bias = true}},
        RouterConfig{.score = Score::sigmoid, .selection = {.bias = true}}}) {
    const Router<T> router = random_router<T>(config);
    typename Router<T>::Table table, want;
    router.route(x, {.tokens = {.padding = padding}}, table);
    router.route(rest, {}, want);
    EXPECT_EQ(table.padding, padding);
    EXPECT_EQ(without_padding(table.expert, padding), want.expert);
    EXPECT_TRUE(same_bits(without_padding(table.weight, padding), want.weight));
    EXPECT_TRUE(same_bits(without_padding(table.probs, padding), want.probs));
    EXPECT_TRUE(same_bits(without_padding(table.logits, padding), want.logits));
    for (Index t = 0; t < N; t += 3) {
      EXPECT_TRUE((table.expert.row(t).array() == none).all());
      EXPECT_TRUE(table.weight.row(t).isZero(0) && table.probs.row(t).isZero(0));
      EXPECT_TRUE((table.logits.row(t).array() == -std::numeric_limits<W>::infinity()).all());
    }

    RoutingGradient<W> gradient{.weight = random_matrix<W>(N, K, 4),
                                .probs = random_matrix<W>(N, E, 5),
                                .logits = random_matrix<W>(N, E, 6)};
    RoutingGradient<W> of_rest{.weight = without_padding(gradient.weight, padding),
                               .probs = without_padding(gradient.probs, padding),
                               .logits = without_padding(gradient.logits, padding)};
    RoutingGradient<W>::for_each(
        [&](std::string_view, GrowingMatrix<W>& tensor) { set_nan(padding, tensor); }, gradient);
    Matrix<T> dx(N, D), dx_rest(rest.rows(), D);
    auto grads = zeros_like(router.params()), grads_rest = grads;
    router.backward(x, table, gradient, dx, grads);
    router.backward(rest, want, of_rest, dx_rest, grads_rest);
    EXPECT_TRUE(same_bits(without_padding(dx, padding), dx_rest));
    RouterParams<W>::for_each([](std::string_view name, const auto& a,
                                 const auto& b) { EXPECT_TRUE(same_bits(a, b)) << name; },
                              grads, grads_rest);
    for (Index t = 0; t < N; t += 3) {
      EXPECT_TRUE(dx.row(t).isZero(T(0)));
      EXPECT_TRUE(gradient.logits.row(t).isZero(0));
    }
  }
}

TYPED_TEST(RouterPadding, GetsExactlyZeroAlsoWithNoiseAMaskAndNaNInTheWeights) {
  using T = TypeParam;
  using W = Wide<T>;
  const auto padding = every_third();
  Matrix<T> x = tokens<T>();
  set_nan(padding, x);
  Router<T> router =
      random_router<T>({.logits = {.input_jitter = 0.2, .bias = true, .noisy = true}});
  router.params().weight(7, 0) = router.params().noise(9, 1) = std::nanf("");
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 7) = mask(0, 9) = 0;
  for (const bool masked : {false, true}) {
    typename Router<T>::Table table;
    router.route(
        x,
        {.tokens = {.padding = padding}, .expert_mask = masked ? &mask : nullptr, .noise_seed = 8},
        table);
    RoutingGradient<W> gradient{.weight = random_matrix<W>(N, K, 4),
                                .noise_scale = random_matrix<W>(N, E, 7)};
    gradient.noise_scale.col(7).setZero();
    gradient.noise_scale.col(9).setZero();
    set_nan(padding, gradient.weight);
    set_nan(padding, gradient.noise_scale);
    Matrix<T> dx(N, D);
    auto grads = zeros_like(router.params());
    router.backward(x, table, gradient, dx, grads);
    for (Index t = 0; t < N; t += 3) {
      EXPECT_TRUE((table.expert.row(t).array() == none).all());
      EXPECT_TRUE(dx.row(t).isZero(T(0)));
      EXPECT_TRUE(gradient.noise_scale.row(t).isZero(0));
    }
    EXPECT_EQ(grads.weight.allFinite(), masked) << "a NaN in the weights is not padding's";
  }
}

TEST(RouterPaddingOfACall, IsForgottenByTheNext) {
  const auto padding = every_third();
  const Router<float> router = random_router<float>({});
  const Matrix<float> x = tokens<float>();
  Router<float>::Table table, fresh;
  router.route(x, {.tokens = {.padding = padding}}, table);
  router.route(x, {}, table);
  router.route(x, {}, fresh);
  EXPECT_TRUE(table.padding.empty());
  EXPECT_EQ(table.expert, fresh.expert);
  EXPECT_TRUE(same_bits(table.logits, fresh.logits));
}

#if MOE_COUNTS_ALLOCATIONS
TEST(RouterPaddingOfACall, AllocatesNothingInASteadyStateAlsoWhereItComesAndGoes) {
  const auto padding = every_third();
  const Router<float> router =
      random_router<float>({.score = Score::sigmoid, .selection = {.bias = true}});
  const Matrix<float> x = tokens<float>();
  Matrix<float> dx(N, D);
  Router<float>::Table table;
  RoutingGradient<float> gradient;
  auto grads = zeros_like(router.params());
  const auto step = [&](bool padded) {
    CallOptions call;
    call.tokens.padding = padded ? std::span(padding) : std::span<const std::uint8_t>();
    router.route(x, call, table);
    router.backward(x, table, gradient, dx, grads);
  };
  step(true);
  step(false);
  EXPECT_EQ(testing::count_allocations([&] {
              step(true);
              step(false);
            }),
            0);
}
#endif

}  // namespace
}  // namespace moe::padding_test
