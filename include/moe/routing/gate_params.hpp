// SPDX-License-Identifier: Apache-2.0
// The weights of a LinearGate: their shapes, how many there are, and how they begin.
#pragma once

#include <string_view>

#include "../config.hpp"
#include "../detail/random.hpp"
#include "../parameters.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A Tensor for each tensor of the gate: a matrix, or its Shape.
template <class Tensor>
struct LinearGateTensors {
  Tensor weight = {};  ///< (E, D)
  Tensor bias = {};    ///< (1, E)
  Tensor noise = {};   ///< (E, D), the noise projection of noisy top-k

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("weight"), p.weight...);
    visit(std::string_view("bias"), p.bias...);
    visit(std::string_view("noise"), p.noise...);
  }
};

/// A tensor that the gate does not have is empty.
template <Real W>
using LinearGateParams = LinearGateTensors<Matrix<W>>;

inline LinearGateTensors<Shape> gate_shapes(const LogitsConfig& config, Index d_model,
                                            Index num_experts) {
  return {.weight = {num_experts, d_model},
          .bias = {1, config.bias ? num_experts : 0},
          .noise = {config.noisy ? num_experts : 0, d_model}};
}

/// Weights from N(0, 1 / d_model), bias and noise projection zero.
template <Real W>
LinearGateParams<W> random_gate(const LinearGateTensors<Shape>& shapes, std::uint64_t seed) {
  LinearGateParams<W> params;
  LinearGateParams<W>::for_each([](std::string_view, Matrix<W>& tensor,
                                   const Shape& shape) { tensor.setZero(shape.rows, shape.cols); },
                                params, shapes);
  detail::fill_normal(params.weight, seed, 0);
  return params;
}

constexpr Index gate_parameters(const LogitsConfig& config, Index d_model, Index num_experts) {
  return num_experts * (d_model * (config.noisy ? 2 : 1) + (config.bias ? 1 : 0));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
