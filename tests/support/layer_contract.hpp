// SPDX-License-Identifier: Apache-2.0
// Promises of the numerical contract that a layer keeps whatever its flow is: the same bits for any
// number of threads, gradients that are added to, no allocation, and tapes of others refused.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "count_allocations.hpp"
#include "layer_step.hpp"
#include "throws.hpp"

namespace moe::testing {

/// Of 60 tokens at least. run_step(call) and forward(call) are a step and an inference of the
/// layer.
template <class Layer, class RunStep, class Forward>
void expect_same_bits_for_any_threads(const Layer& layer, Index num_tokens, RunStep&& run_step,
                                      Forward&& forward) {
  const std::vector<Index> offset = {0, 7, 7, 40, num_tokens};
  std::vector<std::uint8_t> marks(static_cast<std::size_t>(num_tokens), 0);
  marks[3] = marks[50] = 1;
  for (const Tokens& tokens :
       {Tokens{}, Tokens{.sequence_offset = offset}, Tokens{.padding = marks}}) {
    const auto one = run_step(CallOptions{.num_threads = 1, .tokens = tokens});
    for (const int threads : {2, 5}) {
      const auto more = run_step(CallOptions{.num_threads = threads, .tokens = tokens});
      EXPECT_TRUE(same_bits(more.y, one.y));
      EXPECT_TRUE(same_bits(more.dx, one.dx));
      EXPECT_TRUE(same_grads(layer, more.grads, one.grads));
    }
    EXPECT_TRUE(same_bits(forward(CallOptions{.tokens = tokens}), one.y)) << "inference";
  }
}

/// Of two steps on x (N, d_in) into the same gradients.
template <class Layer>
void expect_gradients_added(const Layer& layer, const Matrix<double>& x) {
  const auto once = run_step(layer, x);
  typename Layer::Tape tape;
  Matrix<double> y(x.rows(), layer.d_out()), dx(x.rows(), layer.d_in());
  auto grads = layer.zero_grads();
  for (int i = 0; i < 2; ++i) {
    layer.forward(x, y, tape);
    layer.backward(x, once.dy, tape, dx, grads);
  }
  layer.for_each_parameter(
      [](const ParameterName& name, const auto&, const auto& twice, const auto& grad) {
        EXPECT_TRUE(matrix_near(twice, Matrix<double>(2.0 * grad), 1e-13)) << name.text();
      },
      grads, once.grads);
  EXPECT_TRUE(same_bits(dx, once.dx));
}

/// What the layer says of a tape of its forward before replace(layer). It writes nothing then, and
/// takes that of its next forward.
template <class Layer>
std::string refusal_after(Layer layer, const auto& replace) {
  const Matrix<double> x = random_matrix<double>(6, layer.d_in(), 10);
  const Matrix<double> dy = random_matrix<double>(6, layer.d_out(), 11);
  Matrix<double> y(6, layer.d_out()), dx = x;
  typename Layer::Tape tape;
  const CallOptions call{.num_threads = 1, .noise_seed = 3};
  layer.forward(x, y, tape, call);
  replace(layer);
  auto grads = layer.zero_grads();
  const std::string text = message_of([&] { layer.backward(x, dy, tape, dx, grads); });
  EXPECT_TRUE(same_bits(dx, x) && same_grads(layer, grads, layer.zero_grads()));
  layer.forward(x, y, tape, call);
  EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
  return text;
}

#if MOE_COUNTS_ALLOCATIONS
/// Of calls(rows, padding) with at most 60 rows and two threads, once they were made before.
template <class Calls>
void expect_no_allocation(const Calls& calls) {
  std::vector<std::uint8_t> marks(60, 0);
  marks[1] = 1;
  const std::span<const std::uint8_t> padding(marks);
  auto round = [&] {
    for (const Index rows : {60, 12, 0, 3, 60}) {
      calls(rows, padding.first(0));
      calls(rows, padding.first(static_cast<std::size_t>(rows)));
    }
  };
  detail::with_team(2, round);
  EXPECT_EQ(count_allocations([&] { detail::with_team(2, round); }), 0);
}
#endif

}  // namespace moe::testing
