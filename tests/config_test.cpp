// SPDX-License-Identifier: Apache-2.0
// Tests of the configuration: each rule is broken once, and the message is what the user reads.
#include "moe/config.hpp"

#include <gtest/gtest.h>

#include "support/throws.hpp"

namespace moe::config_test {
namespace {

constexpr Index huge = std::numeric_limits<Index>::max();
constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

MoEConfig valid() { return {.d_model = 8, .d_ff = 16, .num_experts = 4, .top_k = 2}; }

/// The message for a valid config after a change.
template <class Change>
std::string broken(Change&& change) {
  MoEConfig config = valid();
  change(config);
  return testing::message_of([&] { config.validate(); });
}

const std::string fine = "(nothing was thrown)";

TEST(MoEConfig, IsValidWithItsFourSizes) { EXPECT_NO_THROW(valid().validate()); }

TEST(ExpertConfig, EqualsOneThatDiffersInNothing) {
  EXPECT_EQ(ExpertConfig{}, ExpertConfig{});
  const ExpertConfig others[] = {{.activation = Activation::relu},
                                 {.gated = false},
                                 {.bias = true},
                                 {.output_gate = true},
                                 {.limit = 0.0},
                                 {.clamp = Clamp::after},
                                 {.up_offset = 1.0},
                                 {.alpha = 1.0},
                                 {.gate_bound = 3.0},
                                 {.up_bound = 3.0}};
  for (const ExpertConfig& other : others) {
    EXPECT_NE(other, ExpertConfig{});
    EXPECT_EQ(other, ExpertConfig(other));
  }
}

TEST(MoEConfig, HasTheDefaultsOfAMixtralLayer) {
  const MoEConfig c = valid();
  EXPECT_EQ(c.expert.activation, Activation::silu);
  EXPECT_TRUE(c.expert.gated);
  EXPECT_FALSE(c.expert.bias);
  EXPECT_EQ(c.router.score, Score::softmax);
  EXPECT_TRUE(c.router.weight.renormalises(c.top_k));
  EXPECT_FALSE(c.capacity.limited());
  EXPECT_FALSE(c.shared.has_value());
  EXPECT_EQ(c.weight_on, WeightOn::output);
  EXPECT_EQ(c.output_width(), 8);
}

TEST(MoEConfig, WantsEverySizeToBePositive) {
  EXPECT_EQ(broken([](auto& c) { c.d_model = 0; }), "MoEConfig: d_model = 0, expected at least 1");
  EXPECT_EQ(broken([](auto& c) { c.d_ff = -3; }), "MoEConfig: d_ff = -3, expected at least 1");
  EXPECT_EQ(broken([](auto& c) { c.d_out = 0; }), "MoEConfig: d_out = 0, expected at least 1");
  EXPECT_EQ(broken([](auto& c) { c.num_experts = 0; }),
            "MoEConfig: num_experts = 0, expected at least 1");
  EXPECT_EQ(testing::message_of([] { MoEConfig{}.validate(); }),
            "MoEConfig: d_model = 0, expected at least 1");
}

TEST(MoEConfig, WantsTopKAmongTheExperts) {
  EXPECT_EQ(broken([](auto& c) { c.top_k = 5; }),
            "MoEConfig: top_k = 5, expected in [1, num_experts = 4]");
  EXPECT_EQ(broken([](auto& c) { c.top_k = 0; }),
            "MoEConfig: top_k = 0, expected in [1, num_experts = 4]");
  EXPECT_EQ(broken([](auto& c) { c.top_k = 4; }), fine);
}

TEST(MoEConfig, WantsExpertNumbersToFit) {
  EXPECT_EQ(broken([](auto& c) { c.num_experts = Index(1) << 31; }),
            "MoEConfig: num_experts = 2147483648, expected at most 2147483647");
  EXPECT_EQ(broken([](auto& c) { c.num_experts = (Index(1) << 31) - 1; }), fine);
}

TEST(MoEConfig, WantsProductsOfSizesNotToOverflow) {
  EXPECT_EQ(broken([](auto& c) { c.d_model = huge; }),
            "MoEConfig: d_ff = 16 times d_model = 9223372036854775807 overflows");
  EXPECT_EQ(broken([](auto& c) { c.d_out = huge; }),
            "MoEConfig: d_ff = 16 times d_out = 9223372036854775807 overflows");
  EXPECT_EQ(broken([](auto& c) { c.d_ff = Index(1) << 62; }),
            "MoEConfig: d_ff = 4611686018427387904 times d_model = 8 overflows");
  EXPECT_EQ(broken([](auto& c) {
              c.d_ff = 1;
              c.d_model = Index(1) << 58;
              c.d_out = 1;
            }),
            "MoEConfig: num_experts = 4 times d_model = 288230376151711744 overflows");
  EXPECT_EQ(broken([](auto& c) { c.shared = SharedExpertConfig{.d_ff = Index(1) << 59}; }),
            "MoEConfig: shared.d_ff = 576460752303423488 times d_model = 8 overflows");
  EXPECT_EQ(broken([](auto& c) {
              c.d_out = 64;
              c.shared = SharedExpertConfig{.d_ff = Index(1) << 56};
            }),
            "MoEConfig: shared.d_ff = 72057594037927936 times d_out = 64 overflows");
}

TEST(MoEConfig, AllowsTheGreatestProductThatFits) {
  // 2^57 * 8 elements of 8 bytes overflow by one; a little less fits.
  EXPECT_NE(broken([](auto& c) { c.d_ff = Index(1) << 57; }), fine);
  EXPECT_EQ(broken([](auto& c) { c.d_ff = (Index(1) << 57) - 1; }), fine);
}

TEST(MoEConfig, AsksItsRouter) {
  EXPECT_EQ(broken([](auto& c) { c.router.weight.scale = 0.0; }),
            "RouterConfig: weight.scale = 0, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.router.selection.groups = GroupLimit{.num_groups = 3}; }),
            "RouterConfig: selection.groups.num_groups = 3, expected to divide num_experts = 4");
}

TEST(Capacity, WantsOneLimitAtMost) {
  EXPECT_EQ(broken([](auto& c) {
              c.capacity.factor = 1.0;
              c.capacity.rows = 3;
            }),
            "Capacity: factor and rows are both set, expected one");
}

TEST(Capacity, WantsAPositiveFactorOrRowsNotNegative) {
  EXPECT_EQ(broken([](auto& c) { c.capacity.factor = 0.0; }),
            "Capacity: factor = 0, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.capacity.factor = inf; }),
            "Capacity: factor = inf, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.capacity.factor = nan; }),
            "Capacity: factor = nan, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.capacity.rows = -1; }),
            "Capacity: rows = -1, expected at least 0");
  EXPECT_EQ(broken([](auto& c) { c.capacity.rows = 0; }), fine);
}

TEST(SharedExpertConfig, WantsAPositiveWidth) {
  EXPECT_EQ(broken([](auto& c) { c.routed_scale = 0.0; }),
            "LayerOptions: a scale is 0, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.shared = SharedExpertConfig{.d_ff = 2, .scale = -1.0}; }),
            "LayerOptions: a scale is -1, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.shared = SharedExpertConfig{.d_ff = 2, .limit = -1.0}; }),
            "ExpertConfig: limit = -1, expected positive and finite");
  EXPECT_EQ(broken([](auto& c) { c.shared = SharedExpertConfig{}; }),
            "MoEConfig: shared.d_ff = 0, expected at least 1");
}

TEST(MoEConfig, RefusesWhatIsNoneOfAnEnum) {
  const auto expect_refused = [](auto member, const std::string& name) {
    for (const int number : {-1, 9, 99}) {
      EXPECT_EQ(broken([&](auto& c) {
                  auto& value = member(c);
                  value = static_cast<std::remove_reference_t<decltype(value)>>(number);
                }),
                name + " = " + std::to_string(number) + ", expected one of the enum");
    }
  };
  const auto groups = [](MoEConfig& c) -> GroupLimit& {
    return c.router.selection.groups.emplace(GroupLimit{.num_groups = 1});
  };
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.weight_on; }, "LayerOptions: weight_on");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.capacity.policy; }, "Capacity: policy");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.expert.clamp; }, "ExpertConfig: clamp");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.expert.activation; }, "ExpertConfig: activation");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.router.score; }, "RouterConfig: score");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.router.weight.source; }, "RouterConfig: weight.source");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.router.weight.epsilon_rule; },
      "RouterConfig: weight.epsilon_rule");
  expect_refused(
      [](MoEConfig & c) -> auto& { return c.router.weight.expert_scale; },
      "RouterConfig: weight.expert_scale");
  expect_refused(
      [&](MoEConfig & c) -> auto& { return groups(c).rule; },
      "RouterConfig: selection.groups.rule");
  expect_refused(
      [&](MoEConfig & c) -> auto& { return groups(c).others; },
      "RouterConfig: selection.groups.others");
}

}  // namespace
}  // namespace moe::config_test
