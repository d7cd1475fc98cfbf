// SPDX-License-Identifier: Apache-2.0
// Whole steps of training, as a run makes them: forward, losses, backward, clipping and AdamW.
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "../support/layer_step.hpp"
#include "moe/losses/balance.hpp"
#include "moe/losses/z_loss.hpp"
#include "moe/train/adamw.hpp"

namespace moe::whole_step_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::same_bits;

/// Two experts a token, with a capacity that drops some choices.
const MoEConfig config{.d_model = 17,
                       .d_ff = 33,
                       .num_experts = 6,
                       .top_k = 2,
                       .capacity = {.factor = 1.0, .policy = DropPolicy::probability},
                       .shared = SharedExpertConfig{.d_ff = 9}};
constexpr Index tokens = 75;  // three blocks of rows, the last not full
constexpr double clip = 3.0;

/// What a run leaves behind.
struct Trained {
  std::vector<float> losses;
  std::vector<double> norms;
  Index dropped = 0;
  int clipped = 0;
  Matrix<float> y{tokens, config.d_model}, dx{tokens, config.d_model};
  MoELayer<float> layer = make_layer<float>(config, 1);
};

/// So many steps on new tokens each, towards a target that stays.
Trained train(int steps, int threads) {
  Trained run;
  const CallOptions call{.num_threads = threads};
  const Matrix<float> target = random_matrix<float>(tokens, config.d_model, 7);
  auto grads = run.layer.zero_grads();
  MoELayer<float>::Tape tape;
  RoutingLoss<float> aux, z;
  AdamW<float> adam({.decay = 0.1});
  for (int step = 0; step < steps; ++step) {
    const auto x = random_matrix<float>(tokens, config.d_model, static_cast<unsigned>(100 + step));
    run.layer.forward(x, run.y, tape, call);
    load_balancing_loss(tape.routing, {}, aux, threads);
    z_loss(tape.routing, {}, z, threads);
    aux *= 0.1F;
    aux += z *= 0.01F;
    const Matrix<float> difference = run.y - target, dy = difference / float(tokens);
    run.losses.push_back(0.5F * difference.squaredNorm() / float(tokens) + aux.value);
    run.layer.for_each_parameter([](const auto&, auto&, auto& grad) { grad.setZero(); }, grads);
    run.layer.backward(x, dy, tape, run.dx, grads, aux.gradient);
    const StepResult result =
        adam.step([&](auto&& visit) { visit_trained(visit, run.layer, grads); },
                  {.rate = 0.01, .clip = clip, .num_threads = threads});
    run.norms.push_back(result.gradient_norm);
    run.clipped += result.gradient_norm > clip ? 1 : 0;
    run.dropped += tokens * config.top_k - tape.plan.num_rows();
  }
  return run;
}

/// All of the threads come, although the layer is small: those of a team are awake.
Trained train_in_team(int steps, int threads) {
  std::optional<Trained> run;
  detail::with_team(threads, [&] { run = train(steps, threads); });
  return std::move(*run);
}

std::vector<Matrix<float>> parameters_of(const MoELayer<float>& layer) {
  std::vector<Matrix<float>> all;
  layer.for_each_parameter([&](const ParameterName&, const auto& p) { all.push_back(p); });
  return all;
}

TEST(WholeStep, GivesTheSameBitsForAnyNumberOfThreadsOverFiftySteps) {
  constexpr int steps = 50;
  const Trained one = train_in_team(steps, 1);
  EXPECT_LT(one.losses.back(), 0.5F * one.losses.front());
  EXPECT_GT(one.dropped, steps);
  EXPECT_GT(one.clipped, 0);
  const auto want = parameters_of(one.layer);
  for (const int threads : {2, 3, 8}) {
    SCOPED_TRACE(threads);
    const Trained run = train_in_team(steps, threads);
    EXPECT_EQ(run.losses, one.losses);
    EXPECT_EQ(run.norms, one.norms);
    EXPECT_TRUE(same_bits(run.y, one.y));
    EXPECT_TRUE(same_bits(run.dx, one.dx));
    const auto got = parameters_of(run.layer);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(same_bits(got[i], want[i])) << "tensor " << i;
    }
  }
}

}  // namespace
}  // namespace moe::whole_step_test
