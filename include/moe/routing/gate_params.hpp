// SPDX-License-Identifier: Apache-2.0
// The weights of a LinearGate: their shapes, how many there are, and how they begin.
#pragma once

#include <string_view>

#include "../config.hpp"
#include "../detail/random.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A tensor that the gate does not have is empty.
template <Real W>
struct LinearGateParams {
  Matrix<W> weight = {};  ///< (E, D)
  Matrix<W> bias = {};    ///< (1, E)
  Matrix<W> noise = {};   ///< (E, D), the noise projection of noisy top-k

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("weight"), p.weight...);
    visit(std::string_view("bias"), p.bias...);
    visit(std::string_view("noise"), p.noise...);
  }

  /// Weights from N(0, 1 / d_model), bias and noise projection zero.
  static LinearGateParams random(Index d_model, Index num_experts, const LogitsConfig& config,
                                 std::uint64_t seed) {
    LinearGateParams params{.weight = Matrix<W>(num_experts, d_model),
                            .bias = Matrix<W>::Zero(1, config.bias ? num_experts : 0),
                            .noise = Matrix<W>::Zero(config.noisy ? num_experts : 0, d_model)};
    detail::fill_normal(params.weight, seed, 0);
    return params;
  }

  /// Throws std::invalid_argument if the shapes do not fit.
  void check(Index d_model, Index num_experts, const LogitsConfig& config) const {
    const Index biases = config.bias ? num_experts : 0, noisy = config.noisy ? num_experts : 0;
    detail::check_shape(weight, num_experts, d_model, "Router: weight");
    detail::check(bias.size() == biases && (biases == 0 || bias.rows() == 1), "Router: bias is (",
                  bias.rows(), ", ", bias.cols(), "), expected (1, ", biases, ")");
    detail::check(noise.rows() == noisy && (noisy == 0 || noise.cols() == d_model),
                  "Router: noise is (", noise.rows(), ", ", noise.cols(), "), expected (", noisy,
                  ", ", d_model, ")");
  }
};

constexpr Index gate_parameters(const LogitsConfig& config, Index d_model, Index num_experts) {
  return num_experts * (d_model * (config.noisy ? 2 : 1) + (config.bias ? 1 : 0));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
