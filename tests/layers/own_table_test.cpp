// SPDX-License-Identifier: Apache-2.0
// What a layer makes of whatever table a router of the user's own writes.
#include <gtest/gtest.h>

#include "moe/layers.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe::own_table_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using M = Matrix<float>;

/// Hands out the table that it holds.
struct Given {
  using Table = RoutingTable<float>;
  Table given;

  Index num_experts() const { return 3; }
  void route(ConstMatrixRef<float>, const CallOptions&, Table& table) const { table = given; }
};
using Layer = MoELayer<float, Given>;

/// Three tokens with two choices each.
Given::Table table_of(std::initializer_list<ExpertId> expert) {
  Given::Table table;
  table.expert = Eigen::Map<const Matrix<ExpertId>>(expert.begin(), 3, 2);
  table.weight = random_matrix<float>(3, 2, 5);
  return table;
}

Layer layer_of(const Given::Table& table, const LayerOptions& options = {}) {
  const MoEConfig config{.d_model = 7, .d_ff = 9, .num_experts = 3, .top_k = 2};
  return Layer(Given{table}, make_experts<float>(config, 1), options);
}

M forward(const Layer& layer) {
  Layer::Scratch scratch;
  M y(3, 7);
  layer.forward(random_matrix<float>(3, 7, 2), y, scratch);
  return y;
}

std::string message_of_forward(const Given::Table& table) {
  M y = M::Constant(3, 7, 5.0F);
  Layer::Scratch scratch;
  const Layer layer = layer_of(table);
  const std::string text =
      message_of([&] { layer.forward(random_matrix<float>(3, 7, 2), y, scratch); });
  EXPECT_TRUE((y.array() == 5.0F).all());
  return text;
}

TEST(OwnTable, WithAnExpertTwiceForATokenComputesItTwice) {
  const Given::Table twice = table_of({1, 1, 0, 2, 2, 0});
  Given::Table first = twice, second = twice;
  first.expert(0, 1) = none;
  second.expert(0, 0) = none;
  const M y = forward(layer_of(twice));
  EXPECT_TRUE(testing::matrix_near(
      M(y.row(0)), M(forward(layer_of(first)).row(0) + forward(layer_of(second)).row(0)), 1e-6));
  EXPECT_TRUE(same_bits(M(y.bottomRows(2)), M(forward(layer_of(first)).bottomRows(2))));
  const Layer limited = layer_of(twice, {.capacity = {.rows = 1}});
  EXPECT_TRUE(same_bits(M(forward(limited).row(0)), M(forward(layer_of(first)).row(0))))
      << "and both take capacity";
}

TEST(OwnTable, WithANaNWeightReachesTheRowOfItsTokenOnly) {
  Given::Table nan = table_of({0, 1, 1, 2, 2, 0});
  const M want = forward(layer_of(nan));
  nan.weight(1, 0) = std::nanf("");
  const M y = forward(layer_of(nan));
  EXPECT_TRUE(y.row(1).array().isNaN().all());
  EXPECT_TRUE(same_bits(M(y.row(0)), M(want.row(0))) && same_bits(M(y.row(2)), M(want.row(2))));
}

TEST(OwnTable, WithAnExpertOutOfRangeOrTooFewWeightsOrTokensIsRefused) {
  EXPECT_EQ(message_of_forward(table_of({0, 1, 3, 2, 2, 0})),
            "RoutingTable: expert of token 1 is 3, expected in [0, num_experts = 3)");
  EXPECT_EQ(message_of_forward(table_of({0, 1, 1, -2, 2, 0})),
            "RoutingTable: expert of token 1 is -2, expected in [0, num_experts = 3)");
  Given::Table table = table_of({0, 1, 1, 2, 2, 0});
  table.weight.resize(3, 1);
  EXPECT_EQ(message_of_forward(table), "RoutingTable: weight is (3, 1), expected (3, 2)");
  table.expert.resize(2, 2);
  EXPECT_EQ(message_of_forward(table), "MoELayer: the router wrote 2 tokens, expected 3");
}

TEST(OwnTable, ThatWasResizedOnTheTapeIsRefusedByBackward) {
  const MoELayer<float> layer =
      testing::make_layer<float>({.d_model = 7, .d_ff = 9, .num_experts = 3, .top_k = 2}, 1);
  const M x = random_matrix<float>(3, 7, 2), dy = random_matrix<float>(3, 7, 3);
  M y(3, 7), dx(3, 7);
  auto grads = layer.zero_grads();
  MoELayer<float>::Tape tape;
  layer.forward(x, y, tape);
  tape.routing.weight.resize(3, 1);
  EXPECT_EQ(message_of([&] { layer.backward(x, dy, tape, dx, grads); }),
            "MoELayer: tape.routing.weight is (3, 1), expected (3, 2)");
}

}  // namespace
}  // namespace moe::own_table_test
