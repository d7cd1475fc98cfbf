// SPDX-License-Identifier: Apache-2.0
// Routing replay: a call gives the experts of its tokens, and all else is the router's of now.
#include <gtest/gtest.h>

#include "moe/layers.hpp"
#include "moe/losses.hpp"
#include "moe/reference.hpp"
#include "support/count_allocations.hpp"
#include "support/finite_difference.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe::routing_replay_test {
namespace {

using testing::make_layer;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using Experts = Matrix<ExpertId>;

constexpr Index N = 12, D = 9, E = 6, K = 3;

std::vector<MoEConfig> configs() {
  std::vector<MoEConfig> all;
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const auto source :
         {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
      for (const bool renormalise : {false, true}) {
        all.push_back({.d_model = D,
                       .d_ff = 7,
                       .num_experts = E,
                       .top_k = K,
                       .router = {.logits = {.bias = true, .noisy = true},
                                  .score = score,
                                  .selection = {.bias = score == Score::sigmoid},
                                  .weight = {source, renormalise, 1.5}}});
      }
    }
  }
  return all;
}

/// A random choice of K of E, another for each token, with gaps in rows 2 (one) and 5 (all).
Experts selection() {
  Experts experts(N, K);
  for (Index t = 0; t < N; ++t) {
    for (Index k = 0; k < K; ++k) {
      experts(t, k) = static_cast<ExpertId>((t * t + 5 * k) % E);  // 5 and 6 have no common factor
    }
  }
  experts(2, 1) = none;
  experts.row(5).setConstant(none);
  return experts;
}

/// The forward of a training step with losses that read weights, probs and logits.
template <Real T>
struct Forward {
  Matrix<T> y{N, D};
  typename MoELayer<T>::Tape tape;
  RoutingGradient<T> gradient;
  double loss = 0;

  Forward(const MoELayer<T>& layer, const Matrix<T>& x, const Matrix<T>& dy,
          const CallOptions& call) {
    layer.forward(x, y, tape, call);
    auto losses =
        load_balancing_loss(tape.routing) + z_loss(tape.routing) + importance_loss(tape.routing);
    loss = static_cast<double>(losses.value + (y.array() * dy.array()).sum());
    gradient = std::move(losses.gradient);
  }
};

/// The whole step.
template <Real T>
struct Step {
  Matrix<T> y, dy = random_matrix<T>(N, D, 77), dx{N, D}, weight, probs;
  Experts expert;
  typename MoELayer<T>::Grads grads;
  double loss = 0;

  Step(const MoELayer<T>& layer, const Matrix<T>& x, const CallOptions& call)
      : grads(layer.zero_grads()) {
    Forward<T> forward(layer, x, dy, call);
    auto& tape = forward.tape;
    layer.backward(x, dy, tape, dx, grads, forward.gradient);
    loss = forward.loss;
    y = forward.y;
    weight = tape.routing.weight;
    probs = tape.routing.probs;
    expert = tape.routing.expert;
  }
};

TEST(RoutingReplay, OfARoutersOwnSelectionHasItsBitsForwardAndBackward) {
  ExpertMask mask = ExpertMask::Ones(N, E);
  mask.row(3).setZero();
  mask(3, 4) = 1;  // fewer than K
  const std::uint8_t padding[N] = {0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1};
  const CallOptions calls[] = {
      {},
      {.noise_seed = 7},
      {.expert_mask = &mask},
      {.tokens = {.sequence_length = 6, .padding = padding}, .capacity = Capacity{.factor = 0.75}},
      {.capacity = Capacity{.rows = 3, .policy = DropPolicy::probability}}};
  const Matrix<float> x = random_matrix<float>(N, D, 2);
  for (const MoEConfig& config : configs()) {
    const MoELayer<float> layer = make_layer<float>(config, 1);
    for (const CallOptions& call : calls) {
      const Step<float> want(layer, x, call);
      CallOptions replay = call;
      replay.experts = &want.expert;
      const Step<float> got(layer, x, replay);
      EXPECT_EQ(got.expert, want.expert);
      EXPECT_TRUE(same_bits(got.weight, want.weight) && same_bits(got.probs, want.probs));
      EXPECT_TRUE(same_bits(got.y, want.y) && same_bits(got.dx, want.dx));
      EXPECT_TRUE(testing::same_grads(layer, got.grads, want.grads));
      EXPECT_EQ(got.loss, want.loss);
    }
  }
}

TEST(RoutingReplay, OfAnotherSelectionIsWhatThePlainReferenceComputes) {
  const Matrix<double> x = random_matrix<double>(N, D, 2);
  const Experts experts = selection();
  const std::uint8_t padding[N] = {0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1};
  const CallOptions calls[] = {
      {.experts = &experts},
      {.tokens = {.padding = padding}, .capacity = Capacity{.rows = 4}, .experts = &experts}};
  for (const MoEConfig& config : configs()) {
    const MoELayer<double> layer = make_layer<double>(config, 1);
    const auto packed = pack<double>(layer);
    for (const CallOptions& call : calls) {
      const Step<double> got(layer, x, call);
      EXPECT_TRUE(testing::matrix_near(got.y, reference::forward(layer, x, call), 1e-12));
      decltype(packed)::Scratch scratch;
      Matrix<double> y(N, D);
      packed.forward(x, y, scratch, call);
      EXPECT_TRUE(same_bits(y, got.y));
      for (Index t = 0; t < N; ++t) {
        const bool pad = call.tokens.is_padding(t);
        EXPECT_EQ(got.expert.row(t), pad ? Experts::Constant(1, K, none) : Experts(experts.row(t)));
        for (Index k = 0; k < K; ++k) {
          EXPECT_TRUE(got.expert(t, k) != none || got.weight(t, k) == 0.0);
        }
      }
    }
  }
}

