// SPDX-License-Identifier: Apache-2.0
// Router::route: rows computed by hand, every option, masks, NaN and infinities, noise, and the
// promises that a row has the same bits in any company.
#include "moe/routing/router.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"

namespace moe::router_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using Table = Router<double>::Table;

constexpr double inf = std::numeric_limits<double>::infinity();
const double nan_value = std::nan("");

Matrix<double> row(std::initializer_list<double> values) {
  Matrix<double> m(1, static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), m.data());
  return m;
}

Matrix<ExpertId> experts(std::initializer_list<ExpertId> values) {
  Matrix<ExpertId> m(1, static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), m.data());
  return m;
}

ExpertMask mask_row(std::initializer_list<std::uint8_t> values) {
  ExpertMask m(1, static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), m.data());
  return m;
}

/// Routes one token with just these logits: they are the bias, and the weights are 0.
Table route_logits(const Matrix<double>& logits, Index top_k, RouterConfig config = {},
                   const ExpertMask* mask = nullptr) {
  config.logits.bias = true;
  RouterParams<double> params{{Matrix<double>::Zero(logits.cols(), 1), logits, {}}, {}};
  const Router<double> router(params, top_k, config);
  Table table;
  router.route(Matrix<double>::Zero(1, 1), {.expert_mask = mask}, table);
  return table;
}

/// Its softmax is 0.1, 0.2, 0.3, 0.4.
const Matrix<double> quarters = row({std::log(1.0), std::log(2.0), std::log(3.0), std::log(4.0)});

TEST(Router, ProjectsScoresSelectsAndRenormalises) {
  RouterParams<double> params{{Matrix<double>(3, 2), row({0.0, 0.5, 0.0}), {}}, {}};
  params.weight << 1.0, 0.0, 0.0, 1.0, 1.0, 1.0;
  const Router<double> router(params, 2, {.logits = {.bias = true}});
  Matrix<double> x(2, 2);
  x << 1.0, 2.0, -1.0, 0.0;
  Table table;
  router.route(x, {}, table);
  Matrix<double> logits(2, 3);
  logits << 1.0, 2.5, 3.0, -1.0, 0.5, -1.0;
  EXPECT_TRUE(same_bits(table.logits, logits));
  EXPECT_EQ(table.expert(0, 0), 2);
  EXPECT_EQ(table.expert(0, 1), 1);
  EXPECT_EQ(table.expert(1, 0), 1);
  EXPECT_EQ(table.expert(1, 1), 0) << "a tie goes to the lower expert";
  EXPECT_NEAR(table.weight(0, 0), 1.0 / (1.0 + std::exp(-0.5)), 1e-15);
  EXPECT_NEAR(table.weight(1, 1), 1.0 / (1.0 + std::exp(1.5)), 1e-15);
  EXPECT_NEAR(table.probs(0, 0), std::exp(-2.0) / (std::exp(-2.0) + std::exp(-0.5) + 1.0), 1e-15);
}

TEST(Router, WeightsAreProbabilitiesRenormalisedOrAsTheyAre) {
  const Table plain = route_logits(quarters, 2, {.weight = {.renormalise = false}});
  EXPECT_EQ(plain.expert, experts({3, 2}));
  EXPECT_TRUE(matrix_near(plain.probs, row({0.1, 0.2, 0.3, 0.4}), 1e-15));
  EXPECT_TRUE(matrix_near(plain.weight, row({0.4, 0.3}), 1e-15));
  EXPECT_TRUE(matrix_near(route_logits(quarters, 2).weight, row({4.0 / 7, 3.0 / 7}), 1e-15));
}

TEST(Router, ScaleMultipliesTheWeightsAndNotTheProbabilities) {
  const Table table = route_logits(quarters, 2, {.weight = {.renormalise = false, .scale = 2.5}});
  EXPECT_TRUE(matrix_near(table.weight, row({1.0, 0.75}), 1e-15));
  EXPECT_TRUE(matrix_near(table.probs, row({0.1, 0.2, 0.3, 0.4}), 1e-15));
}

TEST(Router, HardWeightsAreOneOrSharesOfOne) {
  const auto one = WeightSource::one;
  EXPECT_EQ(route_logits(quarters, 2, {.weight = {.source = one, .renormalise = false}}).weight,
            row({1, 1}));
  EXPECT_EQ(route_logits(quarters, 2, {.weight = {.source = one}}).weight, row({0.5, 0.5}));
}

