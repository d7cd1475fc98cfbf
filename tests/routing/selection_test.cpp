// SPDX-License-Identifier: Apache-2.0
// Selection by score + bias: the choice is another one, the weights are of the scores alone.
// Selection by logits is tested in router_test, the k best of a row in kernels/topk_test.
#include "moe/routing/selection.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/routing/router.hpp"

namespace moe::selection_test {
namespace {

using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;
using Table = Router<double>::Table;

Matrix<double> row(std::initializer_list<double> values) {
  return Eigen::Map<const Matrix<double>>(values.begin(), 1, static_cast<Index>(values.size()));
}

Matrix<ExpertId> experts(std::initializer_list<ExpertId> values) {
  return Eigen::Map<const Matrix<ExpertId>>(values.begin(), 1, static_cast<Index>(values.size()));
}

/// Routes one token with just these logits, for which the bias of the gate stands.
Table route(const Matrix<double>& logits, const Matrix<double>& selection_bias, Index top_k,
            RouterConfig config, const ExpertMask* mask = nullptr) {
  config.logits.bias = config.selection.bias = true;
  const RouterParams<double> params{{Matrix<double>::Zero(logits.cols(), 1), logits, {}},
                                    {selection_bias}};
  Table table;
  Router<double>(params, top_k, config)
      .route(Matrix<double>::Zero(1, 1), {.expert_mask = mask}, table);
  return table;
}

const double L = std::log(3.0);  // its sigmoid is 3/4

TEST(SelectionBias, ChoosesByScorePlusBiasAndWeighsByTheScore) {
  const Table table = route(row({0, L, -L}), row({0.1, -0.5, 0.6}), 2,
                            {.score = Score::sigmoid, .weight = {.renormalise = false}});
  EXPECT_EQ(table.expert, experts({2, 0})) << "0.85 and 0.6 against 0.25";
  EXPECT_TRUE(matrix_near(table.weight, row({0.25, 0.5}), 1e-15));
  EXPECT_TRUE(matrix_near(table.probs, row({0.5, 0.75, 0.25}), 1e-15));
  EXPECT_EQ(table.logits, row({0, L, -L}));
}

TEST(SelectionBias, GivesTheFirstExpertATie) {
  const Table table = route(row({0, 0, 0}), row({0.25, 0.5, 0.5}), 3, {.score = Score::sigmoid});
  EXPECT_EQ(table.expert, experts({1, 2, 0}));
}

TEST(SelectionBias, NeverChoosesAMaskedExpert) {
  ExpertMask mask = ExpertMask::Ones(1, 3);
  mask(0, 2) = 0;
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const Table table = route(row({0, L, 9}), row({0, 0, 100}), 3, {.score = score}, &mask);
    EXPECT_EQ(table.expert, experts({1, 0, none}));
    EXPECT_EQ(table.weight(0, 2), 0.0);
    EXPECT_EQ(table.probs(0, 2), 0.0);
  }
}

TEST(SelectionBias, RanksANaNBelowEveryNumber) {
  const Table table =
      route(row({std::nan(""), 0, L}), row({9, 0, 0}), 3, {.score = Score::sigmoid});
  EXPECT_EQ(table.expert, experts({2, 1, 0}));
}

TEST(AlwaysChosen, AreLastAndShareTheWeightsOfAToken) {
  const Table table = route(row({0, L, -L, L}), row({0, -0.5, 0}), 2,
                            {.score = Score::sigmoid, .selection = {.always = 1}});
  EXPECT_EQ(table.expert, experts({0, 3})) << "0.5 against 0.25 and 0.25";
  EXPECT_TRUE(matrix_near(table.weight, row({0.4, 0.6}), 1e-15));
}

TEST(AlwaysChosen, AreLeftOutOnlyWhereTheyAreMasked) {
  ExpertMask mask = ExpertMask::Ones(1, 5);
  mask.row(0) << 0, 1, 0, 0, 1;
  const Table table = route(row({9, 0, 9, 9, L}), row({9, 0, 9}), 4,
                            {.score = Score::sigmoid, .selection = {.always = 2}}, &mask);
  EXPECT_EQ(table.expert, experts({1, none, none, 4}));
  EXPECT_TRUE(matrix_near(table.weight, row({0.4, 0, 0, 0.6}), 1e-15));
}

TEST(AlwaysChosen, LeaveACallAtLeastOneChoice) {
  const Router<double> router(3, 6, 4, {.selection = {.always = 2}}, 1);
  const Matrix<double> x = random_matrix<double>(5, 3, 2);
  Table table;
  router.route(x, {.top_k = 3}, table);
  EXPECT_TRUE((table.expert.col(0).array() < 4).all());
  EXPECT_TRUE((table.expert.col(1).array() == 4).all());
  EXPECT_TRUE((table.expert.col(2).array() == 5).all());
  EXPECT_EQ(testing::message_of([&] { router.route(x, {.top_k = 2}, table); }),
            "CallOptions: top_k = 2, expected more than selection.always = 2");
}

TEST(SelectExperts, LeavesThoseThatTheCallGave) {
  const double logits[] = {3.0, 2.0, 1.0};
  ExpertId expert[] = {2, none};
  EXPECT_EQ(select_experts<double>(
                {}, nullptr,
                {.num_experts = 3, .top_k = 2, .logits = logits, .expert = expert, .chosen = true}),
            2);
  EXPECT_EQ(expert[0], 2);
  EXPECT_EQ(expert[1], none);
}

TEST(SelectionBias, OfZeroChoosesAsWithoutIt) {
  for (const Index num_experts : {5, 70}) {
    const Router<double> plain(6, num_experts, 3, {.score = Score::sigmoid}, 1);
    const Router<double> biased(plain.params().weight.cols(), num_experts, 3,
                                {.score = Score::sigmoid, .selection = {.bias = true}}, 1);
    const Matrix<double> x = random_matrix<double>(40, 6, 2);
    Table a, b;
    plain.route(x, {}, a);
    biased.route(x, {}, b);
    EXPECT_EQ(a.expert, b.expert);
    EXPECT_TRUE(same_bits(a.weight, b.weight));
  }
}

TEST(SelectionBias, OfManyExpertsChoosesWhatASortChooses) {
  const Index num_experts = 130, top_k = 9;
  Router<float> router(8, num_experts, top_k,
                       {.score = Score::sigmoid, .selection = {.bias = true}}, 3);
  testing::randomise(router.params(), 4);
  Router<float>::Table table;
  for (const int threads : {1, 3}) {
    detail::with_team(threads, [&] {
      router.route(random_matrix<float>(100, 8, 5), {.num_threads = threads}, table);
    });
    for (Index t = 0; t < 100; ++t) {
      std::vector<ExpertId> order(static_cast<std::size_t>(num_experts));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](ExpertId a, ExpertId b) {
        const auto& bias = router.params().selection_bias;
        return table.probs(t, a) + bias(0, a) > table.probs(t, b) + bias(0, b);
      });
      for (Index k = 0; k < top_k; ++k) {
        EXPECT_EQ(table.expert(t, k), order[static_cast<std::size_t>(k)]) << t << ", " << k;
      }
    }
  }
}

}  // namespace
}  // namespace moe::selection_test
