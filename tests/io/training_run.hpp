// SPDX-License-Identifier: Apache-2.0
// A small training run with all that one has: a layer with a selection bias, a tensor of the user's
// own, an optimiser, random data, and numbers of the loop.
#pragma once

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>

#include "moe/io/training_state.hpp"
#include "moe/train/adamw.hpp"
#include "moe/train/balance_bias.hpp"
#include "moe/train/sgd.hpp"
#include "support/layer_step.hpp"

namespace moe::io::testing {

template <class T, template <class> class OptimiserOf = AdamW>
struct TrainingRun {
  using W = Wide<T>;
  static constexpr Index tokens = 24, width = 8;

  static MoEConfig config() {
    return {.d_model = width,
            .d_ff = 12,
            .num_experts = 4,
            .top_k = 2,
            .router = {.score = Score::sigmoid, .selection = {.bias = true}},
            .shared = SharedExpertConfig{.d_ff = 4}};
  }

  MoELayer<T> layer{config(), 1};
  typename MoELayer<T>::Grads grads = layer.zero_grads();
  Matrix<T> scale = Matrix<T>::Constant(1, width, T(1));  ///< the user's own
  OptimiserOf<W> optimiser;
  std::mt19937_64 generator{7};
  std::normal_distribution<double> normal;
  Index steps = 0;
  double loss = 0.0;

  template <class Visit>
  void walk(Visit&& visit, Matrix<W>& dscale) {
    visit("scale", scale, dscale);
    visit_trained(visit, layer, grads, "layers.0.");
  }

  /// Learns to give back its input, of which every step has another.
  void step(int threads = 1) {
    Matrix<T> x(tokens, width), y(tokens, width), dx(tokens, width);
    for (Index i = 0; i < x.size(); ++i) {
      x.data()[i] = static_cast<T>(static_cast<float>(normal(generator)) *
                                   static_cast<float>(scale.data()[i % width]));
    }
    typename MoELayer<T>::Tape tape;
    layer.forward(x, y, tape, {.num_threads = threads});
    const Matrix<T> dy = y - x;
    loss += static_cast<double>(dy.template cast<W>().squaredNorm());
    grads = layer.zero_grads();
    layer.backward(x, dy, tape, dx, grads);
    Matrix<W> dscale = dx.template cast<W>().colwise().sum();
    optimiser.step([&](auto&& visit) { walk(visit, dscale); },
                   {.rate = 0.01, .clip = 1.0, .num_threads = threads});
    ExpertLoad load(layer.num_experts());
    load.add(tape.routing);
    update_selection_bias(layer.router().params().selection_bias, load, {.rate = 0.01});
    ++steps;
  }
  void step_to(Index end, int threads = 1) {
    while (steps < end) {
      step(threads);
    }
  }

  auto description() {
    return [this](TrainingState& state) {
      Matrix<W> dscale(1, width);
      state.add("optimiser", optimiser, [&](auto&& visit) { walk(visit, dscale); });
      state.add("generator", generator);
      state.add("normal", normal);
      state.add("steps", steps);
      state.add("loss", loss);
      state.expect("top_k", std::to_string(layer.router().top_k()));
    };
  }
  void save(const std::filesystem::path& path) { save_training_state(path, description()); }
  void load(const std::filesystem::path& path) { load_training_state(path, description()); }
};

/// All that two runs hold has the same bits.
template <class Run>
::testing::AssertionResult same_run(Run& a, Run& b) {
  if (a.steps != b.steps || a.optimiser.steps() != b.optimiser.steps()) {
    return ::testing::AssertionFailure() << "after " << a.steps << " and " << b.steps << " steps";
  }
  if (!(a.generator == b.generator) || !(a.normal == b.normal)) {
    return ::testing::AssertionFailure() << "the generators differ";
  }
  if (std::memcmp(&a.loss, &b.loss, sizeof a.loss) != 0) {
    return ::testing::AssertionFailure() << "losses are " << a.loss << " and " << b.loss;
  }
  ::testing::AssertionResult result = moe::testing::same_bits(a.scale, b.scale);
  std::map<std::string, Matrix<typename Run::W>> states;
  a.optimiser.for_each_state([&](const std::string& name, auto& state) { states[name] = state; });
  b.optimiser.for_each_state([&](const std::string& name, auto& state) {
    if (auto same = moe::testing::same_bits(states[name], state); result && !same) {
      result = ::testing::AssertionFailure() << name << ": " << same.message();
    }
  });
  const auto visit = [&](const ParameterName& name, const auto& left, const auto& right) {
    if (auto same = moe::testing::same_bits(left, right); result && !same) {
      result = ::testing::AssertionFailure() << name.text() << ": " << same.message();
    }
  };
  walk_params(a.layer.router(), {}, visit, b.layer.router().params());
  for (Index e = 0; e < a.layer.num_experts(); ++e) {
    const auto number = static_cast<std::size_t>(e);
    walk_params(a.layer.experts()[number], {}, visit, b.layer.experts()[number].params());
  }
  walk_params(*a.layer.shared(), {}, visit, b.layer.shared()->params());
  return result;
}

}  // namespace moe::io::testing
