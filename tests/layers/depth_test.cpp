// SPDX-License-Identifier: Apache-2.0
// Mixture-of-Depths: against plain loops with blocks of several kinds, gradients with losses, what
// is causal.
#include "moe/layers/depth.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "moe/reference/depth.hpp"
#include "support/depth_layers.hpp"
#include "support/finite_difference.hpp"

namespace moe {

template class TopTokens<float>;
template class DepthLayer<float>;
template class DepthLayer<double>;
template class DepthLayer<bf16>;

}  // namespace moe

namespace moe::depth_test {
namespace {

using namespace testing::depth;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

using Rows = std::vector<reference::Row>;
template <class Router, class T>
Matrix<double> want_of(const Router& router, const Matrix<T>& x, bool causal, const Tokens& tokens,
                       const std::function<Rows(const Rows&)>& block) {
  const auto& gate = router.params().gate_part();
  return reference::depth(
      x, router.rule().config(), causal, tokens,
      [&](const reference::Row& row) { return reference::linear(gate.weight, gate.bias, row)[0]; },
      block);
}

const std::vector<TopTokensConfig> all_configs = {
    {}, {.capacity = 0.5, .threshold = -0.3}, {.capacity = 1.0, .threshold = 0.4}};

template <Real T>
void expect_plain_loops(double tolerance) {
  const auto x = random_matrix<T>(N, D, 3);
  for (const TopTokensConfig& config : all_configs) {
    const auto layer = make_depth<T>(make_ffn<T>(), config);
    const auto block = [&](const Rows& inputs) {
      Rows rows;
      for (const reference::Row& row : inputs) {
        const Expert<T>& expert = layer.block().expert();
        rows.push_back(reference::expert(expert.params(), expert.config(), row));
      }
      return rows;
    };
    for (const Tokens& tokens : all_tokens()) {
      for (const bool causal : {false, true}) {
        EXPECT_TRUE(matrix_near(forward(layer, x, {.tokens = tokens}, causal),
                                want_of(layer.router(), x, causal, tokens, block), tolerance))
            << config.capacity << causal << tokens.num_sequences(N);
      }
    }
  }
}

TEST(Depth, IsWhatPlainLoopsMakeOfSequencesAndPadding) {
  expect_plain_loops<double>(1e-13);
  expect_plain_loops<float>(1e-6);
}

TEST(Depth, GivesABlockTheTokensItTakesAsTheirSequences) {
  const auto x = random_matrix<double>(N, D, 3);
  for (const TopTokensConfig& config : all_configs) {
    const auto layer = make_depth<double>(Mean(), config);
    const auto block = [&](const Rows& inputs) {
      reference::Row mean(D, 0.0);
      for (const reference::Row& row : inputs) {
        for (std::size_t col = 0; col < mean.size(); ++col) {
          mean[col] += 0.75 * row[col] / static_cast<double>(inputs.size());
        }
      }
      return Rows(inputs.size(), mean);
    };
    for (const Tokens& tokens : all_tokens()) {
      const CallOptions call{.num_threads = 1, .tokens = tokens};
      const Matrix<double> want = want_of(layer.router(), x, false, tokens, block);
      EXPECT_TRUE(matrix_near(forward(layer, x, call), want, 1e-13));
      EXPECT_TRUE(matrix_near(run_step(layer, x, call).y, want, 1e-13)) << "training";
    }
  }
}

TEST(Depth, TakesAsManyTokensOfEachSequenceAsTheCapacityHasRoomFor) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.3});
  DepthLayer<double>::Scratch scratch;
  Matrix<double> y(N, D);
  layer.forward(random_matrix<double>(N, D, 3), y, scratch,
                {.tokens = {.sequence_offset = ragged}});
  const std::vector<Index> want = {2, 0, 1, 1, 2};  // ceil(0.3 n)
  for (std::size_t b = 0; b < want.size(); ++b) {
    const auto expert = scratch.routing.expert.middleRows(ragged[b], ragged[b + 1] - ragged[b]);
    EXPECT_EQ((expert.array() != none).count(), want[b]) << b;
  }
  EXPECT_EQ(scratch.rows.rows(), 6);
}

TEST(Depth, LeavesTheBitsOfTokensThatItDoesNotTake) {
  auto x = random_matrix<float>(N, D, 3);
  x.col(2).setConstant(-0.0F);
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5});
  DepthLayer<float>::Scratch scratch;
  Matrix<float> y(N, D);
  layer.forward(x, y, scratch);
  for (Index t = 0; t < N; ++t) {
    EXPECT_EQ(static_cast<bool>(same_bits(y.row(t), x.row(t))),
              scratch.routing.expert(t, 0) == none);
  }
}

