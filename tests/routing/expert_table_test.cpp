// SPDX-License-Identifier: Apache-2.0
// Selection by table: the experts of an id, their weights by the gate, and every id or table that
// does not fit.
#include "moe/routing/expert_table.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/reference/layer.hpp"

namespace moe::expert_table_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using Table = Router<double>::Table;
using Ids = std::vector<std::int32_t>;

ExpertTable experts(Index rows, std::initializer_list<ExpertId> values) {
  return Eigen::Map<const ExpertTable>(values.begin(), rows,
                                       static_cast<Index>(values.size()) / rows);
}

/// As the hash layers of DeepSeek-V4: the score is sqrt(softplus), the weights are renormalised.
const RouterConfig hash{
    .score = Score::sqrt_softplus, .selection = {.vocabulary = 3}, .weight = {.scale = 1.5}};
const ExpertTable two_of_four = experts(3, {3, 0, 1, 2, 0, 1});

Router<double> router_by_table() {
  return {Router<double>(5, 4, 2, hash, 1).params(), 2, hash, two_of_four};
}

TEST(ExpertTable, GivesATokenTheExpertsOfItsIdInTheirOrderAndTheGateTheirWeights) {
  // The logits are the bias: their scores are 1, 2, 3 and 1/2.
  const auto logit = [](double s) { return std::log(std::exp(s * s) - 1.0); };
  Matrix<double> logits(1, 4);
  logits << logit(1), logit(2), logit(3), logit(0.5);
  RouterConfig config = hash;
  config.logits.bias = true;
  const Router<double> router({{Matrix<double>::Zero(4, 1), logits, {}}, {}}, 2, config,
                              two_of_four);
  const Ids ids{1, 0, 2, 0};
  Table table;
  router.route(Matrix<double>::Zero(4, 1), {.tokens = {.ids = ids}}, table);
  EXPECT_EQ(table.expert, experts(4, {1, 2, 3, 0, 0, 1, 3, 0}));
  Matrix<double> weight(4, 2);
  weight << 0.6, 0.9, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0;
  EXPECT_TRUE(matrix_near(table.weight, weight, 1e-14));
}

TEST(ExpertTable, LeavesOutMaskedExpertsAndPaddingWhoseIdIsNotRead) {
  const Router<double> router = router_by_table();
  ExpertMask mask = ExpertMask::Ones(1, 4);
  mask(0, 0) = 0;
  const Ids ids{0, -7, 1};
  const std::vector<std::uint8_t> padding{0, 1, 0};
  Table table;
  router.route(random_matrix<double>(3, 5, 2),
               {.tokens = {.ids = ids, .padding = padding}, .expert_mask = &mask}, table);
  EXPECT_EQ(table.expert, experts(3, {3, none, none, none, 1, 2}));
  EXPECT_NEAR(table.weight(0, 0), 1.5, 1e-15);
  EXPECT_EQ(table.weight(0, 1), 0.0);
}

TEST(ExpertTable, GivesTheFirstOfARowToACallThatAsksForFewerAndNothingToReplay) {
  const Router<double> router = router_by_table();
  const Ids ids{2, 0};
  const Matrix<double> x = random_matrix<double>(2, 5, 2);
  Table table;
  router.route(x, {.tokens = {.ids = ids}, .top_k = 1}, table);
  EXPECT_EQ(table.expert, experts(2, {0, 3}));
  const Matrix<ExpertId> others = experts(2, {2, 3, 1, 2});
  router.route(x, {.experts = &others}, table);
  EXPECT_EQ(table.expert, others);
}

TEST(ExpertTable, OfALayerIsThatOfTheTwinInPlainLoopsAndStaysInItsCopies) {
  MoEConfig config{.d_model = 5, .d_ff = 3, .num_experts = 4, .top_k = 2, .router = hash};
  const MoELayer<double> layer(config, 3);
  const Matrix<double> x = random_matrix<double>(4, 5, 4);
  ExpertMask mask = ExpertMask::Ones(4, 4);
  mask.row(2) << 1, 0, 1, 0;
  const Ids ids{2, 0, 1, 2};
  const CallOptions call{.tokens = {.ids = ids}, .expert_mask = &mask};
  Matrix<double> y(4, 5), again(4, 5);
  MoELayer<double>::Scratch scratch;
  layer.forward(x, y, scratch, call);
  EXPECT_TRUE(matrix_near(y, reference::forward(layer, x, call), 1e-13));
  const MoELayer<double> copy = layer;
  copy.forward(x, again, scratch, call);
  EXPECT_TRUE(same_bits(y, again));
  EXPECT_EQ(layer.router().cast<float>().rule().table(), layer.router().rule().table());
}

