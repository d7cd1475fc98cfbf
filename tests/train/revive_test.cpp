// SPDX-License-Identifier: Apache-2.0
// Starvation counted by hand, copies against their originals, and a layer whose dead expert takes
// part again.
#include "moe/train/revive.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/train/adamw.hpp"

namespace moe::revive_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

ExpertLoad load_of(const std::vector<Index>& choices) {
  ExpertLoad load(static_cast<Index>(choices.size()));
  load.add(choices);
  return load;
}

TEST(StarvedExperts, AreThoseBelowAShareOfTheMeanForSoManyStepsInARow) {
  StarvedExperts starved(4, {.least_share = 0.1, .patience = 3});
  const ExpertLoad low = load_of({20, 19, 0, 1}), fair = load_of({10, 10, 10, 10});  // mean 10
  EXPECT_FALSE(starved.add(low));
  EXPECT_FALSE(starved.add(low));
  EXPECT_EQ(starved.steps(), (std::vector<Index>{0, 0, 2, 0})) << "1 is not below a tenth";
  EXPECT_FALSE(starved.add(load_of({0, 0, 0, 0}))) << "no step";
  EXPECT_TRUE(starved.add(low));
  EXPECT_EQ(starved.list(), std::vector<ExpertId>{2});
  EXPECT_FALSE(starved.add(fair));
  EXPECT_EQ(starved.steps(), (std::vector<Index>(4, 0)));
  StarvedExperts resumed(4, {.least_share = 0.1, .patience = 3});
  resumed.set_steps({0, 0, 2, 0});
  EXPECT_TRUE(resumed.add(low));
}

MoEConfig config() {
  return {
      .d_model = 8,
      .d_ff = 6,
      .num_experts = 4,
      .top_k = 2,
      .router = {.logits = {.bias = true}, .score = Score::sigmoid, .selection = {.bias = true}}};
}

TEST(CopyExpert, HasTheWeightsAndTheRouterRowOfTheOtherToTheNoise) {
  MoELayer<double> layer(config(), 3);
  layer.router().params().selection_bias = random_matrix<double>(1, 4, 4);
  layer.router().params().bias = random_matrix<double>(1, 4, 5);
  const MoELayer<double> before = layer;
  copy_expert(layer, {.expert = 2, .copied = 1}, {.noise = 0.01, .seed = 7});
  const auto& router = layer.router().params();
  const auto& copy = layer.experts()[2].params();
  const auto& from = before.experts()[1].params();
  EXPECT_TRUE(matrix_near(copy.up, from.up, 0.1));
  const double off = (copy.up - from.up).norm() / from.up.norm();
  EXPECT_NEAR(off, 0.01, 0.003);
  EXPECT_GT((router.weight.row(2) - router.weight.row(1)).norm(), 0.0);
  EXPECT_TRUE(matrix_near(router.weight.row(2), router.weight.row(1), 0.1));
  EXPECT_EQ(router.selection_bias(0, 2), before.router().params().selection_bias(0, 1));
  EXPECT_EQ(router.bias(0, 2), before.router().params().bias(0, 1));
  for (const std::size_t e : {0U, 1U, 3U}) {
    EXPECT_TRUE(same_bits(layer.experts()[e].params().down, before.experts()[e].params().down));
  }
  EXPECT_TRUE(same_bits(router.weight.topRows(2), before.router().params().weight.topRows(2)));
}