TEST(Router, SigmoidScoresEachExpertByItself) {
  const RouterConfig config{.score = Score::sigmoid, .weight = {.renormalise = false}};
  const Table table = route_logits(row({0.0, std::log(3.0), -std::log(4.0)}), 2, config);
  EXPECT_TRUE(matrix_near(table.probs, row({0.5, 0.75, 0.2}), 1e-15));
  EXPECT_EQ(table.expert, experts({1, 0}));
  EXPECT_TRUE(matrix_near(table.weight, row({0.75, 0.5}), 1e-15));
}

TEST(Router, SigmoidsThatAllUnderflowHaveWeightZeroAndNotNaN) {
  const Table table = route_logits(row({-800.0, -900.0, -1000.0}), 2, {.score = Score::sigmoid});
  EXPECT_EQ(table.expert, experts({0, 1}));
  EXPECT_EQ(table.weight, row({0.0, 0.0}));
}

TEST(Router, RenormalisedSoftmaxEqualsSoftmaxOverTheChosen) {
  for (const Index top_k : {1, 2, 5, 9}) {
    const Router<double> first(6, 9, top_k, {.weight = {.renormalise = true}}, 1);
    const Router<double> second(first.params(), top_k,
                                {.weight = {.source = WeightSource::softmax_of_chosen}});
    const Matrix<double> x = random_matrix<double>(40, 6, 2, 3.0);
    Table a, b;
    first.route(x, {}, a);
    second.route(x, {}, b);
    EXPECT_EQ(a.expert, b.expert);
    EXPECT_TRUE(matrix_near(a.weight, b.weight, 1e-14));
  }
}

TEST(Router, EqualLogitsChooseTheFirstExpertsInOrder) {
  const Table table = route_logits(Matrix<double>::Constant(1, 5, 7.0), 3);
  EXPECT_EQ(table.expert, experts({0, 1, 2}));
  EXPECT_TRUE(matrix_near(table.weight, row({1.0 / 3, 1.0 / 3, 1.0 / 3}), 1e-15));
}

TEST(Router, SelectsByLogitsWhereProbabilitiesRoundToATie) {
  const Table table = route_logits(row({-2000.0, -1000.0, 0.0}), 2);
  EXPECT_EQ(table.probs(0, 0), table.probs(0, 1));
  EXPECT_EQ(table.expert, experts({2, 1}));
}

TEST(Router, ANaNLogitRanksBelowEveryNumberAndReachesTheWeights) {
  const Table all = route_logits(row({nan_value, -inf, 3.0, nan_value}), 4);
  EXPECT_EQ(all.expert, experts({2, 1, 0, 3}));
  const Table table = route_logits(row({nan_value, 1.0, 3.0}), 2);
  EXPECT_EQ(table.expert, experts({2, 1}));
  EXPECT_TRUE(table.weight.array().isNaN().all()) << "the softmax of the row is NaN";
}

TEST(Router, ATokenOfNaNChoosesAsManyDifferentExpertsAsAnyOther) {
  EXPECT_EQ(route_logits(Matrix<double>::Constant(1, 5, nan_value), 3).expert, experts({0, 1, 2}));
  EXPECT_EQ(route_logits(row({nan_value, 1.0, nan_value}), 3).expert, experts({1, 0, 2}));
  EXPECT_EQ(route_logits(row({nan_value, nan_value, -inf}), 2).expert, experts({2, 0}));
}

TEST(Router, NumbersExpertsBeyondWhatAByteHolds) {
  const Matrix<double> rising = Eigen::RowVectorXd::LinSpaced(512, 0.0, 8.0);
  EXPECT_EQ(route_logits(rising, 3).expert, experts({511, 510, 509}));
}

TEST(Router, AMinusInfiniteLogitHasProbabilityExactlyZero) {
  const Table table = route_logits(row({-inf, 0.0, 0.0}), 3);
  EXPECT_EQ(table.expert, experts({1, 2, 0}));
  EXPECT_EQ(table.weight, row({0.5, 0.5, 0.0}));
  EXPECT_EQ(table.probs, row({0.0, 0.5, 0.5}));
}

TEST(Router, APlusInfiniteLogitIsChosenFirstAndIsNoPlausibleNumber) {
  const Table table = route_logits(row({0.0, inf, 1.0}), 2);
  EXPECT_EQ(table.expert(0, 0), 1);
  EXPECT_TRUE(std::isnan(table.weight(0, 0)));
}