TEST(ExpertTable, IsRefusedWithoutIdsThatFitBeforeATapeIsTouched) {
  const Router<double> router = router_by_table();
  const MoELayer<double> layer(
      {.d_model = 5, .d_ff = 3, .num_experts = 4, .top_k = 2, .router = hash}, 3);
  const Matrix<double> x = random_matrix<double>(2, 5, 2), dy = Matrix<double>::Ones(2, 5);
  const Ids good{2, 0}, high{2, 3}, low{-1, 0};
  MoELayer<double>::Tape tape;
  Matrix<double> y(2, 5), dx(2, 5);
  layer.forward(x, y, tape, {.tokens = {.ids = good}});
  Table table;
  const auto refused = [&](const CallOptions& call) {
    const std::string message = message_of([&] { router.route(x, call, table); });
    EXPECT_EQ(message, message_of([&] { layer.forward(x, y, tape, call); }));
    return message;
  };
  EXPECT_EQ(refused({}),
            "Router: the call has no tokens.ids, expected one for each token, by which the table "
            "of experts goes");
  EXPECT_EQ(refused({.tokens = {.ids = high}}),
            "Router: tokens.ids[1] = 3, expected in [0, vocabulary = 3)");
  EXPECT_EQ(refused({.tokens = {.ids = low}}),
            "Router: tokens.ids[0] = -1, expected in [0, vocabulary = 3)");
  EXPECT_EQ(refused({.tokens = {.ids = good}, .top_k = 3}),
            "Router: top_k of the call = 3, expected at most 2, as the table of experts has");
  auto grads = layer.zero_grads();
  EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
  EXPECT_NO_THROW(router.route(Matrix<double>(0, 5), {}, table)) << "no tokens, no ids";
}

TEST(ExpertTable, HasARowOfDifferentExpertsForEachId) {
  const auto message = [](const ExpertTable& table, Index vocabulary) {
    RouterConfig config = hash;
    config.selection.vocabulary = vocabulary;
    return message_of([&] { TopK<double>(4, 2, config, table); });
  };
  EXPECT_EQ(message(two_of_four, 5), "Router: the table of experts is (3, 2), expected (5, 2)");
  EXPECT_EQ(message(two_of_four, 0),
            "Router: the table of experts is (3, 2), expected none without selection.vocabulary");
  EXPECT_EQ(message(experts(1, {0, 4}), 1),
            "Router: the table of experts has 4 for id 0, expected in [0, num_experts = 4)");
  EXPECT_EQ(message(experts(2, {0, 1, none, 1}), 2),
            "Router: the table of experts has -1 for id 1, expected in [0, num_experts = 4)");
  EXPECT_EQ(message(experts(2, {0, 1, 1, 1}), 2),
            "Router: the table of experts has 1 twice for id 1");
}

TEST(ExpertTable, OfASeedSpreadsIdsOverAllExperts) {
  const Index vocabulary = 4000, num_experts = 10, top_k = 3;
  const ExpertTable table = random_expert_table(vocabulary, num_experts, top_k, 1);
  EXPECT_NO_THROW(check_expert_table(table, vocabulary, num_experts, top_k));
  for (Index e = 0; e < num_experts; ++e) {
    const auto share = (table.array() == static_cast<ExpertId>(e)).count();
    EXPECT_NEAR(static_cast<double>(share), 1200.0, 120.0) << e;
  }
  EXPECT_EQ(table, random_expert_table(vocabulary, num_experts, top_k, 1));
  EXPECT_NE(table, random_expert_table(vocabulary, num_experts, top_k, 2));
  EXPECT_NO_THROW(check_expert_table(random_expert_table(5, 3, 3, 1), 5, 3, 3)) << "all of them";
}

}  // namespace
}  // namespace moe::expert_table_test
