// SPDX-License-Identifier: Apache-2.0
// GatedRouter with parts as a user would make them: their gradients, masks and padding, and a layer
// around them.
#include "moe/routing/gated_router.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "../support/layer_step.hpp"
#include "../support/matrix_near.hpp"
#include "../support/own_router_parts.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/routing.hpp"
#include "rule_checks.hpp"

namespace moe::gated_router_test {
namespace {

using testing::CosineGate;
using testing::ExpertChoiceRule;
using testing::layer_of;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::random_slope;
using testing::ReluRule;
using testing::router_gradient_error;
using testing::same_bits;

using CosineRelu = GatedRouter<double, CosineGate, ReluRule>;
using CosineExpertChoice = GatedRouter<double, CosineGate, ExpertChoiceRule>;
using LinearRelu = GatedRouter<double, LinearGate<double>, ReluRule>;
using CosineTopK = GatedRouter<double, CosineGate, TopK<double>>;
static_assert(TrainableRouter<CosineRelu, double> && TrainableRouter<CosineExpertChoice, double>);
static_assert(TrainableRouter<LinearRelu, double> && TrainableRouter<CosineTopK, double>);

/// For inference a part needs no backward.
struct FirstExpert {
  using Params = NoParams;
  Index top_k() const { return 1; }
  void route(const Params&, const TokenRoute<double>& token) const {
    token.expert[0] = 0;
    token.weight[0] = 1.0;
    std::fill(token.probs, token.probs + token.num_experts, 0.5);
  }
};
using Untrained = GatedRouter<double, CosineGate, FirstExpert>;
static_assert(RouterLike<Untrained, double> && !TrainableRouter<Untrained, double>);

constexpr Index N = 6, D = 4, E = 3;

CosineGate::Params directions() { return {random_matrix<double>(E, D, 1)}; }

CosineRelu cosine_relu() { return {CosineGate{D, E}, ReluRule{E}, {directions(), {}}}; }
CosineExpertChoice expert_choice() {
  return {CosineGate{D, E}, ExpertChoiceRule{2}, {directions(), {}}};
}
LinearRelu linear_relu() {
  const LinearGate<double> gate(D, E, {.bias = true});
  LinearRelu router(gate, ReluRule{E}, {gate.initial_params(2), {}});
  testing::randomise(router.params(), 3);
  return router;
}
CosineTopK cosine_top_k() {
  const TopK<double> rule(E, 2, {.score = Score::sigmoid, .selection = {.bias = true}});
  return {CosineGate{D, E}, rule, {directions(), {random_matrix<double>(1, E, 4)}}};
}

TEST(GatedRouter, HasTheGradientsOfItsGateAndItsRule) {
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask(0, 1) = mask(3, 0) = mask(3, 2) = 0;
  mask.row(4).setZero();
  const std::vector<std::uint8_t> padding = {0, 1, 0, 0, 0, 0};
  for (const ExpertMask* expert_mask :
       {static_cast<const ExpertMask*>(nullptr), static_cast<const ExpertMask*>(&mask)}) {
    for (const bool padded : {false, true}) {
      // So few tokens are routed so often that a second thread is only waited for.
      CallOptions call{.num_threads = 1, .expert_mask = expert_mask};
      call.tokens.padding = padded ? std::span(padding) : std::span<const std::uint8_t>();
      EXPECT_LT(router_gradient_error(cosine_relu(), x, call), 1e-7);
      EXPECT_LT(router_gradient_error(expert_choice(), x, call), 1e-7);
      EXPECT_LT(router_gradient_error(linear_relu(), x, call), 1e-7);
      EXPECT_LT(router_gradient_error(cosine_top_k(), x, call), 1e-7);
    }
  }
}

TEST(GatedRouter, GoesBackFromNoTableThatAnotherRouterWroteAndWritesNothing) {
  RouterConfig noisy;
  noisy.logits.noisy = true;
  const Router<double> plain(D, E, 2, {}, 1), with_noise(D, E, 2, noisy, 1), copy = plain;
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  for (const Router<double>* written_by : {&plain, &with_noise, &copy}) {
    for (const Router<double>* other : {&plain, &with_noise, &copy}) {
      Router<double>::Table table;
      written_by->route(x, {.noise_seed = 3}, table);
      RoutingGradient<double> gradient{.weight = random_matrix<double>(N, 2, 6)};
      Matrix<double> dx = Matrix<double>::Constant(N, D, 5.0);
      auto grads = zero_grads_of(*other);
      const auto text = message_of([&] { other->backward(x, table, gradient, dx, grads); });
      if (other == written_by) {
        EXPECT_EQ(text, "(nothing was thrown)");
      } else {
        EXPECT_EQ(text, "Router: the table is of another router, expected this one's");
        EXPECT_TRUE((dx.array() == 5.0).all() && grads.weight.isZero(0));
      }
    }
  }
}

TEST(GatedRouter, OfATokenRuleChoosesForEachTokenAsManyAsTheRuleWants) {
  const LinearGate<double> gate(1, 3, {.bias = true});
  LinearGate<double>::Params params = gate.initial_params(1);
  params.weight << 1.0, -1.0, 0.0;
  params.bias << 0.0, 0.0, -0.5;
  const LinearRelu router(gate, ReluRule{3}, {params, {}});
  LinearRelu::Table table;
  router.route(Eigen::Matrix<double, 2, 1>(2.0, -3.0), {}, table);
  Matrix<ExpertId> expert(2, 3);
  expert << 0, none, none, 1, none, none;
  Matrix<double> weight(2, 3);
  weight << 2, 0, 0, 3, 0, 0;
  EXPECT_EQ(table.expert, expert);
  EXPECT_EQ(table.weight, weight);
}

TEST(GatedRouter, OfATableRuleGivesEveryExpertItsTokens) {
  const auto router = expert_choice();
  CosineExpertChoice::Table table;
  router.route(random_matrix<double>(N, D, 5), {}, table);
  for (Index e = 0; e < E; ++e) {
    EXPECT_EQ((table.expert.array() == static_cast<ExpertId>(e)).count(), 2);
  }
  EXPECT_EQ(table.top_k(), E);
}

/// NaN in the x and in the gradients of padding reach nothing: the other rows and the parameters
/// get what they get where the padding is masked, without NaN.
template <class Router>
void expect_padding_is_masked(const Router& router) {
  Matrix<double> x = random_matrix<double>(N, D, 5), dx(N, D), want_dx(N, D);
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask.row(2).setZero();
  typename Router::Table want, table;
  router.route(x, {.expert_mask = &mask}, want);
  RoutingGradient<double> want_gradient = random_slope(want), gradient = want_gradient;
  auto want_grads = zeros_like(router.params()), grads = want_grads;
  router.backward(x, want, want_gradient, want_dx, want_grads);

  const std::vector<std::uint8_t> padding = {0, 0, 1, 0, 0, 0};
  x.row(2).setConstant(std::nan(""));
  router.route(x, {.tokens = {.padding = padding}}, table);
  EXPECT_EQ(table.padding, padding);
  EXPECT_EQ(table.expert, want.expert);
  EXPECT_TRUE((table.expert.row(2).array() == none).all());
  EXPECT_TRUE(same_bits(table.weight, want.weight));
  EXPECT_TRUE(same_bits(table.probs, want.probs));
  EXPECT_TRUE(table.probs.row(2).isZero(0) && table.weight.row(2).isZero(0));
  EXPECT_TRUE((table.logits.row(2).array() == -std::numeric_limits<double>::infinity()).all());

  RoutingGradient<double>::for_each(
      [](std::string_view, GrowingMatrix<double>& tensor) {
        if (tensor.size() > 0) {
          tensor.row(2).setConstant(std::nan(""));
        }
      },
      gradient);
  router.backward(x, table, gradient, dx, grads);
  EXPECT_TRUE(gradient.logits.row(2).isZero(0) && dx.row(2).isZero(0));
  EXPECT_TRUE(matrix_near(dx, want_dx, 1e-15));
  Router::Params::for_each(
      [](std::string_view name, const auto& got, const auto& expected) {
        EXPECT_TRUE(matrix_near(got, expected, 1e-15)) << name;
      },
      grads, want_grads);
}

TEST(GatedRouter, TreatsPaddingAsNoTokenWhateverGateAndRule) {
  expect_padding_is_masked(cosine_relu());
  expect_padding_is_masked(expert_choice());
  expect_padding_is_masked(linear_relu());
  expect_padding_is_masked(cosine_top_k());
}

TEST(GatedRouter, TakesBackWhatARuleGivesToPaddingAndScoresOfMaskedExperts) {
  const Untrained router(CosineGate{D, E}, FirstExpert{}, {directions(), {}});
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 2) = 0;
  const std::vector<std::uint8_t> padding = {0, 1};
  CosineGate::Table table;
  router.route(random_matrix<double>(2, D, 5),
               {.tokens = {.padding = padding}, .expert_mask = &mask}, table);
  EXPECT_EQ(table.expert(0, 0), 0);
  EXPECT_EQ(table.expert(1, 0), none);
  EXPECT_EQ(table.weight(1, 0), 0.0);
  EXPECT_EQ(table.probs(0, 1), 0.5);
  EXPECT_EQ(table.probs(0, 2), 0.0);
}

TEST(GatedRouter, HasTheParametersOfBothPartsInOneList) {
  std::vector<std::string> names;
  CosineTopK router = cosine_top_k();
  CosineTopK::Params::for_each(
      [&](std::string_view name, const auto&) { names.emplace_back(name); }, router.params());
  EXPECT_EQ(names, (std::vector<std::string>{"direction", "selection_bias", "expert_scale"}));
}

/// A rule with parameters of the gate's own type: it takes the expert whose direction sums to most.
struct SteepestRule {
  using Params = CosineGate::Params;
  Index top_k() const { return 1; }
  void route(const Params& p, const TokenRoute<double>& token) const {
    Index best = 0;
    p.direction.rowwise().sum().maxCoeff(&best);
    std::fill(token.probs, token.probs + token.num_experts, 1.0);
    token.expert[0] = static_cast<ExpertId>(best);
    token.weight[0] = token.logits[best];
  }
};

TEST(GatedRouter, GivesGateAndRuleTheirOwnParametersWhereBothAreOfOneType) {
  const CosineGate::Params of_gate = directions(), of_rule{random_matrix<double>(E, D, 8)};
  const GatedRouter<double, CosineGate, SteepestRule> router(CosineGate{D, E}, {},
                                                             {of_gate, of_rule});
  std::vector<Matrix<double>> tensors;
  decltype(router)::Params::for_each(
      [&](std::string_view, const auto& tensor) { tensors.push_back(tensor); }, router.params());
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_TRUE(same_bits(tensors[0], of_gate.direction) && same_bits(tensors[1], of_rule.direction));
  CosineGate::Table table, want;
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  router.route(x, {}, table);
  Untrained(CosineGate{D, E}, {}, {of_gate, {}}).route(x, {}, want);
  EXPECT_TRUE(same_bits(table.logits, want.logits));
  Index best = 0;
  of_rule.direction.rowwise().sum().maxCoeff(&best);
  EXPECT_TRUE((table.expert.array() == static_cast<ExpertId>(best)).all());
}

TEST(GatedRouter, AsksGateAndRuleWhetherTheParametersFit) {
  const LinearGate<double> gate(D, E, {});
  const TopK<double> rule(E, 2, {.selection = {.bias = true}});
  using Parts = GatedRouter<double, LinearGate<double>, TopK<double>>;
  EXPECT_EQ(message_of([&] { Parts(gate, rule, {}); }),
            "parameter Router.weight is (0, 0), expected (3, 4)");
  EXPECT_EQ(message_of([&] {
              Parts(gate, rule, {gate.initial_params(1), {}});
            }),
            "parameter Router.selection_bias is (0, 0), expected (1, 3)");
}

/// What is thrown where a rule stands behind a gate of E experts.
template <class Rule>
std::string refusal_of(Rule rule) {
  return message_of([&] { linear_router<double>(D, E, std::move(rule), 1); });
}

TEST(GatedRouter, RefusesEveryRuleThatWasMadeForAnotherNumberOfExperts) {
  for (const Index made_for : {2, 4, 16}) {
    const auto expect_refused = [&](const char* name, auto rule) {
      EXPECT_EQ(refusal_of(std::move(rule)), std::string("Router: ") + name + " was made for " +
                                                 std::to_string(made_for) +
                                                 " experts, expected the 3 of the gate");
    };
    expect_refused("DynamicTopK", DynamicTopK<double>(made_for, {.top_p = 0.5}));
    expect_refused("ReluRouting", ReluRouting<double>(made_for));
    expect_refused("SecondExpert", SecondExpert<double>(made_for, {}));
    expect_refused("SequenceTopK", SequenceTopK<double>(made_for, {}));
    expect_refused("Sinkhorn", Sinkhorn<double>(made_for, {.top_k = made_for}));
    expect_refused("SparseMixer", SparseMixer<double>(made_for, {}));
    expect_refused("TwoLevel", TwoLevel<double>(made_for, {.num_groups = 2}));
    expect_refused("UniformChoice", UniformChoice<double>(made_for, {}));
    const LinearGate<double> gate(D, E, {});
    const TopK<double> top_k(made_for, made_for, {});
    const auto make = [&] {
      GatedRouter<double, LinearGate<double>, TopK<double>>(gate, top_k,
                                                            {gate.initial_params(1), {}});
    };
    EXPECT_EQ(message_of(make), "Router: TopK was made for " + std::to_string(made_for) +
                                    " experts, expected the 3 of the gate");
  }
}

/// A user's rule that says for how many experts it was made.
struct FirstOfFour : FirstExpert {
  static Index num_experts() { return 4; }
};

TEST(GatedRouter, AsksAnOwnRuleForItsNumberOfExpertsOnlyIfItHasOne) {
  EXPECT_EQ(refusal_of(FirstOfFour{}),
            "Router: the rule was made for 4 experts, expected the 3 of the gate");
  EXPECT_EQ(refusal_of(FirstExpert{}), "(nothing was thrown)");
  EXPECT_EQ(refusal_of(ReluRule{E}), "(nothing was thrown)");  // its num_experts is a number
}

TEST(GatedRouter, TrainsInALayerWithTheSameBitsForAnyThreads) {
  const auto check = [](const auto& layer) {
    const Matrix<double> x = random_matrix<double>(40, D, 7);
    const auto one = testing::run_step(layer, x, {.num_threads = 1});
    for (const int threads : {2, 5}) {
      const auto more = testing::run_step(layer, x, {.num_threads = threads});
      EXPECT_TRUE(same_bits(more.y, one.y));
      EXPECT_TRUE(same_bits(more.dx, one.dx));
      EXPECT_TRUE(testing::same_grads(layer, more.grads, one.grads));
    }
    EXPECT_TRUE(one.y.allFinite() && !one.dx.isZero(0));
  };
  check(layer_of(cosine_relu()));
  check(layer_of(expert_choice()));
  check(layer_of(linear_relu()));
  check(layer_of(cosine_top_k()));
}

TEST(GatedRouter, RefusesACallThatItsRuleCannotObeyBeforeTheTapeIsTouched) {
  const auto layer = layer_of(cosine_relu());
  const Matrix<double> x = random_matrix<double>(N, D, 7), dy = random_matrix<double>(N, D, 9);
  Matrix<double> y(N, D), dx(N, D), want_dx(N, D);
  auto grads = layer.zero_grads(), want = layer.zero_grads();
  typename decltype(layer_of(cosine_relu()))::Tape tape;
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, want_dx, want);
  EXPECT_EQ(message_of([&] { layer.forward(x, y, tape, {.top_k = 1}); }),
            "Router: the call sets top_k or experts, expected a rule that obeys it");
  layer.backward(x, dy, tape, dx, grads);
  EXPECT_TRUE(same_bits(dx, want_dx) && testing::same_grads(layer, grads, want));
}

TEST(GatedRouter, ThatRefusesACallLeavesTheTableToGoBackFrom) {
  const CosineTopK router = cosine_top_k();
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  CosineTopK::Table table;
  router.route(x, {}, table);
  const ExpertMask too_narrow = ExpertMask::Ones(N, E - 1);
  EXPECT_EQ(message_of([&] { router.route(x, {.num_threads = -1}, table); }),
            "CallOptions: num_threads = -1, expected at least 0");
  EXPECT_NE(message_of([&] { router.route(x, {.expert_mask = &too_narrow}, table); }),
            "(nothing was thrown)");
  EXPECT_NE(message_of([&] { router.route(x, {.top_k = E + 1}, table); }), "(nothing was thrown)");
  EXPECT_NE(message_of([&] { router.route(x.leftCols(D - 1), {}, table); }),
            "(nothing was thrown)");
  RoutingGradient<double> gradient = random_slope(table);
  Matrix<double> dx(N, D);
  auto grads = zeros_like(router.params());
  EXPECT_EQ(message_of([&] { router.backward(x, table, gradient, dx, grads); }),
            "(nothing was thrown)");
}

}  // namespace
}  // namespace moe::gated_router_test
