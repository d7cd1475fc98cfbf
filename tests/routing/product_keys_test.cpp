// SPDX-License-Identifier: Apache-2.0
// Product keys: against plain loops that make all sums, ties, NaN, and as the router of a layer of
// other experts.
#include "moe/routing/product_keys.hpp"

#include "moe/experts/ffn_experts.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/reference/product_keys.hpp"
#include "rule_checks.hpp"

namespace moe {

template class ProductKeyRouter<float>;
template class ProductKeyRouter<bf16>;

}  // namespace moe

namespace moe::product_keys_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Router = ProductKeyRouter<double>;
static_assert(TrainableRouter<Router, double> && LeavesOutPadding<Router>);

constexpr Index N = 40, D = 4;
constexpr KeyReading all_readings[] = {KeyReading::per_token, KeyReading::across_batch};

/// Of one token with these logits (1, 2n), or of several where none is NaN.
Router::Table table_of(const Matrix<double>& logits, const ProductKeyConfig& config) {
  Router router(Router::Params{.weight = logits.transpose()}, config);
  Router::Table table;
  router.route(Matrix<double>::Identity(logits.rows(), logits.rows()), {}, table);
  return table;
}

std::vector<Index> experts_of(const Router::Table& table, Index token) {
  std::vector<Index> experts;
  for (Index k = 0; k < table.top_k(); ++k) {
    experts.push_back(table.expert(token, k));
  }
  return experts;
}

TEST(ProductKeys, ChoosesAsPlainLoopsDoOfAllSums) {
  for (const KeyReading reading : all_readings) {
    for (const Index num_keys : {1, 2, 5, 40}) {
      for (const Index top_k : {1, 2, 7, 25, 64}) {
        const ProductKeyConfig config{num_keys, top_k, reading};
        if (top_k > config.num_experts()) {
          continue;
        }
        Router::Table table;
        Router(D, config, 3).route(random_matrix<double>(N, D, 5), {.num_threads = 2}, table);
        EXPECT_TRUE(testing::has_choices(
            table, reference::product_keys(testing::rows_of(table.logits), config)))
            << num_keys << ' ' << top_k;
      }
    }
  }
}

TEST(ProductKeys, GivesTiesToTheLowestExpert) {
  const Matrix<double> equal = Matrix<double>::Zero(2, 6);
  EXPECT_EQ(experts_of(table_of(equal, {3, 4}), 0), (std::vector<Index>{0, 1, 2, 3}));
  // 2 + 0 of expert (2, 0) and 1 + 1 of expert (1, 1): the latter is the lower.
  const auto halves = (Matrix<double>(1, 6) << -9, 1, 2, 0, 1, -9).finished();
  EXPECT_EQ(experts_of(table_of(halves, {3, 3}), 0), (std::vector<Index>{7, 4, 6}));
}

TEST(ProductKeys, RanksNaNBelowEveryNumber) {
  const double nan = std::nan("");
  const auto halves = (Matrix<double>(1, 6) << 1, nan, 2, nan, 3, 4).finished();
  const auto table = table_of(halves, {3, 5});
  const std::vector<Index> chosen = experts_of(table, 0);
  EXPECT_EQ(std::vector<Index>(chosen.begin(), chosen.begin() + 4),
            (std::vector<Index>{8, 2, 7, 1}));
  EXPECT_TRUE(table.weight.array().isNaN().all()) << "of the fifth sum";
  EXPECT_TRUE(table_of(halves, {3, 4}).weight.allFinite());
}

TEST(ProductKeys, ReadsAcrossTheBatchWhatLiesThereInMemory) {
  // Token t of 3 has the halves t and 3 + t of all six, which are those of tokens t / 2 and
  // (3 + t) / 2.
  Matrix<double> logits(3, 4);
  logits << 10, 0, 0, 10, 10, 0, 0, 10, 0, 10, 0, 10;
  const auto table = table_of(logits, {2, 1, KeyReading::across_batch});
  EXPECT_EQ(experts_of(table, 0), (std::vector<Index>{0 * 2 + 1}));
  EXPECT_EQ(experts_of(table, 1), (std::vector<Index>{1 * 2 + 1}));
  EXPECT_EQ(experts_of(table, 2), (std::vector<Index>{0 * 2 + 1}));
}

TEST(ProductKeys, LeadsALayerOfFeedForwardsToItsGradients) {
  for (const KeyReading reading : all_readings) {
    const Router router(D, {3, 4, reading}, 3);
    MoELayer<double, Router> layer(
        router, FfnExperts<double>(make_experts<double>(
                    {.d_model = D, .d_ff = 3, .num_experts = 9, .top_k = 4}, 1)));
    Matrix<double> x = random_matrix<double>(6, D, 5);
    const auto step = testing::run_step(layer, x);
    MoELayer<double, Router>::Scratch scratch;
    Matrix<double> y(6, D);
    const auto f = [&] {
      layer.forward(x, y, scratch);
      return (y.array() * step.dy.array()).sum();
    };
    EXPECT_LT(testing::gradient_error(f, x, step.dx), 1e-7);
    EXPECT_LT(testing::gradient_error(f, layer.router().params().weight, step.grads.router.weight),
              1e-7);
  }
}

TEST(ProductKeys, BackwardRefusesATableOrAGradientOfAnotherShapeAndChangesNothing) {
  const Router router(D, {3, 2}, 1);
  const Matrix<double> x = random_matrix<double>(4, D, 5);
  const auto refusal_after = [&](const auto& change) {
    Router::Table table;
    router.route(x, {}, table);
    RoutingGradient<double> gradient;
    gradient.weight.setConstant(4, 2, 1.0);
    change(table, gradient);
    Matrix<double> dx = x;
    auto grads = zero_grads_of(router);
    const std::string text = message_of([&] { router.backward(x, table, gradient, dx, grads); });
    EXPECT_TRUE(testing::same_bits(dx, x) && (grads.weight.array() == 0.0).all());
    return text;
  };
  EXPECT_EQ(refusal_after([](auto&, auto& gradient) { gradient.logits.setZero(4, 3); }),
            "RoutingGradient: logits is (4, 3), expected (4, 6)");
  EXPECT_EQ(refusal_after([](auto& table, auto&) { table.logits.setZero(4, 9); }),
            "Router: logits is (4, 9), expected (4, 6)");
  EXPECT_EQ(refusal_after([](auto& table, auto&) { table.expert.resize(4, 3); }),
            "Router: expert is (4, 3), expected (4, 2)");
}

TEST(ProductKeys, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] {
              Router(D, {0, 1}, 1);
            }),
            "ProductKeyConfig: num_keys = 0, expected in [1, 46340]");
  EXPECT_EQ(message_of([] {
              Router(D, {3, 10}, 1);
            }),
            "ProductKeyConfig: top_k = 10, expected in [1, num_keys^2 = 9]");
  EXPECT_EQ(message_of([] {
              Router(D, {3, 1, static_cast<KeyReading>(2)}, 1);
            }),
            "ProductKeyConfig: reading = 2, expected one of the enum");
  EXPECT_EQ(message_of([] {
              Router::Params params{.weight = Matrix<double>(5, D)};
              Router(params, {3, 1});
            }),
            "parameter Router.weight is (5, 4), expected (6, 4)");
}

}  // namespace
}  // namespace moe::product_keys_test
