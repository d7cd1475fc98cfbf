// SPDX-License-Identifier: Apache-2.0
// Tests of the configuration of routers: each rule is broken once, and the message is what the user
// reads.
#include "moe/router_config.hpp"

#include <gtest/gtest.h>

#include "support/throws.hpp"

namespace moe::router_config_test {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// The message for the default config after a change.
template <class Change>
std::string broken(Change&& change) {
  RouterConfig config;
  change(config);
  return testing::message_of([&] { config.validate(); });
}

const std::string fine = "(nothing was thrown)";

TEST(RouterConfig, WantsJitterBelowOne) {
  EXPECT_EQ(broken([](auto& c) { c.logits.input_jitter = -0.5; }),
            "RouterConfig: logits.input_jitter = -0.5, expected in [0, 1)");
  EXPECT_EQ(broken([](auto& c) { c.logits.input_jitter = 1.0; }),
            "RouterConfig: logits.input_jitter = 1, expected in [0, 1)");
  EXPECT_EQ(broken([](auto& c) { c.logits.input_jitter = nan; }),
            "RouterConfig: logits.input_jitter = nan, expected in [0, 1)");
  EXPECT_EQ(broken([](auto& c) { c.logits.input_jitter = 0.99; }), fine);
}

TEST(RouterConfig, WantsASoftcapOfZeroOrMore) {
  EXPECT_EQ(broken([](auto& c) { c.logits.softcap = -1.0; }),
            "RouterConfig: logits.softcap = -1, expected 0 or positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.logits.softcap = inf; }),
            "RouterConfig: logits.softcap = inf, expected 0 or positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.logits.softcap = 30.0; }), fine);
}

TEST(RouterConfig, WantsAPositiveScale) {
  EXPECT_EQ(broken([](auto& c) { c.weight.scale = 0.0; }),
            "RouterConfig: weight.scale = 0, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.weight.scale = inf; }),
            "RouterConfig: weight.scale = inf, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.weight.scale = nan; }),
            "RouterConfig: weight.scale = nan, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.weight.scale = 2.5; }), fine);
}

TEST(RouterConfig, WantsAnEpsilonOfZeroOrMore) {
  EXPECT_EQ(broken([](auto& c) { c.weight.epsilon = -1e-9; }),
            "RouterConfig: weight.epsilon = -1e-09, expected 0 or positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.weight.epsilon = nan; }),
            "RouterConfig: weight.epsilon = nan, expected 0 or positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.weight.epsilon = 0.0; }), fine);
}

TEST(RouterConfig, WantsABiasForWeightsOfScoreAndBias) {
  EXPECT_EQ(broken([](auto& c) { c.weight.source = WeightSource::biased_score; }),
            "RouterConfig: weight.source = biased_score without selection.bias, expected a bias");
  EXPECT_EQ(broken([](auto& c) {
              c.weight.source = WeightSource::biased_score;
              c.selection.bias = true;
            }),
            fine);
}

TEST(RouterConfig, WantsATableAlone) {
  EXPECT_EQ(broken([](auto& c) { c.selection.vocabulary = -1; }),
            "RouterConfig: selection.vocabulary = -1, expected at least 0");
  EXPECT_EQ(broken([](auto& c) { c.selection = {.bias = true, .vocabulary = 9}; }),
            "RouterConfig: selection.vocabulary = 9 with bias or groups, which a table does not "
            "need, expected neither");
  EXPECT_EQ(broken([](auto& c) { c.selection.vocabulary = 9; }), fine);
}

TEST(RouterConfig, WantsFewerAlwaysChosenExpertsThanChoicesAndNoOtherWayToChoose) {
  const auto of = [](const SelectionConfig& selection, Index top_k) {
    const RouterConfig config{.selection = selection};
    return testing::message_of([&] { config.validate(8, top_k); });
  };
  EXPECT_EQ(of({.always = 2}, 3), fine);
  EXPECT_EQ(of({.bias = true, .always = 2}, 3), fine);
  EXPECT_EQ(of({.always = 2}, 2),
            "RouterConfig: selection.always = 2, expected less than top_k = 2");
  EXPECT_EQ(of({.always = -1}, 2),
            "RouterConfig: selection.always = -1, expected 0, or at least 1 without a table and "
            "groups");
  EXPECT_EQ(of({.groups = GroupLimit{}, .always = 1}, 2),
            "RouterConfig: selection.always = 1, expected 0, or at least 1 without a table and "
            "groups");
  EXPECT_EQ(broken([](auto& c) {
              c.weight.source = WeightSource::biased_score;
              c.selection = {.bias = true, .always = 1};
            }),
            "RouterConfig: weight.source = biased_score with selection.always = 1, which have no "
            "bias, expected 0");
}

/// The message for a router of 8 experts, of which 4 are chosen, with these groups.
std::string of_groups(const GroupLimit& groups) {
  const RouterConfig config{.selection = {.groups = groups}};
  return testing::message_of([&] { config.validate(8, 4); });
}

TEST(GroupLimit, WantsGroupsOfTheSameSize) {
  EXPECT_EQ(of_groups({.num_groups = 3}),
            "RouterConfig: selection.groups.num_groups = 3, expected to divide num_experts = 8");
  EXPECT_EQ(of_groups({.num_groups = 0}),
            "RouterConfig: selection.groups.num_groups = 0, expected to divide num_experts = 8");
  EXPECT_EQ(of_groups({.num_groups = 8, .kept = 4}),
            "RouterConfig: selection.groups.num_groups = 8 leaves one expert a group, expected two "
            "or more to add up");
  EXPECT_EQ(of_groups({.num_groups = 8, .rule = GroupRule::best, .kept = 4}), fine);
}

TEST(GroupLimit, WantsToKeepGroupsForAllChoices) {
  EXPECT_EQ(of_groups({.num_groups = 4, .kept = 0}),
            "RouterConfig: selection.groups.kept = 0, expected in [1, num_groups = 4]");
  EXPECT_EQ(of_groups({.num_groups = 4, .kept = 5}),
            "RouterConfig: selection.groups.kept = 5, expected in [1, num_groups = 4]");
  EXPECT_EQ(
      of_groups({.num_groups = 4, .kept = 1}),
      "RouterConfig: selection.groups.kept = 1 of 2 experts each, expected to hold top_k = 4");
  EXPECT_EQ(of_groups({.num_groups = 4, .kept = 2}), fine);
  EXPECT_EQ(of_groups({}), fine) << "a single group";
}

TEST(GroupLimit, WantsAQuotaOfWholeExperts) {
  EXPECT_EQ(of_groups({.num_groups = 8, .rule = GroupRule::equal_quota}),
            "RouterConfig: top_k = 4, expected a multiple of selection.groups.num_groups = 8");
  EXPECT_EQ(of_groups({.num_groups = 2, .rule = GroupRule::equal_quota}), fine);
}

TEST(WeightConfig, RenormalisesAsItSaysAndElseWhereThereIsMoreThanOneWeight) {
  for (const Index top_k : {1, 2, 8}) {
    EXPECT_EQ(WeightConfig{}.renormalises(top_k), top_k > 1);
    EXPECT_TRUE(WeightConfig{.renormalise = true}.renormalises(top_k));
    EXPECT_FALSE(WeightConfig{.renormalise = false}.renormalises(top_k));
  }
}

TEST(WeightConfig, WantsALeastSumOnlyOfWeightsThatAreNeverNegative) {
  const std::string refused =
      "RouterConfig: weight.epsilon_rule = least with weights that may be negative, of score = "
      "identity or weight.source = biased_score, expected added";
  const auto of = [](Score score, WeightSource source, std::optional<bool> renormalise) {
    return broken([&](auto& c) {
      c.score = score;
      c.selection.bias = true;
      c.weight = {.source = source, .renormalise = renormalise, .epsilon_rule = EpsilonRule::least};
    });
  };
  for (const std::optional<bool> renormalise : {std::optional<bool>(), std::optional(true)}) {
    EXPECT_EQ(of(Score::identity, WeightSource::score, renormalise), refused);
    for (const Score score : all_scores) {
      EXPECT_EQ(of(score, WeightSource::biased_score, renormalise), refused);
      EXPECT_EQ(of(score, WeightSource::softmax_of_chosen, renormalise), fine);
      EXPECT_EQ(of(score, WeightSource::one, renormalise), fine);
      if (score != Score::identity) {
        EXPECT_EQ(of(score, WeightSource::score, renormalise), fine);
      }
    }
  }
  EXPECT_EQ(of(Score::identity, WeightSource::score, false), fine) << "nothing is divided";
}

}  // namespace
}  // namespace moe::router_config_test
