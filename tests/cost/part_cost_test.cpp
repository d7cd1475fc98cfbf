// SPDX-License-Identifier: Apache-2.0
// What single parts state that they cost, against parts that count what they do, and against the
// tensors that they have.
#include "moe/cost/part_cost.hpp"

#include <gtest/gtest.h>

#include "../support/counting_scalar.hpp"
#include "../support/random_matrix.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routing/cosine_gate.hpp"
#include "moe/routing/dynamic_top_k.hpp"
#include "moe/routing/linear_router.hpp"
#include "moe/routing/norm_gate.hpp"
#include "moe/routing/relu_routing.hpp"
#include "moe/routing/sequence_top_k.hpp"
#include "moe/routing/state_gate.hpp"
#include "moe/routing/top_tokens.hpp"
#include "moe/routing/two_layer_gate.hpp"
#include "moe/routing/two_level.hpp"
#include "moe/routing/uniform_choice.hpp"
#include "moe/routing/unit_gate.hpp"

namespace moe::part_cost_test {
namespace {

using testing::count_flops;
using testing::Counting;
using testing::random_matrix;

constexpr Index D = 5, E = 4, H = 3;

/// Calls f(gate) for a gate of each kind, in T.
template <class T, class F>
void for_each_gate(F&& f) {
  for (const LogitsConfig& config :
       {LogitsConfig{}, LogitsConfig{.bias = true}, LogitsConfig{.bias = true, .softcap = 2.0}}) {
    f(LinearGate<T>(D, E, config));
    f(TwoLayerGate<T>(D, H, E, config));
    for (const bool scale : {false, true}) {
      f(NormGate<T>(D, E, config, {.scale = scale, .factor = 0.5}));
    }
  }
  for (const bool bias : {false, true}) {
    f(CosineGate<T>(D, E, {.width = H, .bias = bias}));
  }
  f(UnitGate<T>(D, E, {}));
}

TEST(Flops, OfGatesAreThoseThatTheyPerform) {
  for_each_gate<Counting>([](const auto& gate) {
    using Gate = std::decay_t<decltype(gate)>;
    for (const Index tokens : {0, 1, 7}) {
      const auto x = random_matrix<Counting>(tokens, D, 1);
      const typename Gate::Params params = gate.initial_params(2);
      typename Gate::Params grads = zeros_like(params);
      typename Gate::Table table;
      EXPECT_EQ(gate.forward_flops(tokens).total(),
                count_flops([&] { gate.forward(params, x, {}, table); }));
      RoutingGradient<Counting> gradient;
      gradient.logits = random_matrix<Counting>(tokens, E, 3);
      Matrix<Counting> dx(tokens, D);
      EXPECT_EQ(gate.backward_flops(tokens).total(), count_flops([&] {
                  gate.backward_input(params, x, table, gradient, dx);
                  gate.backward_params(params, x, table, gradient, grads);
                }))
          << tokens;
    }
  });
}

TEST(Flops, InProductsOfAGateAreTwoForEachMultiplyAddThatItStates) {
  for_each_gate<float>([](const auto& gate) {
    EXPECT_EQ(gate.forward_flops(7).matmul, 2.0 * gate.multiply_adds(7));
    EXPECT_EQ(gate.backward_flops(7).matmul, 4.0 * gate.multiply_adds(7));
  });
}

/// Compares what a router of the rule states with what it performs.
template <class Rule>
void expect_flops_of_rule(Rule rule) {
  const auto router = linear_router<Counting>(D, E, std::move(rule), 1);
  for (const Index tokens : {1, 8}) {
    const auto x = random_matrix<Counting>(tokens, D, 2);
    typename decltype(router)::Table table;
    const CallOptions call{.tokens = {.sequence_length = tokens / 2}};
    EXPECT_EQ(router.forward_flops(tokens).total(),
              count_flops([&] { router.route(x, call, table); }));
    RoutingGradient<Counting> gradient;
    gradient.weight = random_matrix<Counting>(tokens, table.top_k(), 3);
    Matrix<Counting> dx(tokens, D);
    auto grads = zero_grads_of(router);
    EXPECT_EQ(router.backward_flops(tokens).total(),
              count_flops([&] { router.backward(x, table, gradient, dx, grads); }));
  }
}

TEST(Flops, OfRulesAreThoseThatTheyPerform) {
  for (const WeightConfig& weight :
       {WeightConfig{.renormalise = false}, WeightConfig{.renormalise = true, .scale = 2.5},
        WeightConfig{.source = WeightSource::softmax_of_chosen},
        WeightConfig{.source = WeightSource::one}}) {
    expect_flops_of_rule(UniformChoice<Counting>(E, {.top_k = 2, .weight = weight}));
    for (const Score score : {Score::softmax, Score::sigmoid}) {
      expect_flops_of_rule(
          SequenceTopK<Counting>(E, {.top_k = 2, .score = score, .weight = weight}));
      expect_flops_of_rule(
          SequenceTopK<Counting>(E, {.top_k = 2, .most = 3, .score = score, .weight = weight}));
    }
  }
}

/// Compares what a router states of the call that wrote a table with what it performs.
template <class Rule>
void expect_flops_of_table(Rule rule) {
  const auto router = linear_router<Counting>(D, E, std::move(rule), 1);
  for (const Index tokens : {0, 1, 9}) {
    const auto x = random_matrix<Counting>(tokens, D, 2);
    typename decltype(router)::Table table;
    const auto forward = count_flops([&] { router.route(x, {}, table); });
    EXPECT_EQ(router.forward_flops(table).total(), forward);
    RoutingGradient<Counting> gradient;
    gradient.weight = random_matrix<Counting>(tokens, table.top_k(), 3);
    Matrix<Counting> dx(tokens, D);
    auto grads = zero_grads_of(router);
    EXPECT_EQ(router.backward_flops(table).total(),
              count_flops([&] { router.backward(x, table, gradient, dx, grads); }));
  }
}

TEST(Flops, OfRulesThatChooseAsManyExpertsAsATokenNeedsAreThoseOfTheirTable) {
  for (const WeightConfig& weight :
       {WeightConfig{.renormalise = false}, WeightConfig{.renormalise = true, .scale = 2.5},
        WeightConfig{.source = WeightSource::softmax_of_chosen}}) {
    for (const Index least : {1, 2}) {
      for (const Index most : {3, 4}) {
        expect_flops_of_table(DynamicTopK<Counting>(
            E, {.top_p = 0.6, .least = least, .most = most, .weight = weight}));
        expect_flops_of_table(DynamicTopK<Counting>(
            E, {.relative = 0.5, .least = least, .most = most, .weight = weight}));
        expect_flops_of_table(DynamicTopK<Counting>(
            E, {.top_p = 0.8, .relative = 0.3, .least = least, .most = most, .weight = weight}));
      }
    }
  }
  expect_flops_of_table(ReluRouting<Counting>(E));
  expect_flops_of_table(TopK<Counting>(E, 2, {}));
}

TEST(Flops, OfAGateWithAStateAreThoseThatItPerforms) {
  for (const bool takes_state : {false, true}) {
    const StateGate<Counting> gate(D, E, {.d_state = H, .takes_state = takes_state});
    for (const Index tokens : {0, 1, 7}) {
      const auto x = random_matrix<Counting>(tokens, gate.d_model(), 1);
      const auto params = gate.initial_params(2);
      auto grads = zeros_like(params);
      StateGate<Counting>::Table table;
      EXPECT_EQ(gate.forward_flops(tokens).total(),
                count_flops([&] { gate.forward(params, x, {}, table); }));
      RoutingGradient<Counting> gradient;
      gradient.logits = random_matrix<Counting>(tokens, E, 3);
      gradient.state = random_matrix<Counting>(tokens, H, 4);
      Matrix<Counting> dx(tokens, gate.d_model());
      EXPECT_EQ(gate.backward_flops(tokens).total(), count_flops([&] {
                  gate.backward_input(params, x, table, gradient, dx);
                  gate.backward_params(params, x, table, gradient, grads);
                }))
          << tokens;
    }
    const StateGate<float> floats(D, E, {.d_state = H, .takes_state = takes_state});
    EXPECT_EQ(floats.forward_flops(7).matmul, 2.0 * floats.multiply_adds(7));
  }
}

TEST(Flops, OfARouterAreThoseOfItsGateAndItsRule) {
  for_each_gate<Counting>([](const auto& gate) {
    using Gate = std::decay_t<decltype(gate)>;
    const RouterConfig config{.selection = {.bias = true}, .weight = {.scale = 2.5}};
    const TopK<Counting> rule(E, 2, config);
    const GatedRouter<Counting, Gate, TopK<Counting>> router(
        gate, rule, {gate.initial_params(1), rule.initial_params()});
    const auto x = random_matrix<Counting>(7, D, 2);
    typename Gate::Table table;
    EXPECT_EQ(router.forward_flops(7).total(), count_flops([&] { router.route(x, {}, table); }));
    RoutingGradient<Counting> gradient;
    gradient.weight = random_matrix<Counting>(7, 2, 3);
    Matrix<Counting> dx(7, D);
    auto grads = zero_grads_of(router);
    EXPECT_EQ(router.backward_flops(7).total(),
              count_flops([&] { router.backward(x, table, gradient, dx, grads); }));
  });
}

static_assert(StatesFlops<Router<float>> && StatesBackwardFlops<Router<float>>);
static_assert(!StatesFlops<LinearRouter<float, TwoLevel<float>>>);  // depends on what is chosen

TEST(Parameters, OfGatesAreThoseThatTheyBeginWith) {
  for_each_gate<float>([](const auto& gate) {
    using Params = typename std::decay_t<decltype(gate)>::Params;
    const Params params = gate.initial_params(1);
    Index size = 0;
    Params::for_each([&](std::string_view, const Matrix<float>& t) { size += t.size(); }, params);
    EXPECT_EQ(parameters(gate), size);
    EXPECT_GE(parameters(gate), E * H);
  });
  EXPECT_EQ(parameters(NormGate<float>(D, E, {.bias = true}, {})), E * D + E + D);
  EXPECT_EQ(parameters(TwoLayerGate<float>(D, H, E, {.bias = true})), H * D + H + E * H + E);
  EXPECT_EQ(parameters(CosineGate<float>(D, E, {.width = H})), H * D + H + E * H + 1);
  EXPECT_EQ(parameters(UnitGate<float>(D, E, {})), E * D + 1);
}

TEST(Parameters, OfALayerAndItsPartsAreThoseOfItsConfig) {
  for (const bool norm : {false, true}) {
    const MoEConfig config{.d_model = 5,
                           .d_ff = 3,
                           .num_experts = 4,
                           .top_k = 2,
                           .router = {.logits = {.bias = true}, .selection = {.bias = true}},
                           .shared = SharedExpertConfig{.d_ff = 6},
                           .latent = LatentConfig{.width = 2, .norm = norm}};
    const MoELayer<float> layer(config, 1);
    const ParameterCount count = parameters(config);
    EXPECT_EQ(parameters(layer), count.total);
    EXPECT_EQ(parameters(layer.router()), count.router);
    EXPECT_EQ(parameters(layer.experts()[0]), count.expert);
    EXPECT_EQ(parameters(*layer.shared()), count.shared);
    EXPECT_EQ(parameters(*layer.latent()), count.latent);
    EXPECT_EQ(parameters(layer.router().gate()) + parameters(layer.router().rule()), count.router);
  }
}

TEST(Bytes, OfAGateAreItsWeightsAndWhatATokenReadsAndWrites) {
  const LayerBytes linear = forward_bytes(LinearGate<float>(D, E, {}), 7, 4);
  EXPECT_EQ(linear.weights, 4 * E * D);
  EXPECT_EQ(linear.activations, 4 * 7 * (D + E));
  const LayerBytes hidden = forward_bytes(TwoLayerGate<float>(D, H, E, {}), 7, 2);
  EXPECT_EQ(hidden.weights, 2 * (H * D + E * H));
  EXPECT_EQ(hidden.activations, 2 * 7 * (D + E + 2 * H));
  EXPECT_EQ(forward_bytes(NormGate<float>(D, E, {}, {}), 7, 4).activations, 4 * 7 * (3 * D + E));
  EXPECT_EQ(forward_bytes(CosineGate<float>(D, E, {.width = H}), 7, 4).activations,
            4 * 7 * (D + E + 2 * H));
  EXPECT_EQ(forward_bytes(UnitGate<float>(D, E, {}), 7, 4).total(), 4 * (E * D + 1 + 7 * (D + E)));
}

}  // namespace
}  // namespace moe::part_cost_test
