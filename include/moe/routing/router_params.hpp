// SPDX-License-Identifier: Apache-2.0
// The weights of a Router: their shapes, and how they begin.
#pragma once

#include <string_view>

#include "../config.hpp"
#include "../detail/random.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A tensor that the router does not have is empty.
template <Real T>
struct RouterParams {
  Matrix<T> weight = {};  ///< (E, D)
  Matrix<T> bias = {};    ///< (1, E)
  Matrix<T> noise = {};   ///< (E, D), the noise projection of noisy top-k

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("weight"), p.weight...);
    visit(std::string_view("bias"), p.bias...);
    visit(std::string_view("noise"), p.noise...);
  }

  /// Weights from N(0, 1 / d_model), bias and noise projection zero.
  static RouterParams random(Index d_model, Index num_experts, const RouterConfig& config,
                             std::uint64_t seed) {
    detail::check(d_model > 0 && num_experts > 0, "Router: d_model = ", d_model,
                  " and num_experts = ", num_experts, ", expected at least 1 of each");
    RouterParams params{.weight = Matrix<T>(num_experts, d_model),
                        .bias = Matrix<T>::Zero(1, config.logits.bias ? num_experts : 0),
                        .noise = Matrix<T>::Zero(config.logits.noisy ? num_experts : 0, d_model)};
    detail::fill_normal(params.weight, seed, 0);
    return params;
  }

  /// Throws std::invalid_argument if the shapes do not fit each other or the config.
  void check(const RouterConfig& config) const {
    const Index experts = weight.rows(), width = weight.cols();
    const Index biases = config.logits.bias ? experts : 0,
                noisy = config.logits.noisy ? experts : 0;
    detail::check(experts > 0 && width > 0, "Router: weight is (", experts, ", ", width,
                  "), expected at least (1, 1)");
    detail::check(bias.size() == biases && (biases == 0 || bias.rows() == 1), "Router: bias is (",
                  bias.rows(), ", ", bias.cols(), "), expected (1, ", biases, ")");
    detail::check(noise.rows() == noisy && (noisy == 0 || noise.cols() == width),
                  "Router: noise is (", noise.rows(), ", ", noise.cols(), "), expected (", noisy,
                  ", ", width, ")");
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
