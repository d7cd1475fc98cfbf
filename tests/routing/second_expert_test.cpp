// SPDX-License-Identifier: Apache-2.0
// Second-expert policies against plain loops, the frequencies of their draws, gradients with the
// choices held fixed, and the contract.
#include "moe/routing/second_expert.hpp"

#include "moe/reference/second_expert.hpp"
#include "rule_checks.hpp"

namespace moe {

template class SecondExpert<float>;

}  // namespace moe

namespace moe::second_expert_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = SecondExpert<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TokenRule<Rule, double> && TrainableRule<Rule, double>);

constexpr Index N = 8, D = 4, E = 5;

Router router(const SecondExpertConfig& config) {
  return testing::random_router(D, E, Rule(E, config), 3);
}

std::vector<SecondExpertConfig> all_configs() {
  std::vector<SecondExpertConfig> all;
  for (const auto policy : {SecondPolicy::always, SecondPolicy::threshold, SecondPolicy::random,
                            SecondPolicy::sampled}) {
    for (const auto normalise :
         {SecondNormalise::never, SecondNormalise::before, SecondNormalise::after}) {
      for (const bool of_share : {false, true}) {
        all.push_back({policy, 0.3, of_share, normalise});
      }
    }
  }
  return all;
}

/// Of tokens that all have these probabilities.
Router::Table table_of(const SecondExpertConfig& config, const Eigen::RowVectorXd& probs,
                       Index tokens, std::uint64_t seed) {
  Router router = linear_router<double>(1, probs.cols(), Rule(probs.cols(), config), 1);
  router.params().weight = probs.array().log().matrix().transpose();
  Router::Table table;
  router.route(Matrix<double>::Ones(tokens, 1), {.noise_seed = seed}, table);
  return table;
}

TEST(SecondExpert, ChoosesAsPlainLoopsDo) {
  ExpertMask mask = ExpertMask::Ones(40, E);
  mask.col(1).setZero();
  mask.row(3).setZero();
  mask.row(4).setZero();
  mask(4, 2) = 1;
  for (const SecondExpertConfig& config : all_configs()) {
    for (const ExpertMask* expert_mask :
         {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
      for (const auto seed : {std::optional<std::uint64_t>(), std::optional<std::uint64_t>(7)}) {
        Router::Table table;
        router(config).route(random_matrix<double>(40, D, 5),
                             {.expert_mask = expert_mask, .noise_seed = seed}, table);
        reference::Routing want;
        for (const reference::Row& logits : testing::rows_of(table.logits)) {
          want.push_back(
              reference::second_expert(logits, config, seed, static_cast<Index>(want.size())));
        }
        EXPECT_TRUE(testing::has_choices(table, want));
      }
    }
  }
}

TEST(SecondExpert, IsKeptWithTwiceItsShareInGShard) {
  const Eigen::RowVectorXd probs = (Eigen::RowVectorXd(3) << 0.1, 0.6, 0.3).finished();
  const Router::Table table = table_of({}, probs, 4000, 11);
  const auto kept = static_cast<double>((table.expert.col(1).array() == 2).count());
  EXPECT_NEAR(kept / 4000.0, 2.0 / 3.0, 0.03);
  EXPECT_TRUE((table.expert.col(0).array() == 1).all());
  EXPECT_TRUE(((table.weight.col(0).array() - 2.0 / 3.0).abs() < 1e-12).all());
}

TEST(SecondExpert, IsSampledByTheProbabilitiesOfTheOthers) {
  const Eigen::RowVectorXd probs = (Eigen::RowVectorXd(4) << 0.15, 0.5, 0.3, 0.05).finished();
  const Router::Table table = table_of({.policy = SecondPolicy::sampled}, probs, 4000, 11);
  const double want[] = {0.3, 0.0, 0.6, 0.1};
  for (Index e = 0; e < 4; ++e) {
    const auto found =
        static_cast<double>((table.expert.col(1).array() == static_cast<ExpertId>(e)).count());
    EXPECT_NEAR(found / 4000.0, want[e], 0.03) << e;
  }
}

TEST(SecondExpert, IsAlwaysTakenInEvaluationButByAThreshold) {
  for (const SecondExpertConfig& config : all_configs()) {
    Router::Table table;
    router(config).route(random_matrix<double>(N, D, 5), {}, table);
    EXPECT_EQ((table.expert.col(1).array() != none).all(),
              config.policy != SecondPolicy::threshold);
  }
}

TEST(SecondExpert, MatchesCentralDifferences) {
  for (const SecondExpertConfig& config : all_configs()) {
    testing::expect_gradients(router(config), random_matrix<double>(N, D, 5), {.noise_seed = 7});
  }
}

TEST(SecondExpert, KeepsTheContractInALayer) {
  for (const auto policy : {SecondPolicy::random, SecondPolicy::sampled}) {
    const CallOptions call{.noise_seed = 7};
    testing::expect_same_bits_for_any_threads(router({.policy = policy}), call);
    testing::expect_small_batches(router({.policy = policy}), call);
    testing::expect_padding_is_no_token(router({.policy = policy}), call, true);
    testing::expect_padding_is_no_token(router({.policy = policy}));
    testing::expect_nan_stays_with_its_token(router({.policy = policy}), call);
    testing::expect_no_allocation_in_a_steady_state(router({.policy = policy}), call);
  }
}

TEST(SecondExpert, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(1, {}); }), "SecondExpert: num_experts = 1, expected at least 2");
  EXPECT_EQ(message_of([] { Rule(E, {.threshold = 0.0}); }),
            "SecondExpert: threshold = 0, expected in (0, 1]");
  EXPECT_EQ(message_of([] { Rule(E, {.policy = static_cast<SecondPolicy>(4)}); }),
            "SecondExpert: policy = 4, expected one of the enum");
  EXPECT_EQ(message_of([] { Rule(E, {.normalise = static_cast<SecondNormalise>(3)}); }),
            "SecondExpert: normalise = 3, expected one of the enum");
}

}  // namespace
}  // namespace moe::second_expert_test
