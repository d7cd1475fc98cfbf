// SPDX-License-Identifier: Apache-2.0
// Every gate and every rule of the library in a packed layer, in each storage, also where tokens
// are of another scalar than in the layer: it chooses what the layer does.
#include <gtest/gtest.h>

#include <string>
#include <type_traits>
#include <utility>

#include "moe/layers.hpp"
#include "moe/routing.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::packed_routers_test {
namespace {

using testing::matrix_near;
using testing::random_matrix;

constexpr Index N = 12, D = 6, E = 4;

/// visit(name, gate) for every gate, none with settings that a cast could find by chance.
template <Real T, class Visit>
void for_each_gate(const Visit& visit) {
  const LogitsConfig logits{.input_jitter = 0.1, .bias = true, .softcap = 3.0, .noisy = true};
  visit("LinearGate", LinearGate<T>(D, E, logits));
  visit("NormGate", NormGate<T>(D, E, logits, {.epsilon = 0.1, .scale = false, .factor = 2.0}));
  visit("TwoLayerGate", TwoLayerGate<T>(D, 3, E, logits));
  visit("CosineGate", CosineGate<T>(D, E, {.width = 3, .temperature = 0.3, .bias = false}));
  visit("UnitGate", UnitGate<T>(D, E, {.epsilon = 0.5, .scale = 3.0}));
  visit("StateGate", StateGate<T>(D, E, {.d_state = 3, .epsilon = 0.1}));
}

/// Likewise for every rule for E experts.
template <Real W, class Visit>
void for_each_rule(const Visit& visit) {
  visit("TopK", TopK<W>(E, 2, {.score = Score::sigmoid, .selection = {.bias = true}}));
  visit("BalancedAssignment", BalancedAssignment<W>({.in_evaluation = true}));
  visit("DynamicTopK", DynamicTopK<W>(E, {.top_p = 0.7, .most = 3}));
  visit("ExpertChoice", ExpertChoice<W>({.capacity_factor = 1.5}));
  visit("ReluRouting", ReluRouting<W>(E));
  visit("SecondExpert", SecondExpert<W>(E, {.policy = SecondPolicy::threshold, .threshold = 0.4}));
  visit("SequenceTopK", SequenceTopK<W>(E, {.top_k = 2, .most = 3, .score = Score::sigmoid}));
  visit("Sinkhorn", Sinkhorn<W>(E, {.top_k = 2, .tolerance = 1e-3, .in_evaluation = true}));
  visit("SparseMixer", SparseMixer<W>(E, {.jitter = 0.3}));
  visit("TwoLevel", TwoLevel<W>(E, {.num_groups = 2, .top_groups = 2, .top_k = 1}));
  visit("UniformChoice", UniformChoice<W>(E, {.top_k = 2, .order = UniformOrder::round_robin}));
}

/// Of both, with random parameters.
template <Real T, class Gate, class Rule>
auto layer_of(const Gate& gate, const Rule& rule) {
  using Router = GatedRouter<T, Gate, Rule>;
  typename Router::Params params{gate.initial_params(1), {}};
  if constexpr (requires { rule.initial_params(); }) {
    params = {gate.initial_params(1), rule.initial_params()};
  }
  testing::randomise(params, 2, 0.9);
  return MoELayer<T, Router>(
      Router(gate, rule, std::move(params)),
      make_experts<T>({.d_model = D, .d_ff = 5, .num_experts = gate.num_experts(), .top_k = 1}, 3));
}

/// Tokens are such as every scalar has.
template <Storage S, Real T, class Router>
void expect_same_routing(const MoELayer<T, Router>& layer, const std::string& what) {
  const auto packed = pack<S>(layer);
  using PackedRouter = std::remove_cvref_t<decltype(packed.router())>;
  const Matrix<bf16> x = random_matrix<bf16>(N, layer.router().d_model(), 5);
  typename Router::Table want;
  typename PackedRouter::Table got;
  const CallOptions call{.num_threads = 1, .noise_seed = 7};
  layer.router().route(x.template cast<T>().eval(), call, want);
  packed.router().route(x.template cast<Wide<S>>().eval(), call, got);
  ASSERT_EQ(got.top_k(), want.top_k()) << what;
  EXPECT_TRUE((got.expert.array() == want.expert.array()).all()) << what;
  EXPECT_TRUE((got.expert.array() != none).any()) << what;
  EXPECT_TRUE(
      matrix_near(got.weight.template cast<double>(), want.weight.template cast<double>(), 1e-5))
      << what;
  EXPECT_TRUE(
      matrix_near(got.probs.template cast<double>(), want.probs.template cast<double>(), 1e-5))
      << what;
}

/// Of a layer for tokens in bfloat16 or double.
template <class S>
class PackedRouterOf : public ::testing::Test {};
using Storages = ::testing::Types<bf16, float, double>;
TYPED_TEST_SUITE(PackedRouterOf, Storages);

template <Storage S, Real T>
void expect_same_routing_of_every_gate() {
  for_each_gate<T>([](const char* name, const auto& gate) {
    const TopK<Wide<T>> rule(E, 2, {.weight = {.expert_scale = ExpertScale::learned}});
    expect_same_routing<S>(layer_of<T>(gate, rule), name);
  });
}

TYPED_TEST(PackedRouterOf, ChoosesAsTheLayerDoesBehindEveryGate) {
  expect_same_routing_of_every_gate<TypeParam, bf16>();
  expect_same_routing_of_every_gate<TypeParam, double>();
}

template <Storage S, Real T>
void expect_same_routing_by_every_rule() {
  for_each_rule<Wide<T>>([](const char* name, const auto& rule) {
    expect_same_routing<S>(layer_of<T>(LinearGate<T>(D, E, {}), rule), name);
  });
  const TopTokens<Wide<T>> of_one_expert({.capacity = 0.4, .threshold = 0.1});
  expect_same_routing<S>(layer_of<T>(LinearGate<T>(D, 1, {}), of_one_expert), "TopTokens");
}

TYPED_TEST(PackedRouterOf, ChoosesAsTheLayerDoesByEveryRule) {
  expect_same_routing_by_every_rule<TypeParam, bf16>();
  expect_same_routing_by_every_rule<TypeParam, double>();
}

}  // namespace
}  // namespace moe::packed_routers_test
