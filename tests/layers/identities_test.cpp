// SPDX-License-Identifier: Apache-2.0
// The identities that every mixture of experts obeys.
#include <gtest/gtest.h>

#include <algorithm>

#include "../support/layer_step.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::identities_test {
namespace {

using testing::forward;
using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

MoEConfig small_config() { return {.d_model = 7, .d_ff = 9, .num_experts = 5, .top_k = 2}; }

TEST(LayerIdentities, WithAllExpertsChosenIsTheDenseMixture) {
  MoEConfig config = small_config();
  config.top_k = config.num_experts;
  const MoELayer<double> layer = make_layer<double>(config, 12);
  const Matrix<double> x = random_matrix<double>(11, 7, 13);
  Matrix<double> expected = Matrix<double>::Zero(11, 7), one(11, 7);
  Router<double>::Table table;
  layer.router().route(x, {}, table);
  for (Index e = 0; e < 5; ++e) {
    Expert<double>::Scratch scratch;
    layer.experts()[static_cast<std::size_t>(e)].forward(x, one, scratch);
    expected += table.probs.col(e).asDiagonal() * one;
  }
  EXPECT_TRUE(matrix_near(forward(layer, x), expected, 1e-13));
}

TEST(LayerIdentities, OfIdenticalExpertsIsOneExpert) {
  const Expert<double> expert({7, 9, 7}, ExpertConfig{}, 14);
  const MoELayer<double> layer(Router<double>(7, 5, 3, {}, 15),
                               std::vector<Expert<double>>(5, expert));
  const Matrix<double> x = random_matrix<double>(30, 7, 16);
  Matrix<double> expected(30, 7);
  Expert<double>::Scratch scratch;
  expert.forward(x, expected, scratch);
  EXPECT_TRUE(matrix_near(forward(layer, x), expected, 1e-14));
}

TEST(LayerIdentities, PermutesItsOutputsWithItsTokens) {
  const MoELayer<float> layer = make_layer<float>(small_config(), 17);
  const Matrix<float> x = random_matrix<float>(65, 7, 18);
  Eigen::PermutationMatrix<Eigen::Dynamic> shuffle(65);
  for (int i = 0; i < 65; ++i) {
    shuffle.indices()[i] = (i * 23 + 5) % 65;
  }
  EXPECT_TRUE(same_bits(forward(layer, Matrix<float>(shuffle * x)),
                        Matrix<float>(shuffle * forward(layer, x))));
}

TEST(LayerIdentities, PermutesItsCountsWithItsExpertsAndKeepsItsOutputs) {
  const MoELayer<double> layer = make_layer<double>(small_config(), 19);
  const Matrix<double> x = random_matrix<double>(65, 7, 20);
  auto params = layer.router().params();
  auto experts = layer.experts();
  std::reverse(experts.begin(), experts.end());
  params.weight = Matrix<double>(params.weight.colwise().reverse());
  const MoELayer<double> reversed(Router<double>(params, 2, layer.router().config()), experts);
  Matrix<double> y(65, 7), y_reversed(65, 7);
  MoELayer<double>::Scratch a, b;
  layer.forward(x, y, a);
  reversed.forward(x, y_reversed, b);
  EXPECT_TRUE(matrix_near(y_reversed, y, 1e-14));
  for (Index e = 0; e < 5; ++e) {
    EXPECT_EQ(a.plan.kept(e), b.plan.kept(4 - e));
  }
}

TEST(LayerIdentities, OfAnAlwaysChosenExpertOfWeightOneIsASharedExpert) {
  MoEConfig config = small_config();
  config.router.weight = {.source = WeightSource::one, .renormalise = false};
  config.shared = SharedExpertConfig{.d_ff = 4};
  const MoELayer<double> layer = make_layer<double>(config, 23);
  auto params = layer.router().params();
  params.weight = Matrix<double>::Zero(6, 7);
  params.weight.topRows(5) = layer.router().params().weight;
  std::vector<Expert<double>> experts(layer.experts().begin(), layer.experts().end());
  experts.emplace_back(layer.shared()->params(), config.shared_expert());
  config.router.selection.always = 1;
  const MoELayer<double> inside(Router<double>(params, 3, config.router), std::move(experts));
  const Matrix<double> x = random_matrix<double>(30, 7, 24);
  EXPECT_TRUE(matrix_near(forward(inside, x), forward(layer, x), 1e-13));
}

TEST(LayerIdentities, WithCapacityForAllTokensIsDropless) {
  MoEConfig config = small_config();
  const MoELayer<float> dropless = make_layer<float>(config, 21);
  const Matrix<float> x = random_matrix<float>(40, 7, 22);
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    config.capacity = {.rows = 40, .policy = policy};
    EXPECT_TRUE(same_bits(forward(make_layer<float>(config, 21), x), forward(dropless, x)));
  }
}

}  // namespace
}  // namespace moe::identities_test
