// SPDX-License-Identifier: Apache-2.0
// Hierarchical routing: against plain loops, its limits of one group and of all experts, gradients
// and the contract.
#include "moe/routing/two_level.hpp"

#include "moe/reference/two_level.hpp"
#include "moe/routing/top_k.hpp"
#include "rule_checks.hpp"

namespace moe {

template class TwoLevel<float>;

}  // namespace moe

namespace moe::two_level_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = TwoLevel<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TokenRule<Rule, double> && TrainableRule<Rule, double>);

constexpr Index N = 8, D = 4, E = 6;

Router router(const TwoLevelConfig& config) {
  return testing::random_router(D, E, Rule(E, config), 3);
}

const std::vector<TwoLevelConfig> all_configs = {{1, 1, 3}, {2, 1, 2}, {2, 2, 1},
                                                 {3, 2, 2}, {3, 3, 2}, {6, 2, 1}};

TEST(TwoLevel, ChoosesAsPlainLoopsDo) {
  ExpertMask mask = ExpertMask::Ones(40, E);
  mask.leftCols(2).setZero();
  mask.row(3).setZero();
  mask.row(4).setZero();
  mask(4, 2) = 1;
  for (const TwoLevelConfig& config : all_configs) {
    for (const ExpertMask* expert_mask :
         {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
      Router::Table table;
      router(config).route(random_matrix<double>(40, D, 5), {.expert_mask = expert_mask}, table);
      reference::Routing want;
      for (const reference::Row& logits : testing::rows_of(table.logits)) {
        want.push_back(reference::two_level(logits, config));
      }
      EXPECT_TRUE(testing::has_choices(table, want))
          << config.num_groups << ' ' << config.top_groups << ' ' << config.top_k;
    }
  }
}

TEST(TwoLevel, OfOneGroupIsTopKBeforeTheSoftmax) {
  Router::Table table;
  router({1, 1, 3}).route(random_matrix<double>(N, D, 5), {}, table);
  const TopK<double> top_k(E, 3, {.weight = {.source = WeightSource::softmax_of_chosen}});
  LinearRouter<double, TopK<double>> flat(router({1, 1, 3}).gate(), top_k,
                                          {router({1, 1, 3}).params().gate_part(), {}});
  LinearRouter<double, TopK<double>>::Table want;
  flat.route(random_matrix<double>(N, D, 5), {}, want);
  EXPECT_EQ(table.expert, want.expert);
  EXPECT_TRUE(testing::matrix_near(table.weight, want.weight, 1e-14));
}

TEST(TwoLevel, OfAllGroupsAndExpertsIsTheDenseMixture) {
  Router::Table table;
  router({3, 3, 2}).route(random_matrix<double>(N, D, 5), {}, table);
  for (Index t = 0; t < N; ++t) {
    for (Index k = 0; k < E; ++k) {
      EXPECT_NEAR(table.weight(t, k), table.probs(t, table.expert(t, k)), 1e-14);
    }
  }
}

TEST(TwoLevel, GivesWeightsThatSumToOne) {
  for (const TwoLevelConfig& config : all_configs) {
    Router::Table table;
    router(config).route(random_matrix<double>(N, D, 5), {}, table);
    EXPECT_TRUE(
        testing::matrix_near(table.weight.rowwise().sum(), Eigen::VectorXd::Ones(N), 1e-14));
  }
}

TEST(TwoLevel, MatchesCentralDifferences) {
  for (const TwoLevelConfig& config : all_configs) {
    testing::expect_gradients(router(config), random_matrix<double>(N, D, 5));
  }
}

TEST(TwoLevel, KeepsTheContractInALayer) {
  const Router any = router({3, 2, 2});
  testing::expect_same_bits_for_any_threads(any);
  testing::expect_small_batches(any);
  testing::expect_padding_is_no_token(any);
  testing::expect_nan_stays_with_its_token(any);
  testing::expect_no_allocation_in_a_steady_state(any);
}

TEST(TwoLevel, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(E, {.num_groups = 4}); }),
            "TwoLevel: num_groups = 4, expected to divide num_experts = 6");
  EXPECT_EQ(message_of([] { Rule(E, {.num_groups = 2, .top_groups = 3}); }),
            "TwoLevel: top_groups = 3, expected in [1, 2]");
  EXPECT_EQ(message_of([] { Rule(E, {.num_groups = 2, .top_k = 4}); }),
            "TwoLevel: top_k = 4, expected in [1, experts of a group = 3]");
}

}  // namespace
}  // namespace moe::two_level_test
