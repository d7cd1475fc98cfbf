// SPDX-License-Identifier: Apache-2.0
// A call may set another top-k and another capacity: it is then the call of a layer so configured.
#include <gtest/gtest.h>

#include "moe/layers.hpp"
#include "moe/losses.hpp"
#include "moe/reference.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe::call_overrides_test {
namespace {

using testing::forward;
using testing::make_layer;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using testing::same_grads;
using M = Matrix<float>;

/// A change of a config, and the call that asks the same of a layer without it.
struct Override {
  Index top_k = 2;
  Capacity capacity = {};
  CallOptions call = {};
};

std::vector<Override> overrides() {
  const Capacity loose{.factor = 1.25, .policy = DropPolicy::probability}, rows{.rows = 2};
  return {{.top_k = 1, .capacity = {.factor = 0.75}, .call = {.top_k = 1}},
          {.top_k = 5, .capacity = {.factor = 0.75}, .call = {.top_k = 5}},
          {.capacity = loose, .call = {.capacity = loose}},
          {.capacity = rows, .call = {.tokens = {.sequence_length = 6}, .capacity = rows}},
          {.capacity = {}, .call = {.capacity = Capacity{}}},
          {.top_k = 3, .capacity = loose, .call = {.top_k = 3, .capacity = loose}}};
}

/// D9 F13 E5 K2, and a capacity that drops.
MoEConfig plain() {
  return {.d_model = 9,
          .d_ff = 13,
          .num_experts = 5,
          .top_k = 2,
          .capacity = {.factor = 0.75},
          .shared = SharedExpertConfig{.d_ff = 4}};
}

MoEConfig with(const Override& o) {
  MoEConfig config = plain();
  config.top_k = o.top_k;
  config.capacity = o.capacity;
  return config;
}

/// What backward makes of the losses, too.
template <class Tape>
auto step(const MoELayer<float>& layer, const M& x, Tape& tape, const CallOptions& call) {
  testing::Step<MoELayer<float>, float> s{random_matrix<float>(x.rows(), layer.d_out(), 3),
                                          M(x.rows(), layer.d_out()), M(x.rows(), layer.d_in()),
                                          layer.zero_grads()};
  layer.forward(x, s.y, tape, call);
  layer.backward(x, s.dy, tape, s.dx, s.grads, load_balancing_loss(tape.routing).gradient);
  return s;
}

TEST(TopKAndCapacityOfACall, AreThoseOfALayerSoConfiguredForwardAndBackward) {
  const MoELayer<float> layer = make_layer<float>(plain(), 1);
  const M x = random_matrix<float>(18, 9, 2);
  MoELayer<float>::Tape tape, memory, wanted;
  MoELayer<float>::RecomputingTape recomputing(memory);
  for (const Override& o : overrides()) {
    const MoELayer<float> configured = make_layer<float>(with(o), 1);
    CallOptions without;
    without.tokens = o.call.tokens;
    const auto want = step(configured, x, wanted, without);
    const auto compare = [&](const auto& got) {
      EXPECT_TRUE(same_bits(got.y, want.y) && same_bits(got.dx, want.dx));
      EXPECT_TRUE(same_grads(layer, got.grads, want.grads));
    };
    compare(step(layer, x, tape, o.call));
    compare(step(layer, x, recomputing, o.call));
    EXPECT_EQ(tape.routing.top_k(), o.top_k);
    EXPECT_TRUE(same_bits(forward(layer, x, o.call), want.y));
    EXPECT_TRUE(same_bits(forward(pack<float>(layer), x, o.call),
                          forward(pack<float>(configured), x, without)));
    EXPECT_TRUE(same_bits(forward(pack<bf16>(layer), x, o.call),
                          forward(pack<bf16>(configured), x, without)));
    EXPECT_TRUE(testing::matrix_near(want.y.cast<double>().eval(),
                                     reference::forward(layer, x, o.call), 1e-5));
  }
  EXPECT_TRUE(same_bits(forward(layer, x, {}), forward(make_layer<float>(plain(), 1), x, {})))
      << "and the next call is the layer's own";
}

TEST(TopKAndCapacityOfACall, OutOfRangeAreRefusedAndLeaveTheTapeAsItWas) {
  const MoELayer<float> layer = make_layer<float>(plain(), 1);
  const M x = random_matrix<float>(18, 9, 2), dy = random_matrix<float>(18, 9, 3);
  M y(18, 9), dx(18, 9);
  MoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  const auto message = [&](const CallOptions& call) {
    return message_of([&] { layer.forward(x, y, tape, call); });
  };
  EXPECT_EQ(message({.top_k = 0}), "CallOptions: top_k = 0, expected in [1, num_experts = 5]");
  EXPECT_EQ(message({.top_k = 6}), "CallOptions: top_k = 6, expected in [1, num_experts = 5]");
  EXPECT_EQ(message({.capacity = Capacity{.rows = -1}}),
            "Capacity: rows = -1, expected at least 0");
  EXPECT_EQ(message({.capacity = Capacity{.factor = 1.0, .rows = 1}}),
            "Capacity: factor and rows are both set, expected one");
  Router<float>::Table table;
  EXPECT_EQ(message_of([&] { layer.router().route(x, {.top_k = 6}, table); }),
            "CallOptions: top_k = 6, expected in [1, num_experts = 5]");
  EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
}

/// A rule that always writes two choices.
struct AlwaysTwo {
  using Params = NoParams;
  Index top_k() const { return 2; }
  void route(const Params&, const TokenRoute<float>& token) const {
    write_scores(Score::softmax, token);
    token.expert[0] = 0;
    token.expert[1] = 1;
    token.weight[0] = token.weight[1] = 0.5F;
  }
};
static_assert(TokenRule<AlwaysTwo, float> && !ObeysCall<AlwaysTwo> && ObeysCall<TopK<float>>);

TEST(TopKOfACall, IsRefusedBehindARuleThatDoesNotObeyIt) {
  const LinearGate<float> gate(9, 5, {});
  const GatedRouter<float, LinearGate<float>, AlwaysTwo> router(gate, {},
                                                                {gate.initial_params(1), {}});
  decltype(router)::Table table;
  EXPECT_EQ(message_of([&] { router.route(random_matrix<float>(4, 9, 2), {.top_k = 1}, table); }),
            "Router: the call sets top_k or experts, expected a rule that obeys it");
  const Matrix<ExpertId> experts = Matrix<ExpertId>::Zero(4, 1);
  EXPECT_THROW(router.route(random_matrix<float>(4, 9, 2), {.experts = &experts}, table),
               std::invalid_argument);
}

/// Sends every token to expert 0.
struct FirstExpert {
  using Table = RoutingTable<float>;
  Index num_experts() const { return 5; }
  void route(ConstMatrixRef<float> x, const CallOptions&, Table& table) const {
    table.expert.setZero(x.rows(), 1);
    table.weight.setOnes(x.rows(), 1);
  }
};

TEST(CapacityOfACall, HoldsBehindAnyRouter) {
  using Layer = MoELayer<float, FirstExpert>;
  const Layer layer(FirstExpert{}, make_experts<float>(plain(), 1), {.capacity = {.rows = 1}});
  const M x = random_matrix<float>(18, 9, 2);
  Layer::Scratch scratch;
  layer.route(x, {.capacity = Capacity{.rows = 7}}, scratch);
  EXPECT_EQ(scratch.plan.kept(0), 7);
  layer.route(x, {.capacity = Capacity{}}, scratch);
  EXPECT_EQ(scratch.plan.kept(0), 18);
  layer.route(x, {}, scratch);
  EXPECT_EQ(scratch.plan.kept(0), 1);
}

}  // namespace
}  // namespace moe::call_overrides_test