TEST(Router, AMaskedExpertIsNotChosenAndHasWeightAndProbabilityExactlyZero) {
  const ExpertMask mask = mask_row({1, 1, 1, 0});
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const Table table = route_logits(quarters, 2, {.score = score}, &mask);
    EXPECT_EQ(table.expert, experts({2, 1}));
    EXPECT_EQ(table.probs(0, 3), 0.0);
    EXPECT_EQ(table.logits(0, 3), -inf);
  }
  EXPECT_TRUE(matrix_near(route_logits(quarters, 2, {}, &mask).probs,
                          row({1.0 / 6, 2.0 / 6, 3.0 / 6, 0.0}), 1e-15));
}

TEST(Router, MaskedIsZeroAlsoInARowOfNaN) {
  const ExpertMask mask = mask_row({0, 1, 1});
  const Table table = route_logits(row({nan_value, nan_value, 1.0}), 3, {}, &mask);
  EXPECT_EQ(table.expert, experts({2, 1, none}));
  EXPECT_EQ(table.probs(0, 0), 0.0);
  EXPECT_EQ(table.weight(0, 2), 0.0);
  EXPECT_TRUE(std::isnan(table.weight(0, 0)));
  const Table only_masked = route_logits(row({nan_value, 1.0, 1.0}), 2, {}, &mask);
  EXPECT_EQ(only_masked.weight, row({0.5, 0.5})) << "a masked NaN stays where it is";
}

TEST(Router, FewerAllowedThanKLeavesTheRestUnused) {
  const ExpertMask mask = mask_row({0, 1, 0, 0});
  for (const auto weight :
       {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
    const Table table = route_logits(quarters, 3, {.weight = {.source = weight}}, &mask);
    EXPECT_EQ(table.expert, experts({1, none, none}));
    EXPECT_EQ(table.weight, row({1.0, 0.0, 0.0}));
  }
}

TEST(Router, ATokenWithoutAllowedExpertsGetsZerosAndNoNaN) {
  const ExpertMask mask = mask_row({0, 0, 0, 0});
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const auto weight :
         {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
      const Table table =
          route_logits(quarters, 2, {.score = score, .weight = {.source = weight}}, &mask);
      EXPECT_EQ(table.expert, experts({none, none}));
      EXPECT_EQ(table.weight, row({0, 0}));
      EXPECT_EQ(table.probs, row({0, 0, 0, 0}));
    }
  }
}

TEST(Router, AMaskPerTokenEqualsRoutingEachTokenWithItsOwn) {
  const Router<double> router(5, 6, 3, {}, 3);
  const Matrix<double> x = random_matrix<double>(4, 5, 4);
  ExpertMask mask(4, 6);
  mask << 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0;
  Table table, alone;
  router.route(x, {.expert_mask = &mask}, table);
  for (Index t = 0; t < 4; ++t) {
    const ExpertMask own = mask.row(t);
    router.route(x.middleRows(t, 1), {.expert_mask = &own}, alone);
    EXPECT_EQ(table.expert.row(t), alone.expert.row(0));
    EXPECT_TRUE(same_bits(table.weight.row(t), alone.weight.row(0)));
    EXPECT_TRUE(same_bits(table.probs.row(t), alone.probs.row(0)));
  }
}

TEST(Router, TakesAllExpertsOneExpertOneTokenOrNone) {
  const Table all = route_logits(quarters, 4);
  EXPECT_EQ(all.expert, experts({3, 2, 1, 0}));
  EXPECT_TRUE(matrix_near(all.weight, row({0.4, 0.3, 0.2, 0.1}), 1e-15));
  const Table single = route_logits(row({-3.0}), 1);
  EXPECT_EQ(single.expert(0, 0), 0);
  EXPECT_EQ(single.weight(0, 0), 1.0);
  const Router<double> router(3, 4, 2, {}, 1);
  Table table;
  router.route(Matrix<double>(0, 3), {}, table);
  EXPECT_EQ(table.num_tokens(), 0);
  EXPECT_EQ(table.top_k(), 2);
  EXPECT_EQ(table.probs.cols(), 4);
}

TEST(Router, CastToAnotherScalarHasEveryTensorAndTheConfig) {
  const RouterConfig config{.logits = {.bias = true, .noisy = true},
                            .selection = {.bias = true},
                            .weight = {.expert_scale = ExpertScale::fixed}};
  Router<double> router(5, 6, 2, config, 1);
  testing::randomise(router.params(), 2);
  const Router<float> narrow = router.cast<float>();
  EXPECT_EQ(narrow.top_k(), 2);
  EXPECT_TRUE(narrow.config().selection.bias);
  Index tensors = 0;
  RouterParams<double>::for_each(
      [&](std::string_view name, const Matrix<double>& from, const Matrix<float>& to) {
        EXPECT_GT(from.size(), 0) << name;
        EXPECT_TRUE(same_bits(to, Matrix<float>(from.cast<float>()))) << name;
        ++tensors;
      },
      router.params(), narrow.params());
  EXPECT_EQ(tensors, 5);
  EXPECT_TRUE(same_bits(router.cast<Eigen::bfloat16>().params().noise, narrow.params().noise))
      << "a router of narrow tokens computes in float";
}

