// SPDX-License-Identifier: Apache-2.0
// A norm of the output: the layer with it against plain loops, central differences and itself in
// other forms.
#include "moe/layers/output_norm.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "../support/layer_claims.hpp"
#include "moe/reference.hpp"

namespace moe::output_norm_test {
namespace {

using testing::expect_central_differences;
using testing::expect_nan_in_its_row_alone;
using testing::expect_same_bits_of_steps;
using testing::expect_same_bits_packed;
using testing::forward;
using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using testing::run_step;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

MoEConfig normed_config() {
  return {.d_model = 7,
          .d_ff = 5,
          .num_experts = 4,
          .top_k = 2,
          .d_out = 3,
          .shared = SharedExpertConfig{.d_ff = 6, .output_gate = true, .scale = 0.5},
          .output_norm = OutputNormConfig{.eps = 1e-3},
          .routed_scale = 2.0};
}

/// A norm with whatever a layer can have before it.
std::vector<MoEConfig> normed_configs() {
  std::vector<MoEConfig> all(5, normed_config());
  all[1].shared.reset();
  all[2].latent = LatentConfig{.width = 4, .norm = true};
  all[3].weight_on = WeightOn::input;
  all[4].routed_scale = all[4].shared->scale = 1.0;
  all[4].shared->coefficients = true;
  return all;
}

template <class T>
class OutputNormOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(OutputNormOf, Scalars);

TYPED_TEST(OutputNormOf, NormsTheSumOfTheRoutedAndTheSharedOutputAsTheReferenceDoes) {
  using T = TypeParam;
  for (const MoEConfig& config : normed_configs()) {
    const auto layer = make_layer<T>(config, 1);
    const Matrix<T> x = random_matrix<T>(17, 7, 2);
    typename MoELayer<T>::Scratch scratch;
    Matrix<T> y(17, 3);
    layer.forward(x, y, scratch);
    EXPECT_TRUE(matrix_near(y, reference::forward(layer, x), sizeof(T) == 8 ? 1e-13 : 1e-5));
  }
}

TEST(OutputNorm, MatchesCentralDifferencesForEveryParameterWithWhateverIsBeforeIt) {
  for (MoEConfig config : normed_configs()) {
    for (const auto& capacity : {Capacity{}, Capacity{.rows = 2}}) {
      config.capacity = capacity;
      auto layer = make_layer<double>(config, 5);
      expect_central_differences(layer, random_matrix<double>(6, 7, 6));
    }
  }
}

TEST(OutputNorm, HasTheSameBitsForAnyNumberOfThreadsARecomputingTapeAndPackedWeights) {
  const auto layer = make_layer<float>(normed_config(), 3);
  const Matrix<float> x = random_matrix<float>(67, 7, 4);
  expect_same_bits_packed(layer, x, expect_same_bits_of_steps(layer, x).y);
}

TEST(OutputNorm, KeepsANaNInTheRowOfItsTokenAndOfPaddingNowhere) {
  const auto padded = expect_nan_in_its_row_alone(make_layer<double>(normed_config(), 3));
  EXPECT_TRUE(padded.grads.output_norm.scale.allFinite());
  EXPECT_FALSE(padded.grads.output_norm.scale.isZero(0));
}

TEST(OutputNorm, WithANaNInItsScaleDoesNotReachPadding) {
  auto layer = make_layer<double>(normed_config(), 3);
  layer.output_norm()->params().scale(0, 1) = nan;
  const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0};
  const Matrix<double> y =
      forward(layer, random_matrix<double>(5, 7, 4), {.tokens = {.padding = padding}});
  EXPECT_TRUE(y.row(2).isZero(0));
  EXPECT_TRUE(y.col(1).head(2).array().isNaN().all());
}

TEST(OutputNorm, OfALayerInBfloat16IsThatOfFloatToItsRounding) {
  const auto layer = make_layer<bf16>(normed_config(), 3);
  const Matrix<bf16> x = random_matrix<bf16>(9, 7, 4);
  const auto step = run_step(layer, x);
  EXPECT_TRUE(matrix_near(step.y.cast<float>().eval(), reference::forward(layer, x), 3e-2));
  EXPECT_TRUE(step.dx.cast<float>().allFinite());
}

TEST(OutputNorm, IsRefusedWithANegativeEpsilonOrInAnotherWidth) {
  MoEConfig config = normed_config();
  for (const double eps : {-1e-6, nan}) {
    config.output_norm->eps = eps;
    EXPECT_THROW(config.validate(), std::invalid_argument) << eps;
  }
  auto layer = make_layer<float>(normed_config(), 3);
  const Matrix<float> x = random_matrix<float>(5, 7, 4);
  MoELayer<float>::Scratch scratch;
  Matrix<float> y(5, 3);
  layer.output_norm()->params().scale.resize(1, 4);
  EXPECT_THROW(layer.forward(x, y, scratch), std::invalid_argument);
  layer.output_norm().emplace(7, OutputNormConfig{});
  EXPECT_THROW(layer.forward(x, y, scratch), std::invalid_argument);
  OutputNormTensors<Matrix<float>> params{Matrix<float>::Ones(2, 3)};
  EXPECT_THROW((OutputNorm<float>{params, {}}), std::invalid_argument);
}

TEST(OutputNorm, RefusesTheTapeOfAnotherThatStoodInTheLayer) {
  auto layer = make_layer<float>(normed_config(), 3);
  const Matrix<float> x = random_matrix<float>(5, 7, 4);
  MoELayer<float>::Tape tape;
  Matrix<float> y(5, 3), dx(5, 7);
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  const auto copy = layer.output_norm();
  layer.output_norm() = copy;
  EXPECT_THROW(layer.backward(x, y, tape, dx, grads), std::invalid_argument);
}

}  // namespace
}  // namespace moe::output_norm_test
