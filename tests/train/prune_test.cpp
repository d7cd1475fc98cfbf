// SPDX-License-Identifier: Apache-2.0
// Layers of fewer experts, against the whole ones.
#include "moe/train/prune.hpp"

#include <gtest/gtest.h>

#include <array>

#include "../support/layer_step.hpp"
#include "../support/throws.hpp"

namespace moe::prune_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;

const MoEConfig config{.d_model = 6,
                       .d_ff = 5,
                       .num_experts = 4,
                       .top_k = 2,
                       .router = {.logits = {.bias = true}},
                       .shared = SharedExpertConfig{.d_ff = 3}};

/// Expert 1 is never chosen.
MoELayer<double> layer_with_a_dead_expert() {
  auto layer = make_layer<double>(config, 1);
  layer.router().params().bias(0, 1) = -100.0;
  return layer;
}

TEST(ExpertSaliency, IsTheMeanOfWeightTimesTheNormOfAnOutput) {
  const auto layer = layer_with_a_dead_expert();
  MoELayer<double>::Scratch scratch;
  ExpertSaliency saliency(4);
  std::array<double, 4> sum{};
  std::array<int, 4> rows{};
  for (const unsigned seed : {2U, 3U}) {
    const Matrix<double> x = random_matrix<double>(20, 6, seed);
    Matrix<double> y(20, 6);
    layer.forward(x, y, scratch);
    saliency.add(scratch);
    for (Index t = 0; t < 20; ++t) {
      for (Index k = 0; k < 2; ++k) {
        const auto e = static_cast<std::size_t>(scratch.routing.expert(t, k));
        Expert<double>::Scratch memory;
        Matrix<double> out(1, 6);
        layer.experts()[e].forward(x.row(t), out, memory);
        sum[e] += scratch.routing.weight(t, k) * out.norm();
        ++rows[e];
      }
    }
  }
  const std::vector<double> values = saliency.values();
  for (std::size_t e = 0; e < 4; ++e) {
    EXPECT_NEAR(values[e], rows[e] > 0 ? sum[e] / rows[e] : 0.0, 1e-12) << e;
  }
  EXPECT_EQ(values[1], 0.0);
  EXPECT_EQ(saliency.best(3), (std::vector<ExpertId>{0, 2, 3}));
}

TEST(ExpertSaliency, CountsAWeightOnceWhereverItActs) {
  MoEConfig on_output = config;
  on_output.shared.reset();
  MoEConfig on_hidden = on_output;
  on_hidden.weight_on = WeightOn::hidden;
  const Matrix<double> x = random_matrix<double>(20, 6, 2);
  const auto saliency_of = [&](const MoEConfig& c) {
    const auto layer = make_layer<double>(c, 1);
    MoELayer<double>::Scratch scratch;
    Matrix<double> y(20, 6);
    layer.forward(x, y, scratch);
    ExpertSaliency saliency(4, c.weight_on);
    saliency.add(scratch);
    return saliency.values();
  };
  const std::vector<double> want = saliency_of(on_output), got = saliency_of(on_hidden);
  for (std::size_t e = 0; e < 4; ++e) {
    EXPECT_NEAR(got[e], want[e], 1e-12) << e;
  }
}

TEST(ExpertSaliency, OfNanRanksBelowEveryNumber) {
  const auto layer = layer_with_a_dead_expert();
  Matrix<double> x = random_matrix<double>(20, 6, 2), y(20, 6);
  MoELayer<double>::Scratch scratch;
  layer.forward(x, y, scratch);
  const ExpertId bad = scratch.routing.expert(0, 0);
  scratch.rows.row(scratch.plan.groups().begin(bad)).setConstant(std::nan(""));
  ExpertSaliency saliency(4);
  saliency.add(scratch);
  EXPECT_TRUE(std::isnan(saliency.values()[static_cast<std::size_t>(bad)]));
  const std::vector<ExpertId> best = saliency.best(3);
  EXPECT_EQ(std::count(best.begin(), best.end(), bad), 0);
}

TEST(KeepExperts, ChangesNothingButTheSizeWithoutADeadOne) {
  const auto layer = layer_with_a_dead_expert();
  const std::array<ExpertId, 3> kept{0, 2, 3};
  const auto smaller = keep_experts(layer, kept);
  EXPECT_EQ(smaller.num_experts(), 3);
  const Matrix<double> x = random_matrix<double>(20, 6, 2);
  Matrix<double> y(20, 6), y_smaller(20, 6);
  MoELayer<double>::Scratch scratch;
  layer.forward(x, y, scratch);
  smaller.forward(x, y_smaller, scratch);
  EXPECT_TRUE(matrix_near(y_smaller, y, 1e-13));
}

TEST(KeepExperts, PutsThemInTheOrderThatIsAskedFor) {
  const auto layer = make_layer<double>(config, 1);
  const std::array<ExpertId, 2> kept{3, 0};
  const auto smaller = keep_experts(layer, kept);
  EXPECT_EQ(smaller.experts()[0].params().up, layer.experts()[3].params().up);
  EXPECT_EQ(smaller.router().params().weight.row(1), layer.router().params().weight.row(0));
  EXPECT_EQ(smaller.router().params().bias(0, 0), layer.router().params().bias(0, 3));
}

TEST(KeepExperts, RefusesWhatIsNoSetOfItsExperts) {
  const auto layer = make_layer<double>(config, 1);
  const auto message = [&](std::vector<ExpertId> kept) {
    return message_of([&] { keep_experts(layer, kept); });
  };
  EXPECT_EQ(message({0}), "keep_experts: there are 1, expected at least top_k = 2");
  EXPECT_EQ(message({0, 4}), "keep_experts: expert 4, expected in [0, 4)");
  EXPECT_EQ(message({0, 0}), "keep_experts: expert 0 twice, expected once");
  EXPECT_EQ(message_of([] { ExpertSaliency(3).best(4); }),
            "ExpertSaliency: count = 4, expected in [1, 3]");
}

}  // namespace
}  // namespace moe::prune_test
