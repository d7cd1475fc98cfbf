// SPDX-License-Identifier: Apache-2.0
// What stands around the experts of a latent layer: by hand, in a layer, and what is refused.
// Gradients, bits and costs are with those of the layer.
#include "moe/experts/latent.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "../support/layer_step.hpp"
#include "../support/throws.hpp"
#include "moe/reference.hpp"

namespace moe::latent_test {
namespace {

using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

Matrix<double> matrix(Index rows, std::initializer_list<double> values) {
  Matrix<double> made(rows, static_cast<Index>(values.size()) / rows);
  std::copy(values.begin(), values.end(), made.data());
  return made;
}

LatentParams<double> params_by_hand() {
  return {.down = matrix(2, {1, 1, 0, 2, 0, -1}),  // (2, 3)
          .up = matrix(2, {1, 2, 0, 3}),
          .norm = matrix(1, {10, 1})};
}

TEST(Latent, ProjectsOnBothSidesOfTheExpertsByHand) {
  LatentParams<double> params = params_by_hand();
  params.norm.resize(0, 0);
  const Latent<double> latent(params, {.width = 2});
  Latent<double>::Scratch memory;
  latent.enter(matrix(1, {1, 2, 3}), memory, 1);
  EXPECT_TRUE(same_bits(Matrix<double>(memory.inside), matrix(1, {3, -1})));
  memory.combined = matrix(1, {5, 7});
  Matrix<double> y(1, 2);
  latent.normalise(memory, 1);
  latent.leave(memory, y, 1);
  EXPECT_TRUE(same_bits(y, matrix(1, {19, 21})));
}

TEST(Latent, NormalisesTheSumOfTheExpertsByHand) {
  const Latent<double> latent(params_by_hand(), {.width = 2, .norm = true, .eps = 0.75});
  Latent<double>::Scratch memory;
  memory.combined = matrix(1, {1.5, 0.5});  // mean of squares 1.25, + 0.75: root sqrt(2)
  Matrix<double> y(1, 2);
  latent.normalise(memory, 1);
  latent.leave(memory, y, 1);
  const double a = 15 / std::sqrt(2.0), b = 0.5 / std::sqrt(2.0);
  EXPECT_TRUE(matrix_near(y, matrix(1, {a + 2 * b, 3 * b}), 1e-15));
}

// 1100 tokens make two blocks of rows, and the widths several panels.
TEST(Latent, HasTheSameBitsForAnyThreadCountAndATokenAlone) {
  const Latent<float> latent({37, 71}, {.width = 45, .norm = true}, 3);
  const Matrix<float> x = random_matrix<float>(1100, 37, 1), dy = random_matrix<float>(1100, 71, 2);
  const auto run = [&](const Matrix<float>& rows, const Matrix<float>& gradient, int threads) {
    Latent<float>::Tape tape;
    Matrix<float> y(rows.rows(), 71), dx = Matrix<float>::Zero(rows.rows(), 37);
    LatentParams<float> grads = zeros_like(latent.params());
    latent.enter(rows, tape, threads);
    tape.combined = tape.inside;
    latent.normalise(tape, threads);
    latent.leave(tape, y, threads);
    latent.leave_backward(gradient, tape, grads, threads);
    tape.dinside = tape.dcombined;
    latent.enter_backward(rows, tape, dx, grads, threads);
    return std::tuple{y, dx, grads};
  };
  const auto [y, dx, grads] = run(x, dy, 1);
  for (const int threads : {2, 3}) {
    const auto [other_y, other_dx, other_grads] = run(x, dy, threads);
    EXPECT_TRUE(same_bits(other_y, y) && same_bits(other_dx, dx));
    EXPECT_TRUE(same_bits(other_grads.down, grads.down) && same_bits(other_grads.up, grads.up) &&
                same_bits(other_grads.norm, grads.norm));
  }
  const auto [one_y, one_dx, one_grads] = run(x.row(1050), dy.row(1050), 1);
  EXPECT_TRUE(same_bits(one_y, Matrix<float>(y.row(1050))));
  EXPECT_TRUE(same_bits(one_dx, Matrix<float>(dx.row(1050))));
}

TEST(Latent, LetsNothingOfPaddingReachAGradient) {
  MoEConfig config{.d_model = 5, .d_ff = 3, .num_experts = 4, .top_k = 2};
  config.latent = LatentConfig{.width = 3, .norm = true};
  const auto layer = testing::make_layer<double>(config, 3);
  const std::vector<std::uint8_t> padding{0, 1, 0, 1};
  Matrix<double> x = random_matrix<double>(4, 5, 1), dy = random_matrix<double>(4, 5, 2);
  const auto run = [&](const CallOptions& call) {
    MoELayer<double>::Tape tape;
    Matrix<double> y(4, 5), dx(4, 5);
    auto grads = layer.zero_grads();
    layer.forward(x, y, tape, call);
    layer.backward(x, dy, tape, dx, grads);
    return std::tuple{y, dx, grads};
  };
  const auto want = run({.tokens = {.padding = padding}});
  for (const Index row : {1, 3}) {
    x.row(row).setConstant(std::nan(""));
    dy.row(row).setConstant(std::nan(""));
  }
  const auto got = run({.tokens = {.padding = padding}});
  EXPECT_TRUE(same_bits(std::get<0>(got), std::get<0>(want)));
  EXPECT_TRUE(same_bits(std::get<1>(got), std::get<1>(want)));
  EXPECT_TRUE(testing::same_grads(layer, std::get<2>(got), std::get<2>(want)));
  EXPECT_TRUE(std::get<0>(got).row(1).isZero(0) && std::get<1>(got).row(1).isZero(0));
}

// Without an epsilon a row of zeros has no inverse; and 0 times NaN is NaN.
TEST(Latent, GivesZerosForPaddingAndATokenWithoutExpertWhateverItsNormAndWeightsAre) {
  MoEConfig config{.d_model = 5, .d_ff = 3, .num_experts = 4, .top_k = 2};
  config.latent = LatentConfig{.width = 3, .norm = true, .eps = 0.0};
  auto layer = testing::make_layer<double>(config, 3);
  const Matrix<double> x = random_matrix<double>(4, 5, 1), dy = random_matrix<double>(4, 5, 2);
  const std::vector<std::uint8_t> padding{0, 1, 0, 0};
  ExpertMask mask = ExpertMask::Ones(4, 4);
  mask.row(2).setZero();
  const CallOptions call{.tokens = {.padding = padding}, .expert_mask = &mask};
  MoELayer<double>::Tape tape;
  Matrix<double> y(4, 5), dx(4, 5);
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape, call);
  layer.backward(x, dy, tape, dx, grads);
  EXPECT_TRUE(y.row(1).isZero(0) && y.row(2).isZero(0));
  EXPECT_TRUE(y.allFinite() && dx.allFinite());
  layer.for_each_parameter(
      [](const std::string& name, auto&, auto& grad) { EXPECT_TRUE(grad.allFinite()) << name; },
      grads);
  layer.latent()->params().up(1, 0) = std::nan("");
  layer.forward(x, y, tape, call);
  EXPECT_TRUE(y.row(1).isZero(0));
  EXPECT_TRUE(std::isnan(y(0, 1)));
}

TEST(Latent, RefusesWhatDoesNotFit) {
  const auto message = [](auto f) { return testing::message_of(f); };
  EXPECT_EQ(message([] { Latent<double>(params_by_hand(), {.width = 2}); }),
            "parameter latent.norm is (1, 2), expected (0, 2)");
  EXPECT_EQ(message([] {
              Latent<double>({3, 2}, {.width = 0}, 1);
            }),
            "LatentConfig: width = 0, expected at least 1");
  EXPECT_EQ(message([] {
              Latent<double>({3, 2}, {.width = 2, .norm = true, .eps = -1.0}, 1);
            }),
            "LatentConfig: eps = -1, expected finite and at least 0");
  const MoEConfig config{.d_model = 5, .d_ff = 3, .num_experts = 4, .top_k = 2};
  EXPECT_EQ(message([&] {
              MoELayer<double>(Router<double>(5, 4, 2, {}, 1), make_experts<double>(config, 1), {},
                               std::nullopt, Latent<double>({5, 5}, {.width = 4}, 1));
            }),
            "MoELayer: the experts are 5 to 5 wide, expected the latent width 4");
}

}  // namespace
}  // namespace moe::latent_test