/// The worst error of all gradients against differences, of the output and a loss of the router,
/// and of the predictor's of a loss of its own, which does not go further.
template <class Layer>
double gradient_error(Layer layer, CallOptions call) {
  call.num_threads = 1;
  auto x = random_matrix<double>(N, D, 3);
  const auto dy = random_matrix<double>(N, D, 42);
  Matrix<double> y(N, D), dx(N, D);
  typename Layer::Tape tape, again;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape, call);
  layer.backward(
      x, dy, tape, dx, grads, selection_loss(tape.routing).gradient,
      layer.predictor() ? selection_loss(tape.predicted).gradient : RoutingGradient<double>{});
  const auto outputs = [&] {
    layer.forward(x, y, again, call);
    return again.routing.expert == tape.routing.expert
               ? (y.array() * dy.array()).sum() + selection_loss(again.routing).value
               : std::nan("");
  };
  const auto with_prediction = [&] {
    const double value = outputs();
    return layer.predictor() ? value + selection_loss(again.predicted).value : value;
  };
  double worst = testing::gradient_error(outputs, x, dx);
  layer.for_each_parameter(
      [&](const ParameterName&, Matrix<double>& parameter, const Matrix<double>& grad) {
        worst = std::max(worst, testing::gradient_error(with_prediction, parameter, grad));
      },
      grads);
  return worst;
}

TEST(Depth, HasTheGradientsOfCentralDifferences) {
  ExpertMask mask = ExpertMask::Ones(N, 1);
  mask(2, 0) = mask(9, 0) = 0;
  const auto layer =
      testing::make_layer<double>({.d_model = D, .d_ff = 4, .num_experts = 3, .top_k = 2}, 8);
  for (const Tokens& tokens : all_tokens()) {
    for (const bool masked : {false, true}) {
      const CallOptions call{.tokens = tokens, .expert_mask = masked ? &mask : nullptr};
      for (const bool predicted : {false, true}) {
        EXPECT_LT(
            gradient_error(make_depth<double>(make_ffn<double>(), all_configs[1], predicted), call),
            1e-7);
      }
      EXPECT_LT(gradient_error(make_depth<double>(Mean(), all_configs[1]), call), 1e-7);
      EXPECT_LT(gradient_error(make_depth<double>(layer, all_configs[1]), call), 1e-7);
      EXPECT_LT(gradient_error(make_depth<double>(make_ffn<double>(), all_configs[2]), call), 1e-7);
    }
  }
}

TEST(Depth, TakesATokenAloneAsInItsBatchWhereItIsCausal) {
  const Matrix<float> x = 3.0F * random_matrix<float>(60, D, 3);
  for (const bool predicted : {false, true}) {
    const auto layer = make_depth<float>(make_ffn<float>(), all_configs[1], predicted);
    const Matrix<float> y = forward(layer, x, {}, true);
    Index taken = 0;
    for (Index t = 0; t < 60; ++t) {
      const Matrix<float> alone = x.row(t);
      EXPECT_TRUE(same_bits(forward(layer, alone, {}, true), y.row(t)));
      taken += same_bits(y.row(t), alone) ? 0 : 1;
    }
    EXPECT_GT(taken, 0);
    EXPECT_LT(taken, 60);
  }
}

TEST(Depth, AsksThePredictorWhereThereIsOne) {
  const auto x = random_matrix<double>(N, D, 3);
  const auto layer = make_depth<double>(make_ffn<double>(), all_configs[1], true);
  DepthLayer<double>::Scratch scratch;
  Matrix<double> y(N, D);
  layer.forward_causal(x, y, scratch);
  bool differs = false;
  for (Index t = 0; t < N; ++t) {
    const bool taken = scratch.predicted.logits(t, 0) > -0.3;
    EXPECT_EQ(scratch.routing.expert(t, 0) != none, taken);
    EXPECT_EQ(scratch.routing.weight(t, 0), taken ? scratch.routing.logits(t, 0) : 0.0);
    differs = differs || taken != (scratch.routing.logits(t, 0) > -0.3);
  }
  EXPECT_TRUE(differs) << "the two would not be told apart";
}

TEST(Depth, LearnsToTakeCausallyWhatTheSequenceTakes) {
  const auto x = random_matrix<double>(64, D, 3);
  auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.25}, true);
  DepthLayer<double>::Tape tape;
  Matrix<double> y(64, D), dx(64, D);
  const Matrix<double> dy = Matrix<double>::Zero(64, D);
  const CallOptions call{.num_threads = 1};
  for (int step = 0; step < 400; ++step) {
    layer.forward(x, y, tape, call);
    auto grads = layer.zero_grads();
    layer.backward(x, dy, tape, dx, grads, {}, selection_loss(tape.predicted).gradient);
    layer.for_each_parameter([](const auto&, auto& p, const auto& g) { p -= 0.5 * g; }, grads);
  }
  DepthLayer<double>::Scratch scratch;
  layer.forward_causal(x, y, scratch, call);
  EXPECT_GE((scratch.routing.expert.array() == tape.routing.expert.array()).count(), 60);
}

}  // namespace
}  // namespace moe::depth_test
