// SPDX-License-Identifier: Apache-2.0
// TopK as a rule by itself, on the rows of one token: what it needs of a router is its arguments.
// Its options are tested in router_test, selection_test and router_gradient_test.
#include "moe/routing/top_k.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "../support/throws.hpp"
#include "moe/routing/concepts.hpp"

namespace moe::top_k_test {
namespace {

using testing::message_of;

static_assert(TokenRule<TopK<float>, float> && TrainableRule<TopK<float>, float>);
static_assert(!TableRule<TopK<float>, float>);

TEST(TopK, NeedsNoMoreThanTheRowsOfAToken) {
  const TopK<double> rule(3, 2, {.weight = {.source = WeightSource::softmax_of_chosen}});
  const double L = std::log(3.0);
  const double logits[3] = {L, 0.0, -9.0};
  double probs[3], weight[2], scratch[3];
  ExpertId expert[2];
  rule.route(rule.initial_params(), {3, 2, nullptr, logits, probs, expert, weight, scratch});
  EXPECT_EQ(expert[0], 0);
  EXPECT_EQ(expert[1], 1);
  EXPECT_NEAR(weight[0], 0.75, 1e-15);

  // d (w0 dw0 + w1 dw1) / d logits = (w0 w1 (dw0 - dw1), - that, 0)
  const double dweight[2] = {1.0, 5.0};
  double dprobs[3] = {}, dlogits[3] = {};
  rule.backward(rule.initial_params(),
                {3, 2, nullptr, logits, probs, expert, weight, dweight, dprobs, dlogits});
  EXPECT_NEAR(dlogits[0], 0.75 * 0.25 * -4.0, 1e-15);
  EXPECT_NEAR(dlogits[1], 0.75 * 0.25 * 4.0, 1e-15);
  EXPECT_EQ(dlogits[2], 0.0);
}

TEST(TopK, HasASelectionBiasOfZeroOnlyIfAskedFor) {
  EXPECT_EQ(TopK<float>(4, 2, {}).initial_params().selection_bias.size(), 0);
  const TopK<float> biased(4, 2, {.selection = {.bias = true}});
  EXPECT_TRUE(testing::same_bits(biased.initial_params().selection_bias,
                                 Matrix<float>(Matrix<float>::Zero(1, 4))));
  EXPECT_EQ(message_of([&] {
              check_shapes<TopK<float>::Params>({.selection_bias = Matrix<float>(4, 1)},
                                                biased.shapes(), {"Router"});
            }),
            "parameter Router.selection_bias is (4, 1), expected (1, 4)");
}

TEST(TopK, HasScalesOfOneOnlyIfAskedFor) {
  EXPECT_EQ(TopK<float>(4, 2, {}).initial_params().expert_scale.size(), 0);
  for (const ExpertScale kind : {ExpertScale::fixed, ExpertScale::learned}) {
    const TopK<float> scaled(4, 2, {.weight = {.expert_scale = kind}});
    EXPECT_TRUE(testing::same_bits(scaled.initial_params().expert_scale,
                                   Matrix<float>(Matrix<float>::Ones(1, 4))));
  }
  const TopK<float> as_one(4, 2, {.weight = {.expert_scale = ExpertScale::learned_for_all}});
  EXPECT_TRUE(testing::same_bits(as_one.initial_params().expert_scale,
                                 Matrix<float>(Matrix<float>::Ones(1, 1))));
}

TEST(TopK, HasNoBiasOfExpertsThatAreAlwaysChosen) {
  const RouterConfig config{.selection = {.bias = true, .always = 1}};
  EXPECT_EQ(TopK<float>(4, 2, config).initial_params().selection_bias.size(), 3);
  EXPECT_EQ(top_k_parameters(config, 4), 3);
}

TEST(TopK, ThrowsOnValuesOutOfRangeAndNamesThem) {
  EXPECT_EQ(message_of([] { TopK<float>(4, 0, {}); }),
            "Router: top_k = 0, expected in [1, num_experts = 4]");
  EXPECT_EQ(message_of([] { TopK<float>(4, 2, {.weight = {.scale = -1.0}}); }),
            "RouterConfig: weight.scale = -1, expected positive and finite");
}

}  // namespace
}  // namespace moe::top_k_test
