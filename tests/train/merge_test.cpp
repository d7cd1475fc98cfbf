// SPDX-License-Identifier: Apache-2.0
// Layers of merged experts against means by hand, and against what merging must not change.
#include "moe/train/merge.hpp"

#include <gtest/gtest.h>

#include "../support/layer_step.hpp"
#include "../support/throws.hpp"

namespace moe::merge_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

using Groups = std::vector<ExpertId>;
using Weights = std::vector<double>;

const MoEConfig config{.d_model = 6,
                       .d_ff = 5,
                       .num_experts = 4,
                       .top_k = 2,
                       .expert = {.bias = true},
                       .router = {.logits = {.bias = true}, .selection = {.bias = true}},
                       .shared = SharedExpertConfig{.d_ff = 3}};

TEST(MergeExperts, MakesMeansByWeightOfExpertsAndOfTheirRowsInTheRouter) {
  const auto layer = make_layer<double>(config, 1);
  const auto merged = merge_experts(layer, Groups{1, 0, 1, 0}, Weights{3.0, 2.0, 1.0, 0.0});
  ASSERT_EQ(merged.num_experts(), 2);
  const auto& old = layer.experts();
  EXPECT_TRUE(same_bits(merged.experts()[0].params().up, old[1].params().up));
  const auto mean = [](const auto& a, const auto& b) {
    return Matrix<double>(0.75 * a + 0.25 * b);
  };
  ExpertParams<double>::for_each(
      [&](std::string_view name, const auto& got, const auto& a, const auto& b) {
        EXPECT_TRUE(matrix_near(got, mean(a, b), 1e-15)) << name;
      },
      merged.experts()[1].params(), old[0].params(), old[2].params());
  const auto& rows = layer.router().params();
  const auto& got = merged.router().params();
  EXPECT_TRUE(matrix_near(got.weight.row(1), mean(rows.weight.row(0), rows.weight.row(2)), 1e-15));
  EXPECT_TRUE(matrix_near(got.bias.col(1), mean(rows.bias.col(0), rows.bias.col(2)), 1e-15));
  EXPECT_TRUE(matrix_near(got.selection_bias.col(1),
                          mean(rows.selection_bias.col(0), rows.selection_bias.col(2)), 1e-15));
}

TEST(MergeExperts, WeighsExpertsOfNoLoadAlike) {
  const auto layer = make_layer<double>(config, 1);
  const auto merged = merge_experts(layer, Groups{0, 0, 1, 1}, Weights{0.0, 0.0, 0.0, 0.0});
  const Matrix<double> want =
      0.5 * (layer.experts()[0].params().down + layer.experts()[1].params().down);
  EXPECT_TRUE(matrix_near(merged.experts()[0].params().down, want, 1e-15));
}

TEST(MergeExperts, ChangesNothingWhereEachHasAGroupOfItsOwn) {
  const auto layer = make_layer<bf16>(config, 1);
  const auto merged = merge_experts(layer, Groups{2, 0, 3, 1}, Weights{1.0, 0.0, 5.0, 2.0});
  const Matrix<bf16> x = random_matrix<bf16>(20, 6, 2);
  Matrix<bf16> y(20, 6), y_merged(20, 6);
  MoELayer<bf16>::Scratch scratch;
  layer.forward(x, y, scratch);
  merged.forward(x, y_merged, scratch);
  EXPECT_TRUE(matrix_near(y_merged.cast<float>(), y.cast<float>(), 1e-2));
  EXPECT_TRUE(same_bits(merged.experts()[2].params().gate, layer.experts()[0].params().gate));
  EXPECT_EQ(merged.router().params().weight.row(2), layer.router().params().weight.row(0));
}

