// SPDX-License-Identifier: Apache-2.0
// Sequence-level top-k: what a sequence spends, by hand and against plain loops; gradients and the
// contract.
#include "moe/routing/sequence_top_k.hpp"

#include "moe/reference/sequence_top_k.hpp"
#include "moe/routing/router.hpp"
#include "rule_checks.hpp"

namespace moe {

template class SequenceTopK<float>;

}  // namespace moe

namespace moe::sequence_top_k_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = SequenceTopK<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TableRule<Rule, double> && TrainableRule<Rule, double> && !TokenRule<Rule, double>);

constexpr Index N = 12, D = 4, E = 5;

Router router(const SequenceTopKConfig& config) {
  return testing::random_router(D, E, Rule(E, config), 3);
}

const std::vector<SequenceTopKConfig> all_configs = {
    {.top_k = 1},
    {.top_k = 2, .most = 3},
    {.top_k = 2, .most = 2, .weight = {.renormalise = true}},
    {.top_k = 5},
    {.top_k = 2, .score = Score::sigmoid, .weight = {.renormalise = true, .scale = 2.5}},
};

TEST(SequenceTopK, ChoosesAsPlainLoopsDoWithMasksPaddingAndSequences) {
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask(0, 1) = mask(3, 0) = mask(3, 2) = 0;
  mask.row(4).setZero();
  mask.col(2).setZero();
  const std::vector<std::uint8_t> padding = {0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0};
  const std::vector<Index> ragged = {0, 5, 5, 6, 12};
  for (const SequenceTopKConfig& config : all_configs) {
    for (const ExpertMask* expert_mask :
         {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
      for (const bool padded : {false, true}) {
        const std::span<const std::uint8_t> marks =
            padded ? std::span(padding) : std::span(padding).first(0);
        for (const Tokens& tokens :
             {Tokens{.padding = marks}, Tokens{.sequence_length = N / 3, .padding = marks},
              Tokens{.sequence_offset = ragged, .padding = marks}}) {
          Router::Table table;
          router(config).route(x, {.num_threads = 1, .tokens = tokens, .expert_mask = expert_mask},
                               table);
          EXPECT_TRUE(testing::has_choices(
              table, reference::sequence_top_k(testing::rows_of(table.logits), config, tokens)))
              << config.top_k << padded << tokens.num_sequences(N);
        }
      }
    }
  }
}

TEST(SequenceTopK, SpendsAllChoicesOfASequenceOnSomeTokensMoreThanOnOthers) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    Router::Table table;
    router({.top_k = 2, .most = 4, .score = score})
        .route(random_matrix<double>(N, D, 5), {.tokens = {.sequence_length = N / 2}}, table);
    for (const Index begin : {Index(0), N / 2}) {
      EXPECT_EQ((table.expert.middleRows(begin, N / 2).array() != none).count(), N);
    }
    EXPECT_GT((table.expert.col(2).array() != none).count(), 0);
    EXPECT_GT((table.expert.col(1).array() == none).count(), 0);
  }
}

TEST(SequenceTopK, IsTopKWhereATokenMayHaveNoMoreThanItsShare) {
  const Router by_sequence = router({.top_k = 2, .most = 2});
  const auto by_token =
      testing::random_router(D, E, TopK<double>(E, 2, {.weight = {.renormalise = false}}), 3);
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  Router::Table table, want;
  by_sequence.route(x, {}, table);
  by_token.route(x, {}, want);
  EXPECT_EQ(table.expert, want.expert);
  EXPECT_TRUE(testing::same_bits(table.weight, want.weight));
}

TEST(SequenceTopK, GivesEqualTokensTheirChoicesInOrder) {
  Router same = router({.top_k = 1, .most = 2});
  same.params().weight.setZero();
  same.params().bias.setZero();
  Router::Table table;
  same.route(random_matrix<double>(4, D, 5), {}, table);
  Matrix<ExpertId> want(4, 2);
  want << 0, 1, 0, 1, none, none, none, none;
  EXPECT_EQ(table.expert, want);
}

