// SPDX-License-Identifier: Apache-2.0
// Expert choice: who is taken, against plain loops; its gradients; and what it is for, a load that
// is the same for every expert.
#include "moe/routing/expert_choice.hpp"

#include "moe/reference/expert_choice.hpp"
#include "rule_checks.hpp"

namespace moe {

template class ExpertChoice<float>;

}  // namespace moe

namespace moe::expert_choice_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using Rule = ExpertChoice<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TableRule<Rule, double> && TrainableRule<Rule, double> && !TokenRule<Rule, double>);
static_assert(TrainableRouter<Router, double>);

constexpr Index N = 12, D = 4, E = 3;

Router router(double capacity_factor) {
  return testing::random_router(D, E, Rule({.capacity_factor = capacity_factor}), 3);
}

TEST(ExpertChoice, GivesEveryExpertEquallyManyTokens) {
  for (const double factor : {0.1, 1.0, 1.3, 2.0, 9.0}) {
    Router::Table table;
    router(factor).route(random_matrix<double>(N, D, 5), {}, table);
    const Index rows = std::min<Index>(N, static_cast<Index>(std::ceil(factor * N / E)));
    for (Index e = 0; e < E; ++e) {
      EXPECT_EQ((table.expert.array() == static_cast<ExpertId>(e)).count(), rows) << factor;
    }
  }
}

TEST(ExpertChoice, ChoosesAsPlainLoopsDoWithMasksPaddingAndSequences) {
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask(0, 1) = mask(3, 0) = mask(3, 2) = 0;
  mask.row(4).setZero();
  mask.col(2).setZero();
  const std::vector<std::uint8_t> padding = {0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0};
  const std::vector<Index> offset = {0, 5, 5, 6, 12};
  for (const double factor : {0.5, 1.0, 1.7, 3.0}) {
    for (const bool masked : {false, true}) {
      for (const bool padded : {false, true}) {
        for (const bool sequences : {false, true}) {
          CallOptions call{.expert_mask = masked ? &mask : nullptr};
          call.tokens.padding = padded ? std::span(padding) : std::span<const std::uint8_t>();
          call.tokens.sequence_offset = sequences ? std::span(offset) : std::span<const Index>();
          Router::Table table;
          router(factor).route(x, call, table);
          EXPECT_TRUE(testing::has_choices(
              table, reference::expert_choice(testing::rows_of(table.logits), factor, call.tokens)))
              << factor << masked << padded << sequences;
        }
      }
    }
  }
}

TEST(ExpertChoice, HasAsManyChoicesInTheTableAsATokenHasAtMost) {
  Router::Table table;
  router(1.0).route(random_matrix<double>(N, D, 5), {}, table);
  Index most = 0;
  for (Index t = 0; t < N; ++t) {
    const Index used = (table.expert.row(t).array() != none).count();
    EXPECT_TRUE((table.expert.row(t).head(used).array() != none).all());
    most = std::max(most, used);
  }
  EXPECT_EQ(table.top_k(), most);
}

TEST(ExpertChoice, TakesTheFirstOfEqualTokensAndANaNLast) {
  Router same = router(0.5);
  same.params().weight.setZero();
  Router::Table table;
  Matrix<double> x = random_matrix<double>(N, D, 5);
  same.route(x, {}, table);
  for (Index t = 0; t < N; ++t) {
    EXPECT_EQ(table.expert(t, 0) != none, t < 2) << t;
  }
  x(0, 0) = std::nan("");
  same.route(x, {}, table);
  for (Index t = 0; t < N; ++t) {
    EXPECT_EQ(table.expert(t, 0) != none, t == 1 || t == 2) << t;
  }
  Router all = router(E);
  all.route(x, {}, table);
  EXPECT_TRUE(table.weight.row(0).array().isNaN().all());
  EXPECT_TRUE(table.weight.bottomRows(N - 1).allFinite());
}

TEST(ExpertChoice, OfTheWholeBatchIsTheDenseMixture) {
  const Router dense = router(E);
  const auto layer = testing::layer_of(dense);
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  Matrix<double> y(N, D), want(N, D), out(1, D);
  decltype(testing::layer_of(dense))::Scratch scratch;
  layer.forward(x, y, scratch);
  for (Index t = 0; t < N; ++t) {
    want.row(t).setZero();
    for (Index e = 0; e < E; ++e) {
      const auto& expert = layer.experts()[static_cast<std::size_t>(e)];
      const reference::Row row =
          reference::expert(expert.params(), expert.config(), reference::row_of(x, t));
      want.row(t) +=
          scratch.routing.probs(t, e) * Eigen::Map<const Eigen::RowVectorXd>(row.data(), D);
    }
  }
  EXPECT_TRUE(testing::matrix_near(y, want, 1e-13));
}

TEST(ExpertChoice, MatchesCentralDifferences) {
  for (const double factor : {0.7, 1.5, 3.0}) {
    testing::expect_gradients(router(factor), random_matrix<double>(N, D, 5));
  }
}

TEST(ExpertChoice, KeepsTheContractInALayer) {
  testing::expect_same_bits_for_any_threads(router(2.0));
  testing::expect_same_bits_for_any_threads(router(2.0), {.tokens = {.sequence_length = 30}});
  testing::expect_small_batches(router(1.0));
  testing::expect_padding_is_no_token(router(1.0));
  testing::expect_no_allocation_in_a_steady_state(router(1.5));
}

TEST(ExpertChoice, RefusesACapacityFactorThatIsNotPositive) {
  EXPECT_EQ(message_of([] { Rule({.capacity_factor = 0.0}); }),
            "ExpertChoice: capacity_factor = 0, expected positive and finite");
  EXPECT_NE(message_of([] { Rule({.capacity_factor = std::nan("")}); }), "(nothing was thrown)");
  Router::Table table;
  EXPECT_EQ(
      message_of([&] { router(1.0).route(random_matrix<double>(N, D, 5), {.top_k = 1}, table); }),
      "Router: the call sets top_k or experts, expected a rule that obeys it");
}

}  // namespace
}  // namespace moe::expert_choice_test
