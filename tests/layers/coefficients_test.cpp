// SPDX-License-Identifier: Apache-2.0
// Coefficients of the routed and the shared output: the layer with them against plain loops,
// central differences and itself in other forms.
#include "moe/layers/coefficients.hpp"

#include <gtest/gtest.h>

#include "../support/layer_claims.hpp"
#include "moe/reference.hpp"

namespace moe::coefficients_test {
namespace {

using testing::expect_central_differences;
using testing::expect_nan_in_its_row_alone;
using testing::expect_same_bits_of_steps;
using testing::expect_same_bits_packed;
using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using testing::run_step;

MoEConfig config_with_coefficients(WeightOn weight_on = WeightOn::output) {
  return {.d_model = 7,
          .d_ff = 5,
          .num_experts = 4,
          .top_k = 2,
          .d_out = 3,
          .shared = SharedExpertConfig{.d_ff = 6, .output_gate = true, .coefficients = true},
          .weight_on = weight_on};
}

constexpr WeightOn all_places[] = {WeightOn::output, WeightOn::input, WeightOn::hidden};

template <class T>
class CoefficientsOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CoefficientsOf, Scalars);

TYPED_TEST(CoefficientsOf, WeighTheRoutedAndTheSharedOutputAsTheReferenceDoes) {
  using T = TypeParam;
  for (const WeightOn weight_on : all_places) {
    const auto layer = make_layer<T>(config_with_coefficients(weight_on), 1);
    const Matrix<T> x = random_matrix<T>(17, 7, 2);
    typename MoELayer<T>::Scratch scratch;
    Matrix<T> y(17, 3);
    layer.forward(x, y, scratch);
    if (weight_on != WeightOn::hidden) {
      EXPECT_TRUE(matrix_near(y, reference::forward(layer, x), sizeof(T) == 8 ? 1e-13 : 1e-5));
    }
    const auto& value = scratch.coefficients.value;
    for (Index t = 0; t < 17; ++t) {
      EXPECT_NEAR(static_cast<double>(value(t, 0) + value(t, 1)), 1.0, 1e-6);
    }
  }
}

TEST(Coefficients, MatchCentralDifferencesForEveryParameterAndPlaceOfTheWeight) {
  for (const WeightOn weight_on : all_places) {
    for (const auto& capacity : {Capacity{}, Capacity{.rows = 2}}) {
      MoEConfig config = config_with_coefficients(weight_on);
      config.capacity = capacity;
      auto layer = make_layer<double>(config, 5);
      expect_central_differences(layer, random_matrix<double>(6, 7, 6));
    }
  }
}

TEST(Coefficients, HaveTheSameBitsForAnyNumberOfThreadsARecomputingTapeAndPackedWeights) {
  const auto layer = make_layer<float>(config_with_coefficients(), 3);
  const Matrix<float> x = random_matrix<float>(67, 7, 4);
  expect_same_bits_packed(layer, x, expect_same_bits_of_steps(layer, x).y);
}

TEST(Coefficients, KeepANaNInTheRowOfItsTokenAndOfPaddingNowhere) {
  const auto padded =
      expect_nan_in_its_row_alone(make_layer<double>(config_with_coefficients(), 3));
  EXPECT_TRUE(padded.grads.coefficients.weight.allFinite());
  EXPECT_FALSE(padded.grads.coefficients.weight.isZero(0));
}

TEST(Coefficients, OfALayerInBfloat16AreThoseOfFloatToItsRounding) {
  const auto layer = make_layer<bf16>(config_with_coefficients(), 3);
  const Matrix<bf16> x = random_matrix<bf16>(9, 7, 4);
  const auto step = run_step(layer, x);
  EXPECT_TRUE(matrix_near(step.y.cast<float>().eval(), reference::forward(layer, x), 2e-2));
  EXPECT_TRUE(step.dx.cast<float>().allFinite());
}

TEST(Coefficients, AreRefusedWithoutASharedExpertOrWithScalesAndLatentExperts) {
  MoEConfig config = config_with_coefficients();
  config.routed_scale = 2.0;
  EXPECT_THROW(config.validate(), std::invalid_argument);
  config = config_with_coefficients();
  config.shared->scale = 0.5;
  EXPECT_THROW(config.validate(), std::invalid_argument);
  config = config_with_coefficients();
  config.latent = LatentConfig{.width = 4};
  EXPECT_THROW(config.validate(), std::invalid_argument);

  auto layer = make_layer<float>(config_with_coefficients(), 3);
  const Matrix<float> x = random_matrix<float>(5, 7, 4);
  MoELayer<float>::Scratch scratch;
  Matrix<float> y(5, 3);
  const auto kept = layer.coefficients();
  layer.coefficients().emplace(8, 1);
  EXPECT_THROW(layer.forward(x, y, scratch), std::invalid_argument);
  layer.coefficients() = kept;
  layer.coefficients()->params().bias.resize(1, 3);
  EXPECT_THROW(layer.forward(x, y, scratch), std::invalid_argument);
  layer.coefficients() = kept;
  layer.shared().reset();
  EXPECT_THROW(layer.forward(x, y, scratch), std::invalid_argument);
  CoefficientTensors<Matrix<float>> params{Matrix<float>::Zero(3, 7), Matrix<float>::Zero(1, 2)};
  EXPECT_THROW(Coefficients<float>{params}, std::invalid_argument);
}

TEST(Coefficients, RefuseTheTapeOfOthersThatStoodInTheLayer) {
  auto layer = make_layer<float>(config_with_coefficients(), 3);
  const Matrix<float> x = random_matrix<float>(5, 7, 4);
  MoELayer<float>::Tape tape;
  Matrix<float> y(5, 3), dx(5, 7);
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  const auto copy = layer.coefficients();
  layer.coefficients() = copy;
  EXPECT_THROW(layer.backward(x, y, tape, dx, grads), std::invalid_argument);
}

}  // namespace
}  // namespace moe::coefficients_test
