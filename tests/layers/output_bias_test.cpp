// SPDX-License-Identifier: Apache-2.0
// A bias of a layer's output, which is a shared expert of no hidden width: against plain sums,
// central differences, and in every form of the layer.
#include <gtest/gtest.h>

#include <limits>

#include "../support/layer_claims.hpp"
#include "../support/storages.hpp"
#include "moe/cost.hpp"
#include "moe/layers/packed_layer.hpp"
#include "moe/reference.hpp"

namespace moe::output_bias_test {
namespace {

using testing::expect_same_bits_of_steps;
using testing::gradient_error;
using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using testing::run_step;
using testing::same_bits;

MoEConfig config_with_bias() {
  return {.d_model = 7,
          .d_ff = 5,
          .num_experts = 4,
          .top_k = 2,
          .d_out = 3,
          .shared = SharedExpertConfig{.d_ff = 0, .bias = true}};
}

template <class T>
class OutputBias : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(OutputBias, Scalars);

TYPED_TEST(OutputBias, IsAddedToTheOutputOnceAToken) {
  using T = TypeParam;
  const auto layer = make_layer<T>(config_with_bias(), 1);
  auto without = layer;
  without.shared().reset();
  const Matrix<T> x = random_matrix<T>(17, 7, 2);
  typename MoELayer<T>::Scratch scratch;
  Matrix<T> y(17, 3), routed(17, 3);
  layer.forward(x, y, scratch);
  without.forward(x, routed, scratch);
  const auto& bias = layer.shared()->params().down_bias;
  EXPECT_TRUE(
      matrix_near(y, (routed.rowwise() + bias.row(0)).eval(), sizeof(T) == 8 ? 1e-14 : 1e-6));
  EXPECT_TRUE(matrix_near(y, reference::forward(layer, x), sizeof(T) == 8 ? 1e-13 : 1e-5));
}

TEST(OutputBiasOfALayer, HasItsGradientAndLeavesThoseOfOthersAsTheyAre) {
  auto layer = make_layer<double>(config_with_bias(), 5);
  Matrix<double> x = random_matrix<double>(6, 7, 6), y(6, 3);
  const auto step = run_step(layer, x);
  EXPECT_TRUE(matrix_near(step.grads.shared.down_bias, step.dy.colwise().sum().eval(), 1e-14));
  MoELayer<double>::Scratch scratch;
  const auto f = [&] {
    layer.forward(x, y, scratch);
    return (y.array() * step.dy.array()).sum();
  };
  EXPECT_LT(gradient_error(f, x, step.dx), 1e-7);
  layer.for_each_parameter(
      [&](const std::string& name, auto& parameter, const auto& gradient) {
        EXPECT_LT(gradient_error(f, parameter, gradient), 1e-7) << name;
      },
      step.grads);
}

TEST(OutputBiasOfALayer, HasTheSameBitsForAnyNumberOfThreadsAndARecomputingTape) {
  expect_same_bits_of_steps(make_layer<float>(config_with_bias(), 3),
                            random_matrix<float>(67, 7, 4));
}

template <class S>
class OutputBiasIn : public ::testing::Test {};
TYPED_TEST_SUITE(OutputBiasIn, testing::AllStorages);

TYPED_TEST(OutputBiasIn, IsPackedAsItIs) {
  using S = TypeParam;
  auto layer = make_layer<float>(config_with_bias(), 3);
  for (auto& expert : layer.experts()) {
    expert.params().down.setZero();
  }
  const auto packed = pack<S>(layer);
  const Matrix<Wide<S>> x = random_matrix<Wide<S>>(9, 7, 4);
  Matrix<Wide<S>> y(9, 3);
  typename PackedLayer<S>::Scratch scratch;
  packed.forward(x, y, scratch);
  const auto bias = layer.shared()->params().down_bias.template cast<Wide<S>>().eval();
  EXPECT_TRUE(same_bits(y, bias.replicate(9, 1).eval()));
  EXPECT_TRUE(same_bits(unpack<S>(packed).shared()->params().down_bias, bias));
}

TEST(OutputBiasOfALayer, DoesNotReachPadding) {
  const auto layer = make_layer<double>(config_with_bias(), 3);
  Matrix<double> x = random_matrix<double>(5, 7, 4);
  x(2, 3) = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0};
  const auto padded = run_step(layer, x, {.tokens = {.padding = padding}});
  EXPECT_TRUE(padded.y.row(2).isZero(0));
  EXPECT_TRUE(padded.dx.allFinite());
  const Matrix<double> dy_of_tokens = padded.dy.colwise().sum() - padded.dy.row(2);
  EXPECT_TRUE(matrix_near(padded.grads.shared.down_bias, dy_of_tokens, 1e-14));
}

TEST(OutputBiasOfALayer, CostsASumAToken) {
  const MoEConfig config = config_with_bias();
  MoEConfig without = config;
  without.shared.reset();
  EXPECT_EQ(parameters(config).shared - parameters(without).shared, 3);
  const Work work = predicted_work(config, 10);
  EXPECT_EQ(forward_flops(config, work).shared.total(), 30.0);
}

TEST(OutputBiasOfALayer, IsTheOnlyReasonForAnExpertWithoutWidth) {
  MoEConfig config = config_with_bias();
  config.shared->bias = false;
  EXPECT_THROW(config.validate(), std::invalid_argument);
  config.shared->bias.reset();
  EXPECT_THROW(config.validate(), std::invalid_argument);
  EXPECT_THROW((Expert<float>({5, 0, 3}, {}, 1)), std::invalid_argument);
  EXPECT_THROW((Expert<float>({5, -1, 3}, {.bias = true}, 1)), std::invalid_argument);
}

}  // namespace
}  // namespace moe::output_bias_test
