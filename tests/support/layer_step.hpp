// SPDX-License-Identifier: Apache-2.0
// An inference and a training step of a layer, and its comparison: what most tests of layers begin
// with.
#pragma once

#include <gtest/gtest.h>

#include "moe/layers/moe_layer.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"

namespace moe::testing {

/// A layer whose tensors are all random, biases too.
template <Real T>
MoELayer<T> make_layer(const MoEConfig& config, std::uint64_t seed) {
  MoELayer<T> layer(config, seed);
  randomise(layer.router().params(), seed + 1000, 0.7);
  for (auto& expert : layer.experts()) {
    seed += 100;
    randomise(expert.params(), seed);
  }
  if (layer.shared()) {
    randomise(layer.shared()->params(), seed + 100);
  }
  if (layer.latent()) {
    randomise(layer.latent()->params(), seed + 200);
  }
  if (layer.coefficients()) {
    randomise(layer.coefficients()->params(), seed + 300);
  }
  if (layer.output_norm()) {
    randomise(layer.output_norm()->params(), seed + 400);
  }
  return layer;
}

/// y (N, d_out) of an inference.
template <class Layer, class T>
Matrix<T> forward(const Layer& layer, const Matrix<T>& x, const CallOptions& call = {}) {
  typename Layer::Scratch scratch;
  Matrix<T> y = Matrix<T>::Constant(x.rows(), layer.d_out(), T(77));
  layer.forward(x, y, scratch, call);
  return y;
}

/// A taped forward and a backward: what came in from above, and the results.
template <class Layer, class T>
struct Step {
  Matrix<T> dy, y, dx;
  typename Layer::Grads grads;
};

/// dy is random; the tape, if given, is used and left as it is after the step. A layer as small as
/// those of tests gets all threads of the call, as in a team they are awake.
template <class Layer, class T>
Step<Layer, T> run_step(const Layer& layer, const Matrix<T>& x, const CallOptions& call = {},
                        typename Layer::Tape* tape = nullptr) {
  typename Layer::Tape own;
  tape = tape == nullptr ? &own : tape;
  Step<Layer, T> step{random_matrix<T>(x.rows(), layer.d_out(), 4242),
                      Matrix<T>(x.rows(), layer.d_out()), Matrix<T>(x.rows(), layer.d_in()),
                      layer.zero_grads()};
  detail::with_team(detail::num_threads(call.num_threads), [&] {
    layer.forward(x, step.y, *tape, call);
    layer.backward(x, step.dy, *tape, step.dx, step.grads);
  });
  return step;
}

/// All tensors of two gradients have the same bits. The layer gives the list of them.
template <class Layer>
::testing::AssertionResult same_grads(const Layer& layer, const typename Layer::Grads& a,
                                      const typename Layer::Grads& b) {
  ::testing::AssertionResult result = ::testing::AssertionSuccess();
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&, const auto& left, const auto& right) {
        const auto same = same_bits(left, right);
        if (result && !same) {
          result = ::testing::AssertionFailure() << name.text() << ": " << same.message();
        }
      },
      a, b);
  return result;
}

}  // namespace moe::testing