// Two experts that compute the same, of which tokens choose both.
TEST(MergeExperts, OfTheSameFunctionGiveWhatTheyGave) {
  MoEConfig one = config;
  one.top_k = 1;
  one.router.weight.renormalise = true;  // a weight of 1
  one.router.selection.bias = false;
  auto layer = make_layer<double>(one, 1);
  for (const std::size_t e : {0U, 2U}) {
    layer.experts()[e + 1].params() = layer.experts()[e].params();
    const Index row = static_cast<Index>(e);
    layer.router().params().weight.row(row + 1) = layer.router().params().weight.row(row);
    layer.router().params().bias(0, row + 1) = layer.router().params().bias(0, row);
  }
  const auto merged = merge_experts(layer, Groups{0, 0, 1, 1}, Weights{0.25, 0.75, 0.5, 0.5});
  const Matrix<double> x = random_matrix<double>(20, 6, 2);
  Matrix<double> y(20, 6), y_merged(20, 6);
  MoELayer<double>::Scratch scratch;
  layer.forward(x, y, scratch);
  merged.forward(x, y_merged, scratch);
  EXPECT_TRUE(matrix_near(y_merged, y, 1e-13));
}

TEST(MergeExperts, KeepsAScaleOfAllExperts) {
  MoEConfig scaled = config;
  scaled.router.weight.expert_scale = ExpertScale::learned_for_all;
  const auto layer = make_layer<double>(scaled, 1);
  const auto merged = merge_experts(layer, Groups{0, 0, 1, 1}, Weights{1.0, 1.0, 1.0, 1.0});
  EXPECT_TRUE(
      same_bits(merged.router().params().expert_scale, layer.router().params().expert_scale));
  const auto kept = keep_experts(layer, Groups{0, 1, 3});
  EXPECT_TRUE(same_bits(kept.router().params().expert_scale, layer.router().params().expert_scale));
}

TEST(MergeExperts, RefusesAGroupOfSeveralKinds) {
  const MoEConfig three{.d_model = 6, .d_ff = 5, .num_experts = 3, .top_k = 1};
  const auto layer = make_layer<double>(three, 1);
  auto experts = make_experts<double>(three, 1);
  experts[2] = Expert<double>({6, 5, 6}, {.gated = false}, 1);
  const MoELayer<double> mixed(layer.router(), experts);
  const std::vector<double> weight(3, 1.0);
  EXPECT_EQ(message_of([&] {
              merge_experts(mixed, std::vector<ExpertId>{0, 1, 1}, weight);
            }),
            "merge_experts: expert 2 is of another kind than expert 1 of its group");
  EXPECT_EQ(merge_experts(mixed, std::vector<ExpertId>{0, 0, 1}, weight).num_experts(), 2);
}

TEST(MergeExperts, RefusesGroupsAndWeightsThatAreNone) {
  const auto layer = make_layer<double>(config, 1);
  const auto message = [&](const Groups& groups, const Weights& weights) {
    return message_of([&] { merge_experts(layer, groups, weights); });
  };
  const Weights ones(4, 1.0);
  EXPECT_EQ(message({0, 1}, ones),
            "merge_experts: there are 2 groups and 4 weights, expected one for each of 4 experts");
  EXPECT_EQ(message({0, 1, 4, 2}, ones), "merge_experts: group 4, expected in [0, 4)");
  EXPECT_EQ(message({0, 0, 0, 0}, ones),
            "merge_experts: there are 1 groups, expected at least top_k = 2");
  EXPECT_EQ(message({0, 2, 2, 0}, ones), "merge_experts: group 1 has no expert, expected one");
  EXPECT_EQ(message({0, 1, 1, 0}, {1.0, -1.0, 1.0, 1.0}),
            "merge_experts: weight 1 is -1, expected finite and at least 0");
  MoEConfig always = config;
  always.router.selection.always = 1;
  EXPECT_EQ(message_of([&] {
              merge_experts(make_layer<double>(always, 1), Groups{0, 1, 1, 0}, ones);
            }),
            "merge_experts: the router selects 1 experts always, expected none");
}

}  // namespace
}  // namespace moe::merge_test
