// SPDX-License-Identifier: Apache-2.0
// SparseMixer-v2: the evaluation rule by hand and against plain loops, its exact gradient there,
// the draws and the estimate of the gradient in training, and the contract.
#include "moe/routing/sparse_mixer.hpp"

#include "moe/reference/sparse_mixer.hpp"
#include "rule_checks.hpp"

namespace moe {

template class SparseMixer<float>;

}  // namespace moe

namespace moe::sparse_mixer_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = SparseMixer<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TokenRule<Rule, double> && TrainableRule<Rule, double>);

constexpr Index N = 8, D = 4, E = 5;

Router router(double jitter) {
  return testing::random_router(D, E, Rule(E, {.jitter = jitter}), 3);
}

/// Of tokens that all have these logits.
Router::Table table_of(double jitter, const Eigen::RowVectorXd& logits, Index tokens,
                       std::optional<std::uint64_t> seed) {
  Router router = linear_router<double>(1, logits.cols(), Rule(logits.cols(), {jitter}), 1);
  router.params().weight = logits.transpose();
  Router::Table table;
  router.route(Matrix<double>::Ones(tokens, 1), {.noise_seed = seed}, table);
  return table;
}

TEST(SparseMixer, InEvaluationWeighsTheBestAmongThoseNearIt) {
  // 2.0 and 1.9 are within a tenth of each other; so are 1.9 and 1.75, but 0.5 is far from all.
  const Eigen::RowVectorXd logits = (Eigen::RowVectorXd(4) << 0.5, 1.9, 2.0, 1.75).finished();
  const Router::Table table = table_of(0.05, logits, 1, {});
  EXPECT_EQ(table.expert(0, 0), 2);
  EXPECT_EQ(table.expert(0, 1), 1);
  EXPECT_NEAR(table.weight(0, 0), 1.0 / (1.0 + std::exp(-0.1)), 1e-14);
  EXPECT_NEAR(table.weight(0, 1), 1.0 / (1.0 + std::exp(-0.15)), 1e-14);
}

TEST(SparseMixer, OfAloneStandingLogitsWeighsOne) {
  const Eigen::RowVectorXd logits = (Eigen::RowVectorXd(3) << 3.0, -1.0, 1.0).finished();
  EXPECT_EQ(table_of(0.01, logits, 1, {}).weight, Matrix<double>::Ones(1, 2));
}

TEST(SparseMixer, ChoosesAsPlainLoopsDo) {
  ExpertMask mask = ExpertMask::Ones(40, E);
  mask.col(1).setZero();
  mask.row(3).setZero();
  mask.row(4).setZero();
  mask(4, 2) = 1;
  for (const double jitter : {0.0, 0.01, 0.3, 5.0}) {
    for (const ExpertMask* expert_mask :
         {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
      for (const auto seed : {std::optional<std::uint64_t>(), std::optional<std::uint64_t>(7)}) {
        Router::Table table;
        router(jitter).route(random_matrix<double>(40, D, 5),
                             {.expert_mask = expert_mask, .noise_seed = seed}, table);
        reference::Routing want;
        for (const reference::Row& logits : testing::rows_of(table.logits)) {
          std::vector<reference::Choice> choices;
          for (const reference::Pick& pick :
               reference::sparse_mixer(logits, jitter, seed, static_cast<Index>(want.size()))) {
            choices.push_back(pick.choice);
          }
          want.push_back(choices);
        }
        EXPECT_TRUE(testing::has_choices(table, want)) << jitter;
      }
    }
  }
}

TEST(SparseMixer, InTrainingDrawsByTheSoftmaxAndWeighsAThirdInThreeOfFour) {
  const Eigen::RowVectorXd logits = (Eigen::RowVectorXd(3) << 1.0, 1.5, 0.5).finished();
  const Router::Table table = table_of(5.0, logits, 6000, 11);
  const reference::Row p = reference::softmax({1.0, 1.5, 0.5});
  for (Index e = 0; e < 3; ++e) {
    const auto drawn = table.expert.col(0).array() == static_cast<ExpertId>(e);
    const auto count = static_cast<double>(drawn.count());
    const double softmax = p[static_cast<std::size_t>(e)];
    EXPECT_NEAR(count / 6000.0, softmax, 0.03);
    const auto whole = static_cast<double>(
        (drawn && (table.weight.col(0).array() - softmax).abs() < 1e-12).count());
    EXPECT_NEAR(whole / count, e == 1 ? 1.0 : 0.25, 0.04) << e;
  }
}

TEST(SparseMixer, InTrainingHasTheEstimateOfThePlainLoops) {
  const Router trained = router(0.4);
  const Matrix<double> x = random_matrix<double>(40, D, 5);
  Matrix<double> dx(40, D);
  Router::Table table;
  trained.route(x, {.noise_seed = 7}, table);
  RoutingGradient<double> gradient{.weight = random_matrix<double>(40, 2, 21)};
  const Matrix<double> dweight = gradient.weight;
  auto grads = zeros_like(trained.params());
  trained.backward(x, table, gradient, dx, grads);
  Matrix<double> want(40, E);
  for (Index t = 0; t < 40; ++t) {
    const auto picks = reference::sparse_mixer(reference::row_of(table.logits, t), 0.4, 7, t);
    const reference::Row row =
        reference::sparse_mixer_gradient(picks, reference::row_of(dweight, t));
    want.row(t) = Eigen::Map<const Eigen::RowVectorXd>(row.data(), E);
  }
  EXPECT_TRUE(testing::matrix_near(gradient.logits, want, 1e-13));
}

TEST(SparseMixer, InEvaluationMatchesCentralDifferences) {
  for (const double jitter : {0.01, 0.3, 5.0}) {
    testing::expect_gradients(router(jitter), random_matrix<double>(N, D, 5));
  }
}

TEST(SparseMixer, KeepsTheContractInALayer) {
  for (const auto seed : {std::optional<std::uint64_t>(), std::optional<std::uint64_t>(7)}) {
    const CallOptions call{.noise_seed = seed};
    testing::expect_same_bits_for_any_threads(router(0.3), call);
    testing::expect_small_batches(router(0.3), call);
    testing::expect_padding_is_no_token(router(0.3), call, seed.has_value());
    testing::expect_nan_stays_with_its_token(router(0.3), call);
    testing::expect_no_allocation_in_a_steady_state(router(0.3), call);
  }
}

TEST(SparseMixer, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(1, {}); }), "SparseMixer: num_experts = 1, expected at least 2");
  EXPECT_EQ(message_of([] { Rule(E, {.jitter = -0.1}); }),
            "SparseMixer: jitter = -0.1, expected at least 0 and finite");
}

}  // namespace
}  // namespace moe::sparse_mixer_test
