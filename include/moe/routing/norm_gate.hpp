// SPDX-License-Identifier: Apache-2.0
// NormGate: a linear gate that sees RMSNorm of the tokens (Zhang and Sennrich 2019), as the router
// of Gemma 4 does. Experts see the tokens as they are.
//
// Looks at one token, and is causal.
#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels/rms_norm.hpp"
#include "gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// input = x / sqrt(mean(x^2) + epsilon) * scale * factor, elementwise.
struct InputNormConfig {
  double epsilon = 1e-6;
  /// Learned: norm_scale (1, D).
  bool scale = true;
  /// Gemma 4: 1 / sqrt(D).
  double factor = 1.0;

  void validate() const {
    detail::throw_unless(std::isfinite(epsilon) && epsilon >= 0.0, "InputNorm: epsilon = ", epsilon,
                         ", expected 0 or positive and finite");
    detail::throw_unless(std::isfinite(factor) && factor > 0.0, "InputNorm: factor = ", factor,
                         ", expected positive and finite");
  }
};

/// A Tensor for each tensor of the gate: a matrix, or its Shape.
template <class Tensor>
struct NormGateTensors : LinearGateTensors<Tensor> {
  Tensor norm_scale = {};  ///< (1, D), or empty without a scale

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    LinearGateTensors<Tensor>::for_each(visit, p...);
    visit(std::string_view("norm_scale"), p.norm_scale...);
  }
};

/// logits = RMSNorm(x) W^T, with all that a LinearGate has, in Wide<T>.
template <Real T>
class NormGate {
 public:
  using W = Wide<T>;
  using Params = NormGateTensors<Matrix<W>>;

  struct Table : LinearGate<W>::Table {
    GrowingMatrix<W> normed;           ///< (N, D) what the linear gate sees, 0 for padding
    GrowingMatrix<W> inverse;          ///< (N, 1) factor / sqrt(mean(x^2) + epsilon)
    mutable GrowingMatrix<W> dnormed;  ///< (N, D) memory of a backward; one at a time
  };

  /// Throws std::invalid_argument if a size or a config is out of its range.
  NormGate(Index d_model, Index num_experts, const LogitsConfig& config,
           const InputNormConfig& norm)
      : linear_(d_model, num_experts, config), norm_(norm) {
    norm.validate();
  }

  Index d_model() const { return linear_.d_model(); }
  Index num_experts() const { return linear_.num_experts(); }
  /// Numbers of a token between x and logits: the normed token.
  Index inner_width() const { return d_model(); }
  double multiply_adds(Index rows) const { return linear_.multiply_adds(rows); }
  /// As those of LinearGate.
  Flops forward_flops(Index tokens) const {
    return linear_.forward_flops(tokens) +
           tokens * detail::flops_of_one(0, kernels::rms_norm_flops(d_model(), norm_.scale));
  }
  Flops backward_flops(Index tokens) const {
    return linear_.backward_flops(tokens) +
           tokens *
               detail::flops_of_one(0, kernels::rms_norm_backward_flops(d_model(), norm_.scale));
  }
  const LogitsConfig& config() const { return linear_.config(); }
  const InputNormConfig& norm() const { return norm_; }
  /// This gate for tokens in another scalar.
  template <Real U>
  NormGate<U> cast() const {
    return {d_model(), num_experts(), config(), norm_};
  }

  /// Weights from N(0, 1 / d_model), scales one, the rest zero.
  Params initial_params(std::uint64_t seed) const {
    return {linear_.initial_params(seed), Matrix<W>::Ones(1, norm_.scale ? d_model() : 0)};
  }
  /// What each tensor has to be.
  NormGateTensors<Shape> shapes() const {
    return {linear_.shapes(), {1, norm_.scale ? d_model() : 0}};
  }

  /// Writes logits, and clean_logits and noise_scale if there is noise.
  void forward(const Params& params, ConstMatrixRef<T> x, const CallOptions& call,
               Table& table) const {
    table.normed.resize(x.rows(), d_model());
    table.inverse.resize(x.rows(), 1);
    detail::for_rows(x.rows(), table.num_threads,
                     [&](Index token) { write_normed(params, x, token, table); });
    linear_.forward(params, table.normed, call, table);
  }

  /// As that of LinearGate.
  void backward_input(const Params& params, ConstMatrixRef<T> x, const Table& table,
                      RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
    table.dnormed.resize(x.rows(), d_model());
    linear_.backward_input(params, table.normed, table, gradient, table.dnormed);
    detail::for_rows(x.rows(), table.num_threads,
                     [&](Index token) { write_dx(params, x, token, table, dx); });
  }

  /// grads +=, after backward_input.
  void backward_params(const Params& params, ConstMatrixRef<T> x, const Table& table,
                       const RoutingGradient<W>& gradient, Params& grads) const {
    linear_.backward_params(params, table.normed, table, gradient, grads);
    // Columns are shared out: each sum goes over the tokens in their order.
    detail::for_blocks(
        grads.norm_scale.size(), 64, table.num_threads, [&](Index begin, Index cols) {
          kernels::add_norm_scale_gradient(
              x.middleCols(begin, cols), table.dnormed.middleCols(begin, cols),
              table.inverse.data(), [&](Index token) { return table.is_padding(token); },
              &grads.norm_scale(0, begin));
        });
  }

 private:
  const W* scale(const Params& params) const {
    return norm_.scale ? params.norm_scale.data() : nullptr;
  }

  void write_normed(const Params& params, const ConstMatrixRef<T>& x, Index token,
                    Table& table) const {
    W* normed = &table.normed.coeffRef(token, 0);
    if (table.is_padding(token)) {
      table.inverse(token, 0) = W(0);
      std::fill_n(normed, d_model(), W(0));
      return;
    }
    const T* row = &x.coeffRef(token, 0);
    const W inverse = kernels::inverse_rms(row, d_model(), norm_.epsilon, norm_.factor);
    table.inverse(token, 0) = inverse;
    kernels::scale_norm(row, d_model(), inverse, scale(params), normed);
  }

  void write_dx(const Params& params, const ConstMatrixRef<T>& x, Index token, const Table& table,
                MatrixRef<T>& dx) const {
    if (table.is_padding(token)) {
      dx.row(token).setZero();
      return;
    }
    kernels::rms_norm_backward(&x.coeffRef(token, 0), &table.dnormed.coeffRef(token, 0),
                               scale(params), d_model(), table.inverse(token, 0),
                               &dx.coeffRef(token, 0), norm_.factor);
  }

  LinearGate<W> linear_;
  InputNormConfig norm_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
