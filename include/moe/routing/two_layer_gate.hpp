// SPDX-License-Identifier: Apache-2.0
// TwoLayerGate: logits by a hidden layer with tanh (Jin et al. 2024, MoE++), each layer a
// LinearGate.
//
// Looks at one token, and is causal.
#pragma once

#include <cmath>

#include "../kernels/finite.hpp"
#include "gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A Tensor for each tensor of the gate: a matrix, or its Shape.
template <class Tensor>
struct TwoLayerGateTensors {
  LinearGateTensors<Tensor> hidden = {};  ///< hidden (H, D) and hidden_bias (1, H)
  LinearGateTensors<Tensor> output = {};  ///< weight (E, H), bias (1, E), noise (E, H)

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("hidden"), p.hidden.weight...);
    visit(std::string_view("hidden_bias"), p.hidden.bias...);
    LinearGateTensors<Tensor>::for_each(visit, p.output...);
  }
};

/// logits = tanh(x hidden^T) weight^T, with biases for both layers if the config has them, jitter
/// on x, cap and noise on the logits; in Wide<T>. The tanh of an infinity is NaN here.
template <Real T>
class TwoLayerGate {
 public:
  using W = Wide<T>;
  using Params = TwoLayerGateTensors<Matrix<W>>;

  struct Table : LinearGate<W>::Table {
    typename LinearGate<T>::Table hidden;  ///< its logits are tanh of the hidden layer
    /// Memory of a backward, its logits (N, H); one at a time.
    mutable RoutingGradient<W> dhidden;
  };

  /// Throws std::invalid_argument if a size or the config is out of its range.
  TwoLayerGate(Index d_model, Index d_hidden, Index num_experts, const LogitsConfig& config)
      : hidden_(d_model, d_hidden, {.input_jitter = config.input_jitter, .bias = config.bias}),
        output_(d_hidden, num_experts,
                {.bias = config.bias, .softcap = config.softcap, .noisy = config.noisy}) {}

  Index d_model() const { return hidden_.d_model(); }
  Index d_hidden() const { return hidden_.num_experts(); }
  Index num_experts() const { return output_.num_experts(); }
  /// Of both layers.
  LogitsConfig config() const {
    LogitsConfig both = output_.config();
    both.input_jitter = hidden_.config().input_jitter;
    return both;
  }
  /// This gate for tokens in another scalar.
  template <Real U>
  TwoLayerGate<U> cast() const {
    return {d_model(), d_hidden(), num_experts(), config()};
  }
  double multiply_adds(Index rows) const {
    return hidden_.multiply_adds(rows) + output_.multiply_adds(rows);
  }
  /// Numbers of a token between x and logits.
  Index inner_width() const { return d_hidden(); }
  /// As those of LinearGate.
  Flops forward_flops(Index tokens) const {
    return hidden_.forward_flops(tokens) + output_.forward_flops(tokens) +
           tokens * detail::flops_of_one(0, d_hidden());
  }
  Flops backward_flops(Index tokens) const {
    return hidden_.backward_flops(tokens) + output_.backward_flops(tokens) +
           tokens * detail::flops_of_one(0, 3 * d_hidden());
  }

  /// Weights from N(0, 1 / columns), the rest zero.
  Params initial_params(std::uint64_t seed) const {
    return {hidden_.initial_params(detail::seed_of(seed, 0)),
            output_.initial_params(detail::seed_of(seed, 1))};
  }
  /// What each tensor has to be.
  TwoLayerGateTensors<Shape> shapes() const { return {hidden_.shapes(), output_.shapes()}; }

  /// Writes logits, and clean_logits and noise_scale if there is noise.
  void forward(const Params& params, ConstMatrixRef<T> x, const CallOptions& call,
               Table& table) const {
    using std::tanh;
    hand_on_call(table, table.hidden);
    hidden_.forward(params.hidden, x, call, table.hidden);
    GrowingMatrix<W>& hidden = table.hidden.logits;
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      for (Index h = 0; h < d_hidden(); ++h) {
        hidden(token, h) = tanh(kernels::finite_or_nan(hidden(token, h)));
      }
    });
    output_.forward(params.output, hidden, call, table);
  }

  /// As that of LinearGate.
  void backward_input(const Params& params, ConstMatrixRef<T> x, const Table& table,
                      RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
    const GrowingMatrix<W>& hidden = table.hidden.logits;
    GrowingMatrix<W>& dhidden = table.dhidden.logits;
    dhidden.resize(x.rows(), d_hidden());
    output_.backward_input(params.output, hidden, table, gradient, dhidden);
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      for (Index h = 0; h < d_hidden(); ++h) {
        dhidden(token, h) *= W(1) - hidden(token, h) * hidden(token, h);
      }
    });
    hidden_.backward_input(params.hidden, x, table.hidden, table.dhidden, dx);
  }

  /// grads +=, after backward_input.
  void backward_params(const Params& params, ConstMatrixRef<T> x, const Table& table,
                       const RoutingGradient<W>& gradient, Params& grads) const {
    output_.backward_params(params.output, table.hidden.logits, table, gradient, grads.output);
    hidden_.backward_params(params.hidden, x, table.hidden, table.dhidden, grads.hidden);
  }

 private:
  LinearGate<T> hidden_;
  LinearGate<W> output_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
