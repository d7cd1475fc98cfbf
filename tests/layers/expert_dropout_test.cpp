// SPDX-License-Identifier: Apache-2.0
// A call that leaves out choices: against a plain sum over those that are left, its gradients, and
// that nothing but seed and place decides.
#include <gtest/gtest.h>

#include <numeric>

#include "../support/depth_layers.hpp"
#include "../support/finite_difference.hpp"
#include "../support/layer_step.hpp"
#include "../support/throws.hpp"
#include "moe/losses/balance.hpp"
#include "moe/routing/uniform_choice.hpp"

namespace moe::expert_dropout_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::run_step;
using testing::same_bits;
using testing::same_grads;
using Layer = MoELayer<double>;

MoEConfig config() {
  return {.d_model = 6,
          .d_ff = 5,
          .num_experts = 4,
          .top_k = 3,
          .expert = {.bias = true},
          .shared = SharedExpertConfig{.d_ff = 4}};
}

constexpr CallOptions dropping{.num_threads = 1, .noise_seed = 5, .expert_dropout = 0.4};

TEST(ExpertDropout, IsTheSumOverTheChoicesThatAreLeftTimesOneOverTheirShare) {
  MoEConfig without_shared = config();
  without_shared.shared.reset();
  const Layer layer = make_layer<double>(without_shared, 1);
  const Matrix<double> x = random_matrix<double>(40, 6, 2);
  Matrix<double> y(40, 6), row(1, 6);
  Layer::Scratch scratch;
  layer.forward(x, y, scratch, dropping);
  Matrix<double> want = Matrix<double>::Zero(40, 6);
  Expert<double>::Scratch memory;
  Index left = 0;
  for (Index t = 0; t < 40; ++t) {
    for (Index k = 0; k < 3; ++k) {
      if (scratch.kept[t * 3 + k]) {
        const auto e = static_cast<std::size_t>(scratch.routing.expert(t, k));
        layer.experts()[e].forward(x.row(t), row, memory);
        want.row(t) += scratch.routing.weight(t, k) / 0.6 * row;
        ++left;
      }
    }
  }
  EXPECT_TRUE(matrix_near(y, want, 1e-13));
  EXPECT_EQ(scratch.plan.num_rows(), left);
  EXPECT_NEAR(static_cast<double>(left) / 120.0, 0.6, 0.13);
  EXPECT_EQ(scratch.kept.num_dropped(), 0) << "none was over capacity";
}

TEST(ExpertDropout, DrawsApartFromARouterThatDraws) {
  const auto router = linear_router<double>(6, 2, UniformChoice<double>(2, {.top_k = 2}), 1);
  const MoELayer<double, std::remove_const_t<decltype(router)>> layer(
      router, make_experts<double>({.d_model = 6, .d_ff = 5, .num_experts = 2, .top_k = 2}, 1));
  const Matrix<double> x = random_matrix<double>(4000, 6, 2);
  Matrix<double> y(4000, 6);
  std::remove_const_t<decltype(layer)>::Scratch scratch;
  layer.forward(x, y, scratch, {.num_threads = 1, .noise_seed = 5, .expert_dropout = 0.5});
  for (Index e = 0; e < 2; ++e) {
    const auto rows =
        static_cast<double>(scratch.plan.groups().end(e) - scratch.plan.groups().begin(e));
    EXPECT_NEAR(rows / 4000.0, 0.5, 0.05) << e;
  }
}

TEST(ExpertDropout, IsInTheMeanTheLayerWithoutIt) {
  const Layer layer = make_layer<double>(config(), 1);
  const Matrix<double> x = random_matrix<double>(3, 6, 2);
  Matrix<double> y(3, 6), plain(3, 6), mean = Matrix<double>::Zero(3, 6);
  Layer::Scratch scratch;
  layer.forward(x, plain, scratch);
  constexpr int calls = 4000;
  for (int i = 0; i < calls; ++i) {
    CallOptions call = dropping;
    call.noise_seed = static_cast<std::uint64_t>(i);
    layer.forward(x, y, scratch, call);
    mean += y / calls;
  }
  EXPECT_TRUE(matrix_near(mean, plain, 0.05 * plain.cwiseAbs().maxCoeff()));
}

TEST(ExpertDropout, ChangesNoBitWithoutASeedOrOfZero) {
  const Layer layer = make_layer<double>(config(), 1);
  const Matrix<double> x = random_matrix<double>(9, 6, 2);
  const auto plain = run_step(layer, x);
  for (const CallOptions& call :
       {CallOptions{.expert_dropout = 0.4}, CallOptions{.noise_seed = 5, .expert_dropout = 0.0}}) {
    const auto step = run_step(layer, x, call);
    EXPECT_TRUE(same_bits(step.y, plain.y));
    EXPECT_TRUE(same_bits(step.dx, plain.dx));
    EXPECT_TRUE(same_grads(layer, step.grads, plain.grads));
  }
}