TEST(SequenceTopK, PutsATokenWithANaNLastAndNothingOfItInOthers) {
  Matrix<double> x = random_matrix<double>(N, D, 5);
  Router::Table table;
  x(4, 0) = std::nan("");
  router({.top_k = 2}).route(x, {}, table);
  EXPECT_TRUE((table.expert.row(4).array() == none).all());
  EXPECT_EQ((table.expert.array() != none).count(), 2 * N);
  EXPECT_TRUE(table.weight.allFinite());
  router({.top_k = 5}).route(x, {}, table);  // who can pay for all takes it, too
  EXPECT_TRUE(table.weight.row(4).array().isNaN().all());
  table.weight.row(4).setZero();
  EXPECT_TRUE(table.weight.allFinite());
}

TEST(SequenceTopK, ChoosesNothingOfABatchOfPaddingOrOfMaskedTokens) {
  const std::vector<std::uint8_t> padding(static_cast<std::size_t>(N), 1);
  const ExpertMask mask = ExpertMask::Zero(1, E);
  for (const CallOptions& call :
       {CallOptions{.tokens = {.padding = padding}}, CallOptions{.expert_mask = &mask}}) {
    Router::Table table;
    router({.top_k = 2}).route(random_matrix<double>(N, D, 5), call, table);
    EXPECT_TRUE((table.expert.array() == none).all());
    EXPECT_TRUE(table.weight.isZero(0));
  }
}

TEST(SequenceTopK, MatchesCentralDifferences) {
  for (const SequenceTopKConfig& config : all_configs) {
    testing::expect_gradients(router(config), random_matrix<double>(N, D, 5), {.num_threads = 1});
  }
  testing::expect_gradients(
      router({.top_k = 2, .most = 4, .weight = {.source = WeightSource::softmax_of_chosen}}),
      random_matrix<double>(N, D, 5), {.num_threads = 1});
}

TEST(SequenceTopK, KeepsTheContractInALayer) {
  const Router two = router({.top_k = 2});
  testing::expect_same_bits_for_any_threads(two);
  testing::expect_same_bits_for_any_threads(two, {.tokens = {.sequence_length = 30}});
  testing::expect_small_batches(two);
  testing::expect_padding_is_no_token(two);
  testing::expect_no_allocation_in_a_steady_state(two);
}

TEST(SequenceTopK, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(E, {.top_k = 3, .most = 2}); }),
            "SequenceTopK: top_k = 3, expected in [1, most = 2]");
  EXPECT_EQ(message_of([] { Rule(E, {.most = 6}); }),
            "SequenceTopK: most = 6, expected in [1, num_experts = 5]");
  EXPECT_EQ(message_of([] { Rule(E, {.score = static_cast<Score>(4)}); }),
            "SequenceTopK: score = 4, expected one of the enum");
}

TEST(SequenceTopK, WantsALeastSumOnlyOfWeightsThatAreNeverNegative) {
  const auto of = [](Score score) {
    return message_of([&] {
      Rule(E,
           {.score = score, .weight = {.renormalise = true, .epsilon_rule = EpsilonRule::least}});
    });
  };
  EXPECT_EQ(of(Score::identity),
            "SequenceTopK: weight.epsilon_rule = least with weights that may be negative, of score "
            "= identity or weight.source = biased_score, expected added");
  EXPECT_EQ(of(Score::sigmoid), "(nothing was thrown)");
}

TEST(SequenceTopK, RefusesWeightsThatTakeABiasOrAScaleOfExpertsWhichItHasNot) {
  for (const WeightConfig& weight : {WeightConfig{.source = WeightSource::biased_score},
                                     WeightConfig{.expert_scale = ExpertScale::fixed},
                                     WeightConfig{.expert_scale = ExpertScale::learned},
                                     WeightConfig{.expert_scale = ExpertScale::learned_for_all}}) {
    EXPECT_EQ(message_of([&] { Rule(E, {.weight = weight}); }),
              "SequenceTopK: weight takes a bias or a scale of experts, expected none: it has no "
              "parameters");
  }
}

}  // namespace
}  // namespace moe::sequence_top_k_test
