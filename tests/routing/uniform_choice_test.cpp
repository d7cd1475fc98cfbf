// SPDX-License-Identifier: Apache-2.0
// Random and round-robin choices: against plain loops, how even they are, that the gate learns from
// their weights, and the contract.
#include "moe/routing/uniform_choice.hpp"

#include "moe/reference/uniform_choice.hpp"
#include "rule_checks.hpp"

namespace moe {

template class UniformChoice<float>;

}  // namespace moe

namespace moe::uniform_choice_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = UniformChoice<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TokenRule<Rule, double> && TrainableRule<Rule, double>);

constexpr Index N = 8, D = 4, E = 5;
constexpr UniformOrder orders[] = {UniformOrder::random, UniformOrder::round_robin};

Router router(const UniformChoiceConfig& config) {
  return testing::random_router(D, E, Rule(E, config), 3);
}

TEST(UniformChoice, ChoosesAsPlainLoopsDoWithTheGatesWeights) {
  ExpertMask mask = ExpertMask::Ones(40, E);
  mask.col(1).setZero();
  mask.row(3).setZero();
  mask.row(4).setZero();
  mask(4, 2) = 1;
  for (const UniformOrder order : orders) {
    for (const Index top_k : {1, 2, 5}) {
      const UniformChoiceConfig config{
          .top_k = top_k, .order = order, .weight = {.renormalise = false}};
      Router::Table table;
      router(config).route(random_matrix<double>(40, D, 5), {.expert_mask = &mask, .noise_seed = 7},
                           table);
      reference::Routing want;
      for (Index t = 0; t < 40; ++t) {
        std::vector<reference::Choice> choices;
        const std::vector<std::uint8_t> allowed(&mask(t, 0), &mask(t, 0) + E);
        for (const Index e : reference::uniform_choice(allowed, config, 7, t)) {
          choices.push_back({e, table.probs(t, e)});
        }
        want.push_back(choices);
      }
      EXPECT_TRUE(testing::has_choices(table, want));
    }
  }
}

TEST(UniformChoice, InTurnHasAnEvenLoad) {
  Router::Table table;
  router({.top_k = 2, .order = UniformOrder::round_robin})
      .route(random_matrix<double>(50, D, 5), {}, table);
  for (Index e = 0; e < E; ++e) {
    EXPECT_EQ((table.expert.array() == static_cast<ExpertId>(e)).count(), 20);
  }
}

TEST(UniformChoice, AtRandomHasOneByTheSeedAndNoneOfTheExpertsIsPreferred) {
  Router::Table table, again, other;
  const Matrix<double> x = random_matrix<double>(5000, D, 5);
  const Router drawn = router({.top_k = 2});
  drawn.route(x, {.noise_seed = 7}, table);
  drawn.route(x, {.num_threads = 2, .noise_seed = 7}, again);
  drawn.route(x, {.noise_seed = 8}, other);
  EXPECT_EQ(table.expert, again.expert);
  EXPECT_NE(table.expert, other.expert);
  for (Index e = 0; e < E; ++e) {
    const auto count = (table.expert.array() == static_cast<ExpertId>(e)).count();
    EXPECT_NEAR(static_cast<double>(count) / 10000.0, 0.2, 0.02);
  }
}

TEST(UniformChoice, WeighsEqualExpertsToADenseFeedForward) {
  const Router equal = router({.top_k = 3, .weight = {.renormalise = true}});
  auto layer = testing::layer_of(equal);
  for (auto& expert : layer.experts()) {
    expert.params() = layer.experts()[0].params();
  }
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  Matrix<double> y(N, D), want(N, D);
  decltype(testing::layer_of(equal))::Scratch scratch;
  layer.forward(x, y, scratch, {.noise_seed = 7});
  Expert<double>::Scratch of_expert;
  layer.experts()[0].forward(x, want, of_expert);
  EXPECT_TRUE(testing::matrix_near(y, want, 1e-13));
}

TEST(UniformChoice, TakesTheExpertsThatTheCallGives) {
  Matrix<ExpertId> experts(2, 2);
  experts << 3, none, 1, 0;
  Router::Table table;
  router({}).route(random_matrix<double>(2, D, 5), {.experts = &experts}, table);
  EXPECT_EQ(table.expert, experts);
  router({}).route(random_matrix<double>(2, D, 5), {.top_k = 4}, table);
  EXPECT_EQ(table.top_k(), 4);
}

TEST(UniformChoice, MatchesCentralDifferences) {
  for (const UniformOrder order : orders) {
    for (const auto source :
         {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
      testing::expect_gradients(router({.top_k = 2, .order = order, .weight = {.source = source}}),
                                random_matrix<double>(N, D, 5), {.noise_seed = 7});
    }
  }
}

TEST(UniformChoice, KeepsTheContractInALayer) {
  for (const UniformOrder order : orders) {
    const CallOptions call{.noise_seed = 7};
    const Router any = router({.top_k = 2, .order = order});
    testing::expect_same_bits_for_any_threads(any, call);
    testing::expect_small_batches(any, call);
    testing::expect_padding_is_no_token(any, call, true);
    testing::expect_nan_stays_with_its_token(any, call);
    testing::expect_no_allocation_in_a_steady_state(any, call);
  }
}

TEST(UniformChoice, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(E, {.top_k = 0}); }),
            "UniformChoice: top_k = 0, expected in [1, num_experts = 5]");
  EXPECT_EQ(message_of([] { Rule(E, {.order = static_cast<UniformOrder>(2)}); }),
            "UniformChoice: order = 2, expected one of the enum");
}

TEST(UniformChoice, RefusesWeightsThatTakeABiasOrAScaleOfExpertsWhichItHasNot) {
  for (const WeightConfig& weight : {WeightConfig{.source = WeightSource::biased_score},
                                     WeightConfig{.expert_scale = ExpertScale::fixed},
                                     WeightConfig{.expert_scale = ExpertScale::learned},
                                     WeightConfig{.expert_scale = ExpertScale::learned_for_all}}) {
    EXPECT_EQ(message_of([&] { Rule(E, {.weight = weight}); }),
              "UniformChoice: weight takes a bias or a scale of experts, expected none: it has no "
              "parameters");
  }
}

}  // namespace
}  // namespace moe::uniform_choice_test
