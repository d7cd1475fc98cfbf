// SPDX-License-Identifier: Apache-2.0
// The report of a pack against plain sums over the tensors, and y within what follows from it.
#include "moe/layers/pack_error.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "../support/layer_step.hpp"
#include "../support/pack_bound.hpp"
#include "../support/storages.hpp"
#include "../support/throws.hpp"

namespace moe::pack_error_test {
namespace {

using testing::make_layer;
using testing::message_of;
using testing::PackBound;
using testing::random_matrix;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// Widths that are not whole blocks, and every part that computes with packed weights.
std::vector<MoEConfig> configs() {
  const MoEConfig plain{.d_model = 96, .d_ff = 130, .num_experts = 3, .top_k = 2};
  MoEConfig shared = plain, ungated = plain, clamped = plain, latent = plain;
  shared.d_model = 37;
  shared.expert.bias = true;
  shared.shared = SharedExpertConfig{.d_ff = 71, .output_gate = true};
  shared.routed_scale = 2.5;
  ungated.expert = {.activation = Activation::relu_squared, .gated = false};
  ungated.weight_on = WeightOn::hidden;
  clamped.expert = {
      .activation = Activation::gelu_quick, .bias = true, .limit = 0.7, .up_offset = 1.0};
  clamped.weight_on = WeightOn::input;
  latent.latent = LatentConfig{.width = 40, .norm = true};
  return {plain, shared, ungated, clamped, latent};
}

template <class S>
class PackErrorsOf : public ::testing::Test {};
TYPED_TEST_SUITE(PackErrorsOf, testing::FloatStorages);

bool is_packed(const std::string& name) {
  return (name.starts_with("experts.") || name.starts_with("shared.")) &&
         (name.ends_with(".gate") || name.ends_with(".up") || name.ends_with(".down"));
}

TYPED_TEST(PackErrorsOf, NamesEveryPackedTensorAndSaysHowFarItsNumbersAreOff) {
  for (const MoEConfig& config : configs()) {
    const MoELayer<float> layer = make_layer<float>(config, 7);
    const auto packed = pack<TypeParam>(layer);
    const std::vector<PackError> errors = pack_errors(layer, packed);
    std::map<std::string, Matrix<double>> stored;
    unpack<TypeParam>(packed).for_each_parameter(
        [&](const std::string& name, const auto& w) { stored[name] = w.template cast<double>(); });
    std::size_t i = 0;
    layer.for_each_parameter([&](const std::string& name, const auto& weight) {
      if (!is_packed(name)) {
        return;
      }
      const Matrix<double> w = weight.template cast<double>(), off = stored.at(name) - w;
      const double root = std::sqrt(static_cast<double>(w.size()));
      ASSERT_LT(i, errors.size());
      EXPECT_EQ(errors[i].tensor, name);
      EXPECT_EQ(errors[i].size, w.size());
      EXPECT_EQ(errors[i].not_finite, 0);
      EXPECT_NEAR(errors[i].rms, off.norm() / root, 1e-12) << name;
      EXPECT_NEAR(errors[i].weight_rms, w.norm() / root, 1e-12) << name;
      EXPECT_EQ(errors[i].largest, off.cwiseAbs().maxCoeff()) << name;
      EXPECT_NEAR(errors[i].relative(), off.norm() / w.norm(), 1e-12) << name;
      ++i;
    });
    EXPECT_EQ(i, errors.size());
  }
}

TEST(PackErrors, OfWeightsOfTheirOwnScalarAreNone) {
  const MoELayer<double> layer = make_layer<double>(configs()[1], 7);
  for (const PackError& error : pack_errors(layer, pack<double>(layer))) {
    EXPECT_EQ(error.rms, 0.0) << error.tensor;
    EXPECT_EQ(error.largest, 0.0) << error.tensor;
    EXPECT_EQ(error.relative(), 0.0) << error.tensor;
  }
}

TEST(PackErrors, OfZerosAreNone) {
  const Matrix<float> zeros = Matrix<float>::Zero(3, 40);
  EXPECT_EQ(pack_error("w", zeros, PackedMatrix<q4>({&zeros}).unpack(0)).relative(), 0.0);
}

// A block of integers has one scale, so all of its numbers are lost with one: the last of 37
// weights is in a block of 32 k that lacks 27, or of 256. Floats have NaN.
TYPED_TEST(PackErrorsOf, SayWhichTensorHasWeightsThatAreNotFinite) {
  for (const double bad : {nan, HUGE_VAL, -HUGE_VAL}) {
    MoELayer<float> layer = make_layer<float>(configs()[1], 7);
    layer.experts()[2].params().up(3, 36) = static_cast<float>(bad);
    Index lost = 1;
    if constexpr (requires { PackedMatrix<TypeParam>::Weight::depth; }) {
      lost =
          37 - 36 / PackedMatrix<TypeParam>::Weight::depth * PackedMatrix<TypeParam>::Weight::depth;
    }
    for (const PackError& error : pack_errors(layer, pack<TypeParam>(layer))) {
      const bool named = error.tensor == "experts.2.up";
      EXPECT_EQ(error.not_finite, named ? lost : 0) << error.tensor;
      EXPECT_EQ(std::isnan(error.rms), named) << error.tensor;
      EXPECT_EQ(std::isnan(error.largest), named) << error.tensor;
      EXPECT_EQ(std::isnan(error.relative()), named) << error.tensor;
    }
  }
}

TEST(PackErrors, SayThatWeightsAreTooLargeForTheScale) {
  const Matrix<float> w = Matrix<float>::Constant(2, 40, 1e8f);
  const PackError error = pack_error("w", w, PackedMatrix<q8>({&w}).unpack(0));
  EXPECT_EQ(error.not_finite, 80);
  EXPECT_TRUE(std::isnan(error.rms));
  EXPECT_NEAR(error.weight_rms, 1e8, 1);
}

TEST(PackErrors, RefuseAnotherLayer) {
  const MoELayer<float> layer = make_layer<float>(configs()[0], 7);
  const auto of = [&](const MoEConfig& config) {
    return message_of([&] { pack_errors(layer, pack<q8>(make_layer<float>(config, 7))); });
  };
  MoEConfig more = configs()[0], wider = configs()[0], shared = configs()[0];
  more.num_experts = 4;
  wider.d_ff = 131;
  shared.shared = SharedExpertConfig{.d_ff = 8};
  EXPECT_EQ(of(more), "pack_errors: the packed layer has 4 experts, expected 3");
  EXPECT_EQ(of(wider), "experts.0.gate is (131, 96), expected (130, 96)");
  EXPECT_EQ(of(shared), "pack_errors: the packed layer has 3 experts and a shared one, expected 3");
}

/// The layer that was packed, in double, is nowhere further off than the report allows.
template <class S>
void expect_within_bound(const MoELayer<float>& layer, const Matrix<float>& x, const char* what) {
  const auto packed = pack<S>(layer);
  const PackBound<S, Router<float>> bound(layer, pack_errors(layer, packed));
  typename PackedLayer<S>::Scratch scratch;
  Matrix<float> y(x.rows(), layer.d_out());
  packed.forward(x, y, scratch);
  const Matrix<double> off = y.cast<double>() - reference::forward(layer, x);
  for (Index t = 0; t < x.rows(); ++t) {
    const double most = bound(x, scratch.routing, t);
    EXPECT_TRUE(std::isfinite(most)) << what;
    EXPECT_LE(off.row(t).norm(), most) << what << ", token " << t;
  }
}

TYPED_TEST(PackErrorsOf, BoundYOfRandomTokens) {
  for (const MoEConfig& config : configs()) {
    const MoELayer<float> layer = make_layer<float>(config, 7);
    expect_within_bound<TypeParam>(layer, random_matrix<float>(8, config.d_model, 3), "random");
  }
}

/// The weights of all experts become w(out, in).
template <class Weight>
MoELayer<float> layer_of(const MoEConfig& config, Weight&& w) {
  MoELayer<float> layer = make_layer<float>(config, 7);
  for (auto& expert : layer.experts()) {
    ExpertParams<float>& p = expert.params();
    for (Matrix<float>* weight : {&p.gate, &p.up, &p.down}) {
      for (Index out = 0; out < weight->rows(); ++out) {
        for (Index in = 0; in < weight->cols(); ++in) {
          (*weight)(out, in) = w((*weight)(out, in), out, in);
        }
      }
    }
  }
  return layer;
}

// Every code of weights and rows at an end of its range, with all products of one sign: what
// sums in 16 bits would not hold.
TYPED_TEST(PackErrorsOf, BoundYWhereAllCodesAreAtTheirEnds) {
  const MoEConfig config = configs()[0];
  for (const float sign : {1.0f, -1.0f}) {
    const Matrix<float> x = Matrix<float>::Constant(2, config.d_model, sign * 0.3f);
    const auto same = [](float, Index, Index) { return 0.02f; };
    const auto opposite = [](float, Index, Index) { return -0.02f; };
    const auto in_turn = [](float, Index, Index in) { return in % 2 == 0 ? 0.02f : -0.02f; };
    expect_within_bound<TypeParam>(layer_of(config, same), x, "the same weights");
    expect_within_bound<TypeParam>(layer_of(config, opposite), x, "the same weights below 0");
    Matrix<float> x_in_turn = x;
    for (Index k = 1; k < x.cols(); k += 2) {
      x_in_turn.col(k) *= -1.0f;
    }
    expect_within_bound<TypeParam>(layer_of(config, in_turn), x_in_turn, "signs in turn");
  }
}

TYPED_TEST(PackErrorsOf, BoundYAtEveryMagnitude) {
  const MoEConfig config = configs()[0];
  for (const float of_weights : {1e-8f, 1e-6f, 1e-4f, 1.0f, 1e3f}) {
    for (const float of_rows : {1e-30f, 1e-6f, 1.0f, 1e6f}) {
      const MoELayer<float> layer =
          layer_of(config, [&](float w, Index, Index) { return w * of_weights; });
      expect_within_bound<TypeParam>(layer, of_rows * random_matrix<float>(2, config.d_model, 3),
                                     "magnitudes");
    }
  }
}

// One large number among 32 takes the digits of all others.
TYPED_TEST(PackErrorsOf, BoundYBesideOutliers) {
  const MoEConfig config = configs()[0];
  const MoELayer<float> layer = layer_of(
      config, [](float w, Index out, Index in) { return (out + in) % 29 == 0 ? 300.0f * w : w; });
  Matrix<float> x = random_matrix<float>(12, config.d_model, 3);
  for (Index t = 0; t < x.rows(); ++t) {
    x(t, 7 * t) *= 1000.0f;
  }
  expect_within_bound<TypeParam>(layer, x, "outliers");
}

}  // namespace
}  // namespace moe::pack_error_test
