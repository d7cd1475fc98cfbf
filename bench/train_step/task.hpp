// SPDX-License-Identifier: Apache-2.0
// What a training step is measured on: a layer that learns fixed targets from fixed tokens, with
// the losses and the optimiser of a real run. Each step, ours or a peer's, begins from this.
#pragma once

#include <moe/train.hpp>
#include <string>

#include "../shapes.hpp"

namespace moe::bench {

struct TaskShape {
  std::string style;
  MoEConfig config;
  Index tokens;
};

/// The loss is the mean square of y - target, plus `balance` times the load-balancing loss, plus
/// `z` times the z-loss. Gradients are clipped to a norm of `clip`.
template <Real T>
struct Task {
  MoEConfig config;
  MoELayer<T> layer;  ///< with the initial parameters
  Matrix<T> x, target;
  double balance = 0.01, z = 0.001;
  double rate = 1e-3, clip = 0.05;
  AdamWConfig adam{.beta2 = 0.95, .decay = 0.1};
};

template <Real T>
Task<T> make_task(const TaskShape& shape) {
  const MoEConfig& c = shape.config;
  return {.config = c,
          .layer = random_layer<T>(c),
          .x = random_tokens(shape.tokens, c.d_model, 7).template cast<T>(),
          .target = random_tokens(shape.tokens, c.output_width(), 9).template cast<T>()};
}

/// Mixtral (2024): two experts by softmax, renormalised, SwiGLU.
inline MoEConfig mixtral_style(Index d_model, Index d_ff, Index num_experts) {
  return {.d_model = d_model, .d_ff = d_ff, .num_experts = num_experts, .top_k = 2};
}

/// Switch Transformers (2021): one expert, weighed by its probability, ReLU, and a capacity over
/// which choices are dropped.
inline MoEConfig switch_style(Index d_model, Index d_ff, Index num_experts) {
  return {.d_model = d_model,
          .d_ff = d_ff,
          .num_experts = num_experts,
          .top_k = 1,
          .expert = {.activation = Activation::relu, .gated = false},
          .capacity = {.factor = 1.0}};
}

/// What a step tells.
struct StepFigures {
  double loss = 0;           ///< with the auxiliary ones
  double gradient_norm = 0;  ///< before clipping
};

/// The same step through another library, from the parameters of the task on.
class PeerStep {
 public:
  virtual ~PeerStep() = default;
  virtual StepFigures step() = 0;
};

/// Makes LibTorch's, which may refer to the task; null where LibTorch is not installed.
template <Real T>
inline std::unique_ptr<PeerStep> (*make_peer_step)(const Task<T>&, int threads) = nullptr;

}  // namespace moe::bench
