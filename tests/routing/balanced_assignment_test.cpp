// SPDX-License-Identifier: Apache-2.0
// Balanced assignment: the largest sum of all equal ways, by trying them; equal sizes of large
// batches; gradients and the contract.
#include "moe/routing/balanced_assignment.hpp"

#include "moe/reference/balanced_assignment.hpp"
#include "rule_checks.hpp"

namespace moe {

template class BalancedAssignment<float>;

}  // namespace moe

namespace moe::balanced_assignment_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = BalancedAssignment<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TableRule<Rule, double> && TrainableRule<Rule, double> && !TokenRule<Rule, double>);

constexpr Index D = 4, E = 3;

Router router(Index num_experts = E, std::uint64_t seed = 3) {
  return testing::random_router(D, num_experts, Rule({}), seed);
}

TEST(BalancedAssignment, IsTheBestOfAllThatAreEqual) {
  for (Index tokens = 1; tokens <= 9; ++tokens) {
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      Router::Table table;
      router(E, seed).route(random_matrix<double>(tokens, D, seed + 50), {.noise_seed = 1}, table);
      const std::vector<Index> want =
          reference::balanced_assignment(testing::rows_of(table.logits));
      for (Index t = 0; t < tokens; ++t) {
        EXPECT_EQ(table.expert(t, 0), want[static_cast<std::size_t>(t)])
            << "token " << t << " of " << tokens << ", seed " << seed;
        EXPECT_NEAR(table.weight(t, 0), reference::sigmoid(table.logits(t, table.expert(t, 0))),
                    1e-15);
      }
    }
  }
}

TEST(BalancedAssignment, IsTheBestWithMasks) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    ExpertMask mask = ExpertMask::Ones(6, E);
    mask(0, seed % 3) = mask(3, (seed + 1) % 3) = mask(3, seed % 3) = mask(5, seed % 3) = 0;
    Router::Table table;
    router(E, seed).route(random_matrix<double>(6, D, seed + 50),
                          {.expert_mask = &mask, .noise_seed = 1}, table);
    const std::vector<Index> want = reference::balanced_assignment(testing::rows_of(table.logits));
    for (Index t = 0; t < 6; ++t) {
      EXPECT_EQ(table.expert(t, 0), want[static_cast<std::size_t>(t)]) << seed << ' ' << t;
    }
  }
}

TEST(BalancedAssignment, GivesEveryExpertOfEverySequenceEquallyMany) {
  Router::Table table;
  const std::vector<Index> offset = {0, 100, 100, 163, 200};
  std::vector<std::uint8_t> padding(200, 0);
  padding[0] = padding[150] = 1;
  CallOptions call{.noise_seed = 1};
  call.tokens.sequence_offset = offset;
  call.tokens.padding = padding;
  router(8).route(random_matrix<double>(200, D, 5), call, table);
  for (std::size_t b = 1; b < offset.size(); ++b) {
    const auto rows = table.expert.middleRows(offset[b - 1], offset[b] - offset[b - 1]).array();
    const Index tokens = (rows != none).count();
    for (Index e = 0; e < 8; ++e) {
      const Index size = (rows == static_cast<ExpertId>(e)).count();
      EXPECT_TRUE(size == tokens / 8 || size == (tokens + 7) / 8) << b << ' ' << size;
    }
  }
  EXPECT_EQ((table.expert.array() == none).count(), 2);
}

TEST(BalancedAssignment, OfEqualLogitsFillsTheExpertsInOrder) {
  Router same = router();
  same.params().weight.setZero();
  same.params().bias.setZero();
  Router::Table table;
  same.route(random_matrix<double>(6, D, 5), {.noise_seed = 1}, table);
  EXPECT_EQ(table.expert, (Matrix<ExpertId>(6, 1) << 0, 0, 1, 1, 2, 2).finished());
}

TEST(BalancedAssignment, GivesATokenWithoutAPlaceNoExpert) {
  ExpertMask mask = ExpertMask::Zero(6, E);
  mask.col(1).setOnes();
  mask.row(5).setZero();
  Router::Table table;
  router().route(random_matrix<double>(6, D, 5), {.expert_mask = &mask, .noise_seed = 1}, table);
  EXPECT_EQ((table.expert.array() == 1).count(), 2);
  EXPECT_EQ((table.expert.array() == none).count(), 4);
  EXPECT_TRUE(table.weight.allFinite());
}

TEST(BalancedAssignment, InEvaluationIsTheBestExpertOfEachToken) {
  Router::Table table;
  router().route(random_matrix<double>(30, D, 5), {}, table);
  for (Index t = 0; t < 30; ++t) {
    Index best = 0;
    table.logits.row(t).maxCoeff(&best);
    EXPECT_EQ(table.expert(t, 0), best);
  }
}

TEST(BalancedAssignment, TakesNaNAndInfinityAndKeepsTheBalance) {
  Matrix<double> x = random_matrix<double>(9, D, 5);
  x(2, 0) = std::nan("");
  x(4, 1) = std::numeric_limits<double>::infinity();
  Router::Table table;
  router().route(x, {.noise_seed = 1}, table);
  for (Index e = 0; e < E; ++e) {
    EXPECT_EQ((table.expert.array() == static_cast<ExpertId>(e)).count(), 3);
  }
  EXPECT_TRUE(std::isnan(table.weight(2, 0)) && std::isnan(table.weight(4, 0)));
  EXPECT_EQ(table.weight.array().isNaN().count(), 2);
}

TEST(BalancedAssignment, MatchesCentralDifferences) {
  testing::expect_gradients(router(), random_matrix<double>(8, D, 5), {.noise_seed = 1});
  testing::expect_gradients(router(), random_matrix<double>(8, D, 5));
}

TEST(BalancedAssignment, KeepsTheContractInALayer) {
  const CallOptions call{.noise_seed = 1};
  testing::expect_same_bits_for_any_threads(router(7), call);
  testing::expect_small_batches(router(), call);
  testing::expect_padding_is_no_token(router(), call);
  testing::expect_nan_stays_with_its_token(router());
  testing::expect_no_allocation_in_a_steady_state(router(), call);
}

}  // namespace
}  // namespace moe::balanced_assignment_test