TEST(Revive, MakesADeadExpertTakePartAgain) {
  MoELayer<double> layer(config(), 3);
  layer.router().params().selection_bias(0, 2) = -100.0;  // nobody chooses expert 2
  const Matrix<double> x = random_matrix<double>(200, 8, 9);
  Matrix<double> y(200, 8);
  MoELayer<double>::Scratch scratch;
  StarvedExperts starved(4, {.patience = 2});
  ExpertLoad load(4);
  const auto step = [&] {
    load.clear();
    layer.forward(x, y, scratch);
    load.add(scratch.routing);
    return starved.add(load);
  };
  EXPECT_FALSE(step());
  EXPECT_TRUE(step());
  const auto busiest = static_cast<ExpertId>(
      std::max_element(load.choices().begin(), load.choices().end()) - load.choices().begin());
  const std::vector<Revival> revivals = revive(layer, starved, load, {.noise = 0.05, .seed = 1});
  ASSERT_EQ(revivals.size(), 1U);
  EXPECT_EQ(revivals[0].expert, 2);
  EXPECT_EQ(revivals[0].copied, busiest);
  EXPECT_FALSE(step());
  EXPECT_GT(load.choices()[2], 20);
}

TEST(Revive, TakesOneOfTheBusiestForEach) {
  MoELayer<double> layer(config(), 3);
  StarvedExperts starved(4, {.patience = 1});
  const ExpertLoad load = load_of({0, 30, 0, 10});
  EXPECT_TRUE(starved.add(load));
  const std::vector<Revival> revivals = revive(layer, starved, load);
  ASSERT_EQ(revivals.size(), 2U);
  EXPECT_EQ(revivals[0].copied, 1);
  EXPECT_EQ(revivals[1].expert, 2);
  EXPECT_EQ(revivals[1].copied, 3);
  EXPECT_TRUE(starved.list().empty());
  EXPECT_TRUE(revive(layer, starved, load).empty());
}

TEST(ForgetExpert, ClearsItsMomentsAndThoseOfItsRouterRowAndNoOthers) {
  MoELayer<bf16> layer(config(), 3);
  auto grads = layer.zero_grads();
  layer.for_each_parameter([](const ParameterName&, auto&, auto& grad) { grad.setOnes(); }, grads);
  AdamW<float> adam;
  EXPECT_EQ(message_of([&] { forget_expert(adam, layer, 2, "ffn."); }),
            "forget_expert: the optimiser has no tensor ffn.experts.2.*, expected those of a step");
  adam.step([&](auto&& visit) { visit_trained(visit, layer, grads, "ffn."); }, {.rate = 0.1});
  copy_expert(layer, {.expert = 2, .copied = 1}, {});
  forget_expert(adam, layer, 2, "ffn.");
  Index checked = 0;
  adam.for_each_state([&](const std::string& name, const Matrix<float>& state) {
    if (name.starts_with("ffn.experts.2.")) {
      ++checked;
      if (name == "ffn.experts.2.up.main") {
        EXPECT_TRUE(same_bits(state, layer.experts()[2].params().up.cast<float>().eval()));
      } else if (name.find(".moment.") != std::string::npos) {
        EXPECT_TRUE(state.isZero(0)) << name;
      }
    } else if (name.starts_with("ffn.router.weight.moment.")) {
      ++checked;
      EXPECT_TRUE(state.row(2).isZero(0)) << name;
      EXPECT_FALSE(state.row(1).isZero(0)) << name;
    } else if (name.starts_with("ffn.router.bias.moment.")) {
      EXPECT_TRUE(state.col(2).isZero(0)) << name;
      EXPECT_FALSE(state.col(3).isZero(0)) << name;
    } else {
      EXPECT_FALSE(state.isZero(0)) << name;
    }
  });
  EXPECT_EQ(checked, 3 * 3 + 2);
}

TEST(ForgetExpert, RefusesExpertsThatThereAreNotAndChangesNothing) {
  MoELayer<double> layer(config(), 3);
  auto grads = layer.zero_grads();
  layer.for_each_parameter([](const ParameterName&, auto&, auto& grad) { grad.setOnes(); }, grads);
  AdamW<double> adam, of_router;
  adam.step([&](auto&& visit) { visit_trained(visit, layer, grads); }, {.rate = 0.1});
  of_router.step(
      [&](auto&& visit) {
        visit("router.weight", layer.router().params().weight, grads.router.weight);
      },
      {.rate = 0.1});
  EXPECT_EQ(message_of([&] { forget_expert(adam, layer, 4); }),
            "forget_expert: expert 4, expected in [0, 4)");
  EXPECT_EQ(message_of([&] { forget_expert(adam, layer, none); }),
            "forget_expert: expert -1, expected in [0, 4)");
  EXPECT_EQ(message_of([&] { forget_expert(of_router, layer, 1); }),
            "forget_expert: the optimiser has no tensor experts.1.*, expected those of a step");
  for (AdamW<double>* each : {&adam, &of_router}) {
    each->for_each_state([](const std::string& name, const Matrix<double>& state) {
      EXPECT_GT(state.minCoeff(), 0.0) << name;
    });
  }
}

