// SPDX-License-Identifier: Apache-2.0
// What holds of a layer whatever parts it has: gradients that are central differences, a NaN that
// stays where it is, and the same bits for any number of threads, a tape that recomputes, and
// packed weights.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "finite_difference.hpp"
#include "layer_step.hpp"
#include "moe/layers/packed_layer.hpp"
#include "moe/losses/z_loss.hpp"

namespace moe::testing {

/// Of every parameter and of x (N, D_in), with a loss of the routing beside that of the output.
template <class Layer>
void expect_central_differences(Layer& layer, Matrix<double> x) {
  Matrix<double> y(x.rows(), layer.d_out()), dx(x.rows(), layer.d_in());
  const Matrix<double> dy = random_matrix<double>(x.rows(), layer.d_out(), 7);
  typename Layer::Tape tape;
  typename Layer::Grads grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, dx, grads, (0.3 * z_loss(tape.routing)).gradient);
  typename Layer::Scratch scratch;
  const auto f = [&] {
    layer.forward(x, y, scratch);
    return (y.array() * dy.array()).sum() + 0.3 * z_loss(scratch.routing).value;
  };
  EXPECT_LT(gradient_error(f, x, dx), 1e-7);
  layer.for_each_parameter(
      [&](const std::string& name, auto& parameter, const auto& gradient) {
        EXPECT_LT(gradient_error(f, parameter, gradient), 1e-7) << name;
      },
      grads);
}

/// Of one of five tokens: its y is NaN, and that of the others as it was. The step in which it is
/// padding, and reaches nothing, is returned.
inline auto expect_nan_in_its_row_alone(const MoELayer<double>& layer) {
  Matrix<double> x = random_matrix<double>(5, layer.d_in(), 4);
  const auto clean = run_step(layer, x);
  x(2, 3) = std::nan("");
  const auto spoilt = run_step(layer, x);
  EXPECT_TRUE(same_bits(clean.y.topRows(2), spoilt.y.topRows(2)));
  EXPECT_TRUE(same_bits(clean.y.bottomRows(2), spoilt.y.bottomRows(2)));
  EXPECT_TRUE(spoilt.y.row(2).array().isNaN().all());
  const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0};
  auto padded = run_step(layer, x, {.tokens = {.padding = padding}});
  EXPECT_TRUE(padded.y.row(2).isZero(0) && padded.dx.row(2).isZero(0));
  EXPECT_TRUE(padded.y.allFinite() && padded.dx.allFinite());
  return padded;
}

/// Of a step with one thread, which is returned, with two, and with a tape that recomputes.
template <Real T, class RouterT, class E>
auto expect_same_bits_of_steps(const MoELayer<T, RouterT, E>& layer, const Matrix<T>& x) {
  using Layer = MoELayer<T, RouterT, E>;
  auto one = run_step(layer, x, {.num_threads = 1});
  const auto two = run_step(layer, x, {.num_threads = 2});
  EXPECT_TRUE(same_bits(one.y, two.y));
  EXPECT_TRUE(same_bits(one.dx, two.dx));
  EXPECT_TRUE(same_grads(layer, one.grads, two.grads));

  typename Layer::Tape memory;
  typename Layer::RecomputingTape tape(memory);
  Matrix<T> y(x.rows(), layer.d_out()), dx(x.rows(), layer.d_in());
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.backward(x, one.dy, tape, dx, grads);
  EXPECT_TRUE(same_bits(one.dx, dx));
  EXPECT_TRUE(same_grads(layer, one.grads, grads));
  return one;
}

/// Of y = the layer of x, packed in its own scalar and taken out again.
template <Real T>
void expect_same_bits_packed(const MoELayer<T>& layer, const Matrix<T>& x, const Matrix<T>& want) {
  Matrix<T> y(x.rows(), layer.d_out());
  const auto packed = pack<T>(layer);
  typename PackedLayer<T>::Scratch scratch;
  packed.forward(x, y, scratch);
  EXPECT_TRUE(same_bits(want, y));
  typename MoELayer<T>::Scratch unpacked;
  unpack<T>(packed).forward(x, y, unpacked);
  EXPECT_TRUE(same_bits(want, y));
}

}  // namespace moe::testing