TEST(RoutingReplay, HasTheGradientsOfCentralDifferences) {
  const Experts experts = selection();
  const CallOptions call{.num_threads = 1, .noise_seed = 3, .experts = &experts};
  for (const MoEConfig& config : configs()) {
    MoELayer<double> layer = make_layer<double>(config, 1);
    Matrix<double> x = random_matrix<double>(N, D, 2);
    const Step<double> step(layer, x, call);
    const auto f = [&] { return Forward<double>(layer, x, step.dy, call).loss; };
    EXPECT_LT(testing::gradient_error(f, x, step.dx), 1e-7);
    auto grads = step.grads;
    Router<double>::Params::for_each(
        [&](std::string_view name, Matrix<double>& parameter, const Matrix<double>& grad) {
          if (name != "selection_bias") {
            EXPECT_LT(testing::gradient_error(f, parameter, grad), 1e-7) << name;
          }
        },
        layer.router().params(), grads.router);
  }
}

TEST(RoutingReplay, HasTheSameBitsForAnyThreadCount) {
  const MoELayer<float> layer = make_layer<float>(configs()[1], 1);
  const Matrix<float> x = random_matrix<float>(N, D, 2);
  const Experts experts = selection();
  const Step<float> one(layer, x, {.num_threads = 1, .experts = &experts});
  for (const int threads : {2, 3}) {
    const Step<float> many(layer, x, {.num_threads = threads, .experts = &experts});
    EXPECT_TRUE(same_bits(many.y, one.y) && same_bits(many.dx, one.dx));
    EXPECT_TRUE(testing::same_grads(layer, many.grads, one.grads));
  }
}

TEST(RoutingReplay, OfMoreOrFewerExpertsThanTheRouterChoosesIsTaken) {
  const MoELayer<double> layer = make_layer<double>(configs()[0], 1);
  const Matrix<double> x = random_matrix<double>(N, D, 2);
  for (const Index count : {Index(1), E}) {
    Experts experts(N, count);
    for (Index k = 0; k < count; ++k) {
      experts.col(k).setConstant(static_cast<ExpertId>(E - 1 - k));
    }
    const CallOptions call{.experts = &experts};
    EXPECT_TRUE(testing::matrix_near(Step<double>(layer, x, call).y,
                                     reference::forward(layer, x, call), 1e-12));
  }
}

TEST(RoutingReplay, RefusesASelectionThatDoesNotFitAndWritesNothing) {
  const MoELayer<float> layer = make_layer<float>(configs()[0], 1);
  const Matrix<float> x = random_matrix<float>(N, D, 2);
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 5) = 0;
  const auto message = [&](Experts experts, CallOptions call = {}) {
    Matrix<float> y = Matrix<float>::Constant(N, D, 5.0F);
    MoELayer<float>::Scratch scratch;
    Router<float>::Table table;
    call.experts = &experts;
    const std::string text = message_of([&] { layer.forward(x, y, scratch, call); });
    EXPECT_EQ(message_of([&] { layer.router().route(x, call, table); }), text);
    EXPECT_TRUE((y.array() == 5.0F).all());
    return text;
  };
  const auto with = [](Index t, Index k, ExpertId e) {
    Experts experts = selection();
    experts.row(4) << 1, 2, 3;
    experts(t, k) = e;
    return experts;
  };
  EXPECT_EQ(message(Experts::Zero(N - 1, 1)),
            "CallOptions: experts is (11, 1), expected (12, 1 to num_experts = 6)");
  EXPECT_EQ(message(Experts::Zero(N, 0)),
            "CallOptions: experts is (12, 0), expected (12, 1 to num_experts = 6)");
  EXPECT_EQ(message(Experts::Zero(N, E + 1)),
            "CallOptions: experts is (12, 7), expected (12, 1 to num_experts = 6)");
  EXPECT_EQ(message(with(4, 1, 6)),
            "CallOptions: experts of token 4 has 6, expected in [0, num_experts = 6)");
  EXPECT_EQ(message(with(4, 1, -2)),
            "CallOptions: experts of token 4 has -2, expected in [0, num_experts = 6)");
  EXPECT_EQ(message(with(4, 2, 1)), "CallOptions: experts of token 4 has 1 twice");
  EXPECT_EQ(message(Experts::Constant(N, 1, 5), {.expert_mask = &mask}),
            "CallOptions: experts of token 0 has 5, which is masked");
  EXPECT_EQ(message(selection(), {.top_k = 3}),
            "CallOptions: top_k and experts are both set, expected one");
}

#if MOE_COUNTS_ALLOCATIONS
TEST(RoutingReplay, AllocatesNothingInASteadyState) {
  const MoELayer<float> layer = make_layer<float>(configs()[0], 1);
  const Matrix<float> x = random_matrix<float>(N, D, 2);
  const Experts experts = selection();
  Matrix<float> y(N, D);
  MoELayer<float>::Scratch scratch;
  const CallOptions call{.num_threads = 1, .experts = &experts};
  layer.forward(x, y, scratch, call);
  EXPECT_EQ(testing::count_bytes([&] { layer.forward(x, y, scratch, call); }), 0u);
}
#endif

}  // namespace
}  // namespace moe::routing_replay_test
