// SPDX-License-Identifier: Apache-2.0
// Sinkhorn: its choices against plain loops, the balance that it makes, gradients and the contract.
#include "moe/routing/sinkhorn.hpp"

#include "moe/reference/sinkhorn.hpp"
#include "rule_checks.hpp"

namespace moe {

template class Sinkhorn<float>;

}  // namespace moe

namespace moe::sinkhorn_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using Rule = Sinkhorn<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TableRule<Rule, double> && TrainableRule<Rule, double> && !TokenRule<Rule, double>);

constexpr Index N = 60, D = 4, E = 5;

Router router(Index top_k, bool in_evaluation = false) {
  return testing::random_router(D, E, Rule(E, {.top_k = top_k, .in_evaluation = in_evaluation}), 3);
}

std::vector<Index> loads(const Router::Table& table) {
  std::vector<Index> load;
  for (Index e = 0; e < E; ++e) {
    load.push_back((table.expert.array() == static_cast<ExpertId>(e)).count());
  }
  return load;
}

TEST(Sinkhorn, ChoosesAsPlainLoopsDoSequenceBySequence) {
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 3) = 0;
  std::vector<std::uint8_t> padding(static_cast<std::size_t>(N), 0);
  padding[2] = padding[59] = 1;
  for (const Index top_k : {1, 2}) {
    for (const ExpertMask* expert_mask :
         {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
      for (const Index length : {N, N / 3}) {
        CallOptions call{.expert_mask = expert_mask, .noise_seed = 7};
        call.tokens = {.sequence_length = length, .padding = padding};
        Router::Table table;
        router(top_k).route(random_matrix<double>(N, D, 5), call, table);
        reference::Routing want(static_cast<std::size_t>(N));
        for (Index begin = 0; begin < N; begin += length) {
          std::vector<reference::Row> members;
          std::vector<std::size_t> rows;
          for (Index t = begin; t < begin + length; ++t) {
            if (!call.tokens.is_padding(t)) {
              members.push_back(reference::row_of(table.logits, t));
              rows.push_back(static_cast<std::size_t>(t));
            }
          }
          const reference::Routing choices =
              reference::sinkhorn_choices(members, router(top_k).rule().config());
          for (std::size_t i = 0; i < rows.size(); ++i) {
            want[rows[i]] = choices[i];
          }
        }
        EXPECT_TRUE(testing::has_choices(table, want)) << top_k << ' ' << length;
      }
    }
  }
}

TEST(Sinkhorn, OfPlainLoopsHasEqualSumsOfTokensAndOfExperts) {
  Router::Table table;
  router(1).route(random_matrix<double>(N, D, 5), {}, table);
  const auto plan = reference::sinkhorn(testing::rows_of(table.logits), {.tolerance = 1e-9});
  for (std::size_t e = 0; e < static_cast<std::size_t>(E); ++e) {
    double sum = 0.0;
    for (const reference::Row& row : plan) {
      sum += row[e];
    }
    EXPECT_NEAR(sum, 1.0 / E, 1e-5);
  }
}

TEST(Sinkhorn, InTrainingIsMoreEvenThanInEvaluation) {
  Router uneven = router(1);
  uneven.params().bias(0, 2) += 2.0;
  Router::Table trained, evaluated;
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  uneven.route(x, {.noise_seed = 7}, trained);
  uneven.route(x, {}, evaluated);
  const auto most = [](const std::vector<Index>& load) {
    return *std::max_element(load.begin(), load.end());
  };
  EXPECT_LT(most(loads(trained)), N / E + 8);
  EXPECT_GT(most(loads(evaluated)), most(loads(trained)));
  EXPECT_TRUE(same_bits(trained.probs, evaluated.probs));
}

TEST(Sinkhorn, InEvaluationIsTopKUnlessAskedForBalance) {
  Router::Table table, balanced, trained;
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  router(2).route(x, {}, table);
  router(2, true).route(x, {}, balanced);
  router(2).route(x, {.noise_seed = 3}, trained);
  EXPECT_EQ(balanced.expert, trained.expert);
  for (Index t = 0; t < N; ++t) {
    ExpertId best[2];
    kernels::top_k(&table.logits.coeffRef(t, 0), nullptr, E, 2, best);
    EXPECT_EQ(table.expert(t, 0), best[0]);
    EXPECT_EQ(table.expert(t, 1), best[1]);
  }
}

TEST(Sinkhorn, LeavesATokenWithANaNOutOfTheBalance) {
  Matrix<double> x = random_matrix<double>(N, D, 5), rest = x.bottomRows(N - 1);
  x(0, 0) = std::nan("");
  Router::Table table, want;
  router(2).route(x, {.noise_seed = 7}, table);
  router(2).route(rest, {.noise_seed = 7}, want);
  EXPECT_TRUE(table.weight.row(0).array().isNaN().all());
  EXPECT_EQ(table.expert.bottomRows(N - 1), want.expert);
}

TEST(Sinkhorn, MatchesCentralDifferences) {
  for (const Index top_k : {1, 2}) {
    testing::expect_gradients(router(top_k), random_matrix<double>(8, D, 5), {.noise_seed = 7});
    testing::expect_gradients(router(top_k), random_matrix<double>(8, D, 5));
  }
}

TEST(Sinkhorn, KeepsTheContractInALayer) {
  const CallOptions call{.noise_seed = 7};
  testing::expect_same_bits_for_any_threads(router(2), call);
  testing::expect_small_batches(router(1), call);
  testing::expect_padding_is_no_token(router(2), call);
  testing::expect_nan_stays_with_its_token(router(2));
  testing::expect_no_allocation_in_a_steady_state(router(2), call);
}

TEST(Sinkhorn, RefusesValuesOutOfTheirRange) {
  EXPECT_EQ(message_of([] { Rule(E, {.top_k = 6}); }),
            "Sinkhorn: top_k = 6, expected in [1, num_experts = 5]");
  EXPECT_EQ(message_of([] { Rule(E, {.tolerance = 0.0}); }),
            "Sinkhorn: tolerance = 0, expected positive and finite");
  EXPECT_EQ(message_of([] { Rule(E, {.most_rounds = 0}); }),
            "Sinkhorn: most_rounds = 0, expected at least 1");
}

}  // namespace
}  // namespace moe::sinkhorn_test