TEST(ExpertDropout, GoesBySeedAndPlaceAlone) {
  const Layer layer = make_layer<double>(config(), 1);
  const Matrix<double> x = random_matrix<double>(64, 6, 2);
  Matrix<double> y(64, 6), part(16, 6);
  Layer::Scratch scratch;
  layer.forward(x, y, scratch, dropping);
  std::vector<Index> position(16);
  std::iota(position.begin(), position.end(), Index{20});
  CallOptions call = dropping;
  call.tokens.position = position;
  layer.forward(x.middleRows(20, 16), part, scratch, call);
  EXPECT_TRUE(same_bits(part, y.middleRows(20, 16).eval()));
  const auto one = run_step(layer, x, dropping);
  call = dropping;
  call.num_threads = 3;
  const auto three = run_step(layer, x, call);
  EXPECT_TRUE(same_bits(one.y, three.y));
  EXPECT_TRUE(same_grads(layer, one.grads, three.grads));
  call.noise_seed = 6;
  EXPECT_FALSE(same_bits(run_step(layer, x, call).y, one.y));
}

TEST(ExpertDropout, HasItsGradientsWhereverWeightsActOnOutputsAndInALatentLayer) {
  std::vector<MoEConfig> configs(3, config());
  configs[1].weight_on = WeightOn::hidden;
  configs[2].latent = LatentConfig{.width = 4};
  for (MoEConfig& c : configs) {
    c.top_k = c.num_experts;  // no choice changes
    Layer layer = make_layer<double>(c, 7);
    Matrix<double> x = random_matrix<double>(7, 6, 8), y(7, 6);
    auto step = run_step(layer, x, dropping);
    Layer::Scratch scratch;
    const auto f = [&] {
      layer.forward(x, y, scratch, dropping);
      return y.cwiseProduct(step.dy).sum();
    };
    EXPECT_LT(testing::gradient_error(f, x, step.dx), 1e-7);
    layer.for_each_parameter(
        [&](const ParameterName& name, auto& parameter, const auto& grad) {
          EXPECT_LT(testing::gradient_error(f, parameter, grad), 1e-7) << name.text();
        },
        step.grads);
  }
}

TEST(ExpertDropout, IsDrawnOnceForATapeThatComputesAgain) {
  const Layer layer = make_layer<double>(config(), 1);
  const Matrix<double> x = random_matrix<double>(12, 6, 2);
  const auto kept = run_step(layer, x, dropping);
  Layer::Tape memory;
  Layer::RecomputingTape tape(memory);
  Matrix<double> y(12, 6), dx(12, 6);
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape, dropping);
  layer.backward(x, kept.dy, tape, dx, grads);
  EXPECT_TRUE(same_bits(dx, kept.dx));
  EXPECT_TRUE(same_grads(layer, grads, kept.grads));
}

TEST(ExpertDropout, IsNotSeenByLosses) {
  const Layer layer = make_layer<double>(config(), 1);
  const Matrix<double> x = random_matrix<double>(12, 6, 2);
  Matrix<double> y(12, 6);
  Layer::Scratch plain, dropped;
  layer.forward(x, y, plain);
  layer.forward(x, y, dropped, dropping);
  EXPECT_EQ(load_balancing_loss<double>(dropped.routing).value,
            load_balancing_loss<double>(plain.routing).value);
}

TEST(ExpertDropout, ReachesTheBlockOfADepthLayer) {
  const auto depth =
      testing::depth::make_depth<double>(make_layer<double>(config(), 1), {.capacity = 0.5});
  const Matrix<double> x = random_matrix<double>(16, 6, 2);
  CallOptions call = dropping;
  const Matrix<double> y = testing::depth::forward(depth, x, call);
  call.expert_dropout = 0.0;
  EXPECT_FALSE(same_bits(y, testing::depth::forward(depth, x, call)));
}

TEST(ExpertDropout, IsRefusedOutsideOfItsRangeAndWhereWeightsActOnInputs) {
  const Layer layer = make_layer<double>(config(), 1);
  MoEConfig on_input = config();
  on_input.weight_on = WeightOn::input;
  const Layer other = make_layer<double>(on_input, 1);
  const Matrix<double> x = random_matrix<double>(2, 6, 2);
  Matrix<double> y(2, 6);
  Layer::Scratch scratch;
  CallOptions call = dropping;
  EXPECT_EQ(message_of([&] { other.forward(x, y, scratch, call); }),
            "MoELayer: the call sets expert_dropout, expected none where weights act on the inputs "
            "of experts");
  for (const double probability : {1.0, -0.1, std::nan("")}) {
    call.expert_dropout = probability;
    EXPECT_THROW(layer.forward(x, y, scratch, call), std::invalid_argument) << probability;
  }
}

}  // namespace
}  // namespace moe::expert_dropout_test