TEST(Revive, CopiesNoExpertWhereOneOfThemCannotBe) {
  auto experts = make_experts<double>(config(), 3);
  experts[3] = Expert<double>({config().d_model, config().d_ff + 1, config().d_model}, {}, 1);
  MoELayer<double> layer(Router<double>(8, 4, 2, config().router, 3), experts);
  const MoELayer<double> before = layer;
  StarvedExperts starved(4, {.patience = 1});
  const ExpertLoad load = load_of({0, 30, 0, 10});  // 0 becomes a copy of 1, but 2 none of 3
  EXPECT_TRUE(starved.add(load));
  EXPECT_EQ(message_of([&] { revive(layer, starved, load); }),
            "copy_expert: gate is (7, 8), expected (6, 8)");
  EXPECT_TRUE(same_bits(layer.experts()[0].params().up, before.experts()[0].params().up));
  EXPECT_TRUE(same_bits(layer.router().params().weight, before.router().params().weight));
  EXPECT_EQ(starved.list(), (std::vector<ExpertId>{0, 2}));
}

TEST(Revive, RefusesWhatDoesNotFit) {
  MoELayer<double> layer(config(), 3);
  EXPECT_EQ(message_of([&] { copy_expert(layer, {.expert = 4, .copied = 1}, {}); }),
            "copy_expert: expert 4, expected in [0, 4)");
  EXPECT_EQ(message_of([&] { copy_expert(layer, {.expert = 1, .copied = 1}, {}); }),
            "copy_expert: expert 1 from itself, expected another");
  EXPECT_EQ(message_of([&] { copy_expert(layer, {.expert = 2, .copied = 1}, {.noise = -1.0}); }),
            "RevivalConfig: noise = -1, expected finite and at least 0");
  auto experts = make_experts<double>(config(), 3);
  experts[2] = Expert<double>({config().d_model, config().d_ff, config().d_model},
                              {.activation = Activation::relu}, 1);
  MoELayer<double> mixed(layer.router(), experts);
  EXPECT_EQ(message_of([&] { copy_expert(mixed, {.expert = 2, .copied = 1}, {}); }),
            "copy_expert: expert 2 is of another kind than expert 1");
  StarvedExperts starved(3);
  EXPECT_THROW(revive(layer, starved, load_of({1, 2, 3})), std::invalid_argument);
  EXPECT_EQ(message_of([&] {
              starved.add(load_of({1, 2}));
            }),
            "StarvedExperts: a load of 2 experts, expected 3");
  EXPECT_EQ(message_of([&] { starved.clear(3); }), "StarvedExperts: expert 3, expected in [0, 3)");
  EXPECT_EQ(message_of([&] {
              starved.set_steps({1, -2, 0});
            }),
            "StarvedExperts: steps = -2, expected in [0, 4611686018427387903]");
  EXPECT_EQ(message_of([&] {
              starved.set_steps({1, 0, std::numeric_limits<Index>::max()});
            }),
            "StarvedExperts: steps = 9223372036854775807, expected in [0, 4611686018427387903]");
  EXPECT_EQ(starved.steps(), std::vector<Index>(3, 0));
  EXPECT_EQ(message_of([] { StarvedExperts(3, {.least_share = 1.5}); }),
            "StarvationConfig: least_share = 1.5, expected in (0, 1)");
}

}  // namespace
}  // namespace moe::revive_test