template <class T>
class RouterBits : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RouterBits, Scalars);

TYPED_TEST(RouterBits, OfARowAreTheSameAloneInAnyBatchAndForAnyThreads) {
  using T = TypeParam;
  Router<T> router(70, 37, 4, {.logits = {.bias = true}}, 5);
  testing::randomise(router.params(), 7);
  const Matrix<T> x = random_matrix<T>(200, 70, 6);
  typename Router<T>::Table all, part;
  router.route(x, {.num_threads = 1}, all);
  const auto compare = [&](Index begin, Index rows, int threads) {
    detail::with_team(
        threads, [&] { router.route(x.middleRows(begin, rows), {.num_threads = threads}, part); });
    EXPECT_EQ(part.expert, all.expert.middleRows(begin, rows));
    EXPECT_TRUE(same_bits(part.logits, all.logits.middleRows(begin, rows)));
    EXPECT_TRUE(same_bits(part.probs, all.probs.middleRows(begin, rows)));
    EXPECT_TRUE(same_bits(part.weight, all.weight.middleRows(begin, rows)));
  };
  for (const int threads : {1, 2, 3, 8}) {
    compare(0, 200, threads);
    for (const Index rows : {1, 2, 3, 5, 17, 64}) {
      compare(0, rows, threads);
      compare(200 - rows, rows, threads);
      compare(61, rows, threads);
    }
  }
}

TEST(Router, ThrowsOnShapesThatDoNotFitAndNamesThem) {
  const Router<double> router(3, 4, 2, {}, 1);
  Table table;
  EXPECT_EQ(message_of([&] { router.route(Matrix<double>::Zero(2, 5), {}, table); }),
            "Router: x is (2, 5), expected (2, 3)");
  const ExpertMask mask = ExpertMask::Ones(3, 4);
  EXPECT_EQ(
      message_of([&] { router.route(Matrix<double>::Zero(2, 3), {.expert_mask = &mask}, table); }),
      "CallOptions: expert_mask is (3, 4), expected (1 or 2, 4)");
  EXPECT_EQ(message_of([] { Router<double>(3, 4, 5, {}, 1); }),
            "Router: top_k = 5, expected in [1, num_experts = 4]");
  EXPECT_EQ(message_of([] { Router<double>(3, 4, 2, {.logits = {.input_jitter = 1.0}}, 1); }),
            "RouterConfig: logits.input_jitter = 1, expected in [0, 1)");
  EXPECT_EQ(message_of([] { Router<double>(3, 4, 2, {.weight = {.scale = 0.0}}, 1); }),
            "RouterConfig: weight.scale = 0, expected positive and finite");
  EXPECT_EQ(message_of([&] { Router<double>(router.params(), 2, {.logits = {.bias = true}}); }),
            "parameter Router.bias is (1, 0), expected (1, 4)");
  EXPECT_EQ(message_of([&] { Router<double>(router.params(), 2, {.logits = {.noisy = true}}); }),
            "parameter Router.noise is (0, 3), expected (4, 3)");
  EXPECT_EQ(message_of([&] { Router<double>(router.params(), 2, {.selection = {.bias = true}}); }),
            "parameter Router.selection_bias is (1, 0), expected (1, 4)");
  EXPECT_EQ(message_of([&] { Router<double>(router.params(), 5, {}); }),
            "Router: top_k = 5, expected in [1, num_experts = 4]");
  EXPECT_EQ(message_of([&] {
              Router<double>(router.params(), 2, {.weight = {.expert_scale = ExpertScale::fixed}});
            }),
            "parameter Router.expert_scale is (1, 0), expected (1, 4)");
  const std::vector<std::uint8_t> padding(3, 0);
  EXPECT_EQ(message_of([&] {
              router.route(Matrix<double>::Zero(2, 3), {.tokens = {.padding = padding}}, table);
            }),
            "Tokens: padding has 3 elements, expected as many as tokens = 2");
}

}  // namespace
}  // namespace moe::router_test
