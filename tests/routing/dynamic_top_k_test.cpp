// SPDX-License-Identifier: Apache-2.0
// Top-p and relative threshold: how many experts a token takes, by hand and against plain loops;
// gradients; and that memory follows what was chosen.
#include "moe/routing/dynamic_top_k.hpp"

#include "moe/losses/balance.hpp"
#include "moe/reference/dynamic_top_k.hpp"
#include "rule_checks.hpp"

namespace moe {

template class DynamicTopK<float>;

}  // namespace moe

namespace moe::dynamic_top_k_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = DynamicTopK<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TokenRule<Rule, double> && TrainableRule<Rule, double>);

constexpr Index N = 8, D = 4, E = 5;

Router router(const DynamicTopKConfig& config) {
  return testing::random_router(D, E, Rule(E, config), 3);
}

const std::vector<DynamicTopKConfig> all_configs = {
    {.top_p = 0.5},
    {.top_p = 0.8, .weight = {.renormalise = true, .scale = 2.5}},
    {.top_p = 0.95, .least = 2, .most = 3},
    {.top_p = 0.95, .most = 3, .weight = {.source = WeightSource::softmax_of_chosen}},
    {.relative = 0.3},
    {.relative = 0.6, .least = 2, .weight = {.renormalise = true}},
    {.top_p = 0.9, .relative = 0.2, .weight = {.renormalise = true}},
};

/// A router of one input, whose logits for x = 1 are the logarithms of these probabilities.
Router of_probabilities(const DynamicTopKConfig& config, const Eigen::RowVectorXd& probs) {
  Router router = linear_router<double>(1, probs.cols(), Rule(probs.cols(), config), 1);
  router.params().weight = probs.array().log().matrix().transpose();
  return router;
}

Index chosen_of(const DynamicTopKConfig& config, const Eigen::RowVectorXd& probs) {
  Router::Table table;
  of_probabilities(config, probs).route(Matrix<double>::Ones(1, 1), {}, table);
  const Index used = (table.expert.array() != none).count();
  EXPECT_TRUE((table.expert.leftCols(used).array() != none).all());
  EXPECT_TRUE(table.weight.rightCols(table.top_k() - used).isZero(0));
  return used;
}

TEST(DynamicTopK, TakesAsManyAsTheProbabilityNeeds) {
  const Eigen::RowVectorXd probs = (Eigen::RowVectorXd(4) << 0.1, 0.5, 0.1, 0.3).finished();
  EXPECT_EQ(chosen_of({.top_p = 0.4}, probs), 1);
  EXPECT_EQ(chosen_of({.top_p = 0.6}, probs), 2);
  EXPECT_EQ(chosen_of({.top_p = 0.85}, probs), 3);
  EXPECT_EQ(chosen_of({.top_p = 0.95}, probs), 4);
  EXPECT_EQ(chosen_of({.top_p = 0.95, .most = 3}, probs), 3);
  EXPECT_EQ(chosen_of({.top_p = 0.1, .least = 2}, probs), 2);
  EXPECT_EQ(chosen_of({.relative = 1.0}, probs), 1);
  EXPECT_EQ(chosen_of({.relative = 0.5}, probs), 2);
  EXPECT_EQ(chosen_of({.relative = 0.15}, probs), 4);
  EXPECT_EQ(chosen_of({.top_p = 0.85, .relative = 0.5}, probs), 2);
}

TEST(DynamicTopK, TakesTheLowestOfEqualExperts) {
  Router::Table table;
  of_probabilities({.top_p = 0.45}, Eigen::RowVectorXd::Constant(5, 0.2))
      .route(Matrix<double>::Ones(1, 1), {}, table);
  Matrix<ExpertId> want(1, 5);
  want << 0, 1, 2, none, none;
  EXPECT_EQ(table.expert, want);
}

