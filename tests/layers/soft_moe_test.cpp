// SPDX-License-Identifier: Apache-2.0
// Soft MoE: against plain loops, what it is where that is known, and gradients.
#include "moe/layers/soft_moe.hpp"

#include <gtest/gtest.h>

#include "moe/reference/soft_moe.hpp"
#include "support/finite_difference.hpp"
#include "support/soft_layers.hpp"

namespace moe {

template class SoftMoELayer<float>;
template class SoftMoELayer<double>;
template class SoftMoELayer<bf16>;

}  // namespace moe

namespace moe::soft_moe_test {
namespace {

using namespace testing::soft;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

template <class T>
Matrix<double> want_of(const SoftMoELayer<T>& layer, const Matrix<T>& x, const Tokens& tokens) {
  return reference::soft_moe(layer, x, tokens, [&](const reference::Row& row) {
    return reference::logits(layer.router().params(), layer.router().gate().config(), row);
  });
}
template <class T>
Matrix<double> want_of(const SoftMoELayer<T, LinearGate<T>>& layer, const Matrix<T>& x,
                       const Tokens& tokens) {
  return reference::soft_moe(layer, x, tokens, [&](const reference::Row& row) {
    return reference::linear(layer.router().params().weight, layer.router().params().bias, row);
  });
}

template <class Layer, class T>
void expect_plain_loops(const Layer& layer, const Matrix<T>& x, double tolerance) {
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.num_threads = 2, .tokens = tokens};
    const Matrix<double> want = want_of(layer, x, tokens);
    EXPECT_TRUE(matrix_near(forward(layer, x, call), want, tolerance));
    EXPECT_TRUE(matrix_near(run_step(layer, x, call).y, want, tolerance)) << "training";
  }
}

TEST(SoftMoE, IsWhatPlainLoopsMakeOfSequencesAndPadding) {
  for (const Index slots : {1, 2}) {
    const SoftMoEConfig config = small_config(slots);
    const auto x = random_matrix<double>(N, config.d_model, 3);
    expect_plain_loops(make_soft<double>(config), x, 1e-13);
    expect_plain_loops(make_plain<double>(config), x, 1e-13);
    const auto single = random_matrix<float>(N, config.d_model, 3);
    expect_plain_loops(make_soft<float>(config), single, 2e-6);
    expect_plain_loops(make_plain<float>(config), single, 2e-6);
    expect_plain_loops(make_soft<bf16>(config), random_matrix<bf16>(N, config.d_model, 3), 0.02);
  }
}

TEST(SoftMoE, OfSizesThatFillRegistersIsWhatPlainLoopsMake) {
  const SoftMoEConfig config{.d_model = 70, .d_ff = 40, .num_experts = 5, .slots = 7};
  const auto layer = make_soft<float>(config);
  const auto x = random_matrix<float>(130, 70, 3);
  for (const Index length : {0, 65}) {
    const Tokens tokens{.sequence_length = length};
    EXPECT_TRUE(
        matrix_near(forward(layer, x, {.tokens = tokens}), want_of(layer, x, tokens), 1e-5));
  }
}

TEST(SoftMoE, WithoutDirectionsGivesEachTokenTheMeanOfAllExpertsOfTheMeanToken) {
  auto layer = make_soft<double>(small_config());
  layer.router().params().scale.setZero();
  const auto x = random_matrix<double>(N, layer.d_in(), 3);
  const Matrix<double> mean = x.colwise().mean();
  Eigen::RowVectorXd want = Eigen::RowVectorXd::Zero(layer.d_out());
  for (const Expert<double>& e : layer.experts()) {
    const reference::Row y = reference::expert(e.params(), e.config(), reference::row_of(mean, 0));
    want += Eigen::Map<const Eigen::RowVectorXd>(y.data(), layer.d_out()) / 3.0;
  }
  EXPECT_TRUE(matrix_near(forward(layer, x), want.replicate(N, 1), 1e-13));
}

TEST(SoftMoE, OfOneTokenIsTheMeanOfItsExpertsByTheirLogits) {
  const auto layer = make_soft<double>(small_config(1));
  const auto x = random_matrix<double>(1, layer.d_in(), 3);
  SoftMoELayer<double>::Scratch scratch;
  Matrix<double> y(1, layer.d_out());
  layer.forward(x, y, scratch);
  EXPECT_TRUE(scratch.routing.dispatch.isOnes(0));
  EXPECT_TRUE(matrix_near(y, want_of(layer, x, {}), 1e-13));
}

/// The worst error of all gradients against differences.
template <class Layer>
double gradient_error(Layer layer, const CallOptions& call) {
  auto x = random_matrix<double>(N, layer.d_in(), 3);
  const auto step = run_step(layer, x, call);
  typename Layer::Scratch scratch;
  Matrix<double> y(N, layer.d_out());
  const auto f = [&] {
    layer.forward(x, y, scratch, call);
    return (y.array() * step.dy.array()).sum();
  };
  double worst = testing::gradient_error(f, x, step.dx);
  layer.for_each_parameter(
      [&](const ParameterName&, Matrix<double>& parameter, const Matrix<double>& grad) {
        worst = std::max(worst, testing::gradient_error(f, parameter, grad));
      },
      step.grads);
  return worst;
}

TEST(SoftMoE, HasTheGradientsOfCentralDifferences) {
  using Each = SoftMoELayer<double, UnitGate<double>, EachExpert<double, Expert<double>>>;
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.num_threads = 1, .tokens = tokens};
    const SoftMoEConfig config = small_config();
    const auto soft = make_soft<double>(config);
    EXPECT_LT(gradient_error(soft, call), 1e-7);
    EXPECT_LT(gradient_error(make_plain<double>(config), call), 1e-7);
    EXPECT_LT(gradient_error(make_soft<double>(small_config(1)), call), 1e-7);
    const Each each(soft.router(), EachExpert<double, Expert<double>>(std::vector<Expert<double>>(
                                       soft.experts().begin(), soft.experts().end())));
    EXPECT_LT(gradient_error(each, call), 1e-7);
  }
}

TEST(SoftMoE, AddsToTheGradientsThatThereAre) {
  const auto layer = make_soft<double>(small_config());
  const auto x = random_matrix<double>(N, layer.d_in(), 3);
  testing::expect_gradients_added(layer, x);
}

TEST(SoftMoE, OfPackedExpertsHasTheBitsOfTheLayer) {
  using Packed = SoftMoELayer<float, UnitGate<float>, PackedExperts<float>>;
  const auto layer = make_soft<float>(small_config());
  const Packed packed(layer.router(), PackedExperts<float>(layer.experts()));
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.tokens = tokens};
    EXPECT_TRUE(same_bits(forward(packed, x, call), forward(layer, x, call)));
  }
}

}  // namespace
}  // namespace moe::soft_moe_test