TEST(DynamicTopK, ChoosesAsPlainLoopsDo) {
  const Matrix<double> x = random_matrix<double>(40, D, 5);
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 1) = mask(0, 4) = 0;
  for (const DynamicTopKConfig& config : all_configs) {
    for (const ExpertMask* expert_mask :
         {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
      Router::Table table;
      router(config).route(x, {.expert_mask = expert_mask}, table);
      reference::Routing want;
      for (const reference::Row& logits : testing::rows_of(table.logits)) {
        want.push_back(reference::dynamic_top_k(logits, config));
      }
      EXPECT_TRUE(testing::has_choices(table, want));
    }
  }
}

TEST(DynamicTopK, OfAProbabilityOfOneIsTheDenseMixture) {
  Router::Table table;
  router({.top_p = 1.0}).route(random_matrix<double>(N, D, 5), {}, table);
  EXPECT_TRUE((table.expert.array() != none).all());
  EXPECT_TRUE(testing::matrix_near(table.weight.rowwise().sum(), Eigen::VectorXd::Ones(N), 1e-14));
}

TEST(DynamicTopK, TakesRowsForWhatIsChosenOnly) {
  const Router few = router({.top_p = 0.3});
  const auto layer = testing::layer_of(few);
  decltype(testing::layer_of(few))::Scratch scratch;
  Matrix<double> y(N, D);
  layer.forward(random_matrix<double>(N, D, 5), y, scratch);
  EXPECT_EQ(scratch.rows.rows(), (scratch.routing.expert.array() != none).count());
  EXPECT_LT(scratch.rows.rows(), N * E);
}

TEST(DynamicTopK, BalancedHasABalancingLossOfItsChoicesPerToken) {
  Router::Table table;
  of_probabilities({.top_p = 1.0}, Eigen::RowVectorXd::Constant(5, 0.2))
      .route(Matrix<double>::Ones(7, 1), {}, table);
  EXPECT_NEAR(hugging_face_load_balancing_loss(table).value, 5.0, 1e-12);
}

TEST(DynamicTopK, MatchesCentralDifferences) {
  for (const DynamicTopKConfig& config : all_configs) {
    testing::expect_gradients(router(config), random_matrix<double>(N, D, 5));
  }
}

TEST(DynamicTopK, KeepsTheContractInALayer) {
  for (const DynamicTopKConfig& config : {all_configs[1], all_configs[4]}) {
    testing::expect_same_bits_for_any_threads(router(config));
    testing::expect_small_batches(router(config));
    testing::expect_padding_is_no_token(router(config));
    testing::expect_nan_stays_with_its_token(router(config));
    testing::expect_no_allocation_in_a_steady_state(router(config));
  }
}

TEST(DynamicTopK, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(E, {}); }),
            "DynamicTopK: top_p and relative are both not set, expected one");
  EXPECT_EQ(message_of([] { Rule(E, {.top_p = 1.5}); }),
            "DynamicTopK: top_p = 1.5, expected in (0, 1]");
  EXPECT_EQ(message_of([] { Rule(E, {.relative = 0.0}); }),
            "DynamicTopK: relative = 0, expected in (0, 1]");
  EXPECT_EQ(message_of([] { Rule(E, {.top_p = 0.5, .most = 6}); }),
            "DynamicTopK: most = 6, expected in [1, num_experts = 5]");
  EXPECT_EQ(message_of([] { Rule(E, {.top_p = 0.5, .least = 3, .most = 2}); }),
            "DynamicTopK: least = 3, expected in [1, most = 2]");
}

TEST(DynamicTopK, RefusesWeightsThatTakeABiasOrAScaleOfExpertsWhichItHasNot) {
  for (const WeightConfig& weight : {WeightConfig{.source = WeightSource::biased_score},
                                     WeightConfig{.expert_scale = ExpertScale::fixed},
                                     WeightConfig{.expert_scale = ExpertScale::learned},
                                     WeightConfig{.expert_scale = ExpertScale::learned_for_all}}) {
    EXPECT_EQ(message_of([&] { Rule(E, {.top_p = 0.5, .weight = weight}); }),
              "DynamicTopK: weight takes a bias or a scale of experts, expected none: it has no "
              "parameters");
  }
}

}  // namespace
}  // namespace moe::dynamic_top_k_test
