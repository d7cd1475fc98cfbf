// SPDX-License-Identifier: Apache-2.0
// StateGate: logits by a narrow state of the token that the gates of a model hand on from layer to
// layer, and a network of three layers behind a norm (Zyphra 2025, ZAYA1):
//
//   state  = x down^T + down_bias + state_scale * the state of the layer before
//   logits = gelu(gelu(RMSNorm(state) first^T + first_bias) second^T + second_bias) weight^T
//
// The state is an object of the call: what comes in stands behind the token in the rows that the
// router reads, {x, [x, state]}, and what goes on is table.state, whose gradient is that of the
// columns which the next layer's router read.
#pragma once

#include <algorithm>
#include <cmath>

#include "gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct StateGateConfig {
  Index d_state = 0;
  bool takes_state = true;  ///< false in the first layer
  double epsilon = 1e-5;    ///< of the norm

  void validate() const {
    detail::throw_unless(d_state > 0, "StateGate: d_state = ", d_state, ", expected at least 1");
    detail::throw_unless(std::isfinite(epsilon) && epsilon >= 0.0, "StateGate: epsilon = ", epsilon,
                         ", expected 0 or positive and finite");
  }
};

/// A Tensor for each tensor of the gate: a matrix, or its Shape.
template <class Tensor>
struct StateGateTensors {
  LinearGateTensors<Tensor> down = {};                ///< down (R, D), down_bias (1, R)
  Tensor state_scale = {};                            ///< (1, R), or empty if it takes no state
  Tensor norm = {};                                   ///< (1, R)
  LinearGateTensors<Tensor> first = {}, second = {};  ///< (R, R), (1, R)
  LinearGateTensors<Tensor> output = {};              ///< weight (E, R)

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("down"), p.down.weight...);
    visit(std::string_view("down_bias"), p.down.bias...);
    visit(std::string_view("state_scale"), p.state_scale...);
    visit(std::string_view("norm"), p.norm...);
    visit(std::string_view("first"), p.first.weight...);
    visit(std::string_view("first_bias"), p.first.bias...);
    visit(std::string_view("second"), p.second.weight...);
    visit(std::string_view("second_bias"), p.second.bias...);
    visit(std::string_view("weight"), p.output.weight...);
  }
};

template <Real T>
class StateGate {
 public:
  using W = Wide<T>;
  using Params = StateGateTensors<Matrix<W>>;

  /// state is in the routing table; that of padding is 0.
  struct Table : LinearGate<W>::Table {
    typename LinearGate<T>::Table down;
    typename LinearGate<W>::Table first, second;  ///< their logits are what gelu sees
    GrowingMatrix<W> normed;                      ///< (N, R)
    GrowingMatrix<W> inverse;                     ///< (N, 1) 1 / sqrt(mean(state^2) + epsilon)
    GrowingMatrix<W> hidden1, hidden2;            ///< (N, R) behind gelu
    mutable RoutingGradient<W> ddown, dfirst, dsecond;  ///< memory of a backward; one at a time
    mutable GrowingMatrix<W> dnormed;                   ///< (N, R) likewise
  };

  /// Throws std::invalid_argument if a size or the config is out of its range.
  StateGate(Index d_token, Index num_experts, const StateGateConfig& config)
      : config_(config),
        down_(d_token, checked(config).d_state, {.bias = true}),
        inner_(config.d_state, config.d_state, {.bias = true}),
        output_(config.d_state, num_experts, {}) {}

  /// Of the rows that it reads: a token, and the state behind it if it takes one.
  Index d_model() const { return d_token() + (config_.takes_state ? d_state() : 0); }
  Index d_token() const { return down_.d_model(); }
  Index d_state() const { return config_.d_state; }
  Index num_experts() const { return output_.num_experts(); }
  const StateGateConfig& config() const { return config_; }
  /// This gate for tokens in another scalar.
  template <Real U>
  StateGate<U> cast() const {
    return {d_token(), num_experts(), config_};
  }
  double multiply_adds(Index rows) const {
    return down_.multiply_adds(rows) + 2.0 * inner_.multiply_adds(rows) +
           output_.multiply_adds(rows);
  }

  Flops forward_flops(Index tokens) const {
    const Index norm = 4 * d_state() + 4, gelus = 2 * 5 * d_state();
    return down_.forward_flops(tokens) + 2 * inner_.forward_flops(tokens) +
           output_.forward_flops(tokens) +
           tokens * detail::flops_of_one(0, norm + gelus + of_state(2));
  }
  Flops backward_flops(Index tokens) const {
    const Index norm = (4 + 6 + 3) * d_state() + 1, gelus = 2 * 11 * d_state();
    return down_.backward_flops(tokens) + 2 * inner_.backward_flops(tokens) +
           output_.backward_flops(tokens) +
           tokens * detail::flops_of_one(0, norm + gelus + of_state(1 + 2)) +
           detail::flops_of_one(0, d_state() + of_state(1));
  }

  /// Weights from N(0, 1 / columns), biases zero, scales one.
  Params initial_params(std::uint64_t seed) const {
    const auto of = [seed](const auto& gate, std::uint64_t number) {
      return gate.initial_params(detail::seed_of(seed, number));
    };
    return {of(down_, 0),
            Matrix<W>::Ones(1, config_.takes_state ? d_state() : 0),
            Matrix<W>::Ones(1, d_state()),
            of(inner_, 1),
            of(inner_, 2),
            of(output_, 3)};
  }
  /// What each tensor has to be.
  StateGateTensors<Shape> shapes() const {
    return {down_.shapes(),  {config_.takes_state ? 1 : 0, d_state()},
            {1, d_state()},  inner_.shapes(),
            inner_.shapes(), output_.shapes()};
  }

  /// Writes logits and state.
  void forward(const Params& params, ConstMatrixRef<T> x, const CallOptions& call,
               Table& table) const {
    for (auto* each : {&table.first, &table.second}) {
      hand_on_call(table, *each);
    }
    hand_on_call(table, table.down);
    down_.forward(params.down, x.leftCols(d_token()), call, table.down);
    table.state.resize(x.rows(), d_state());
    table.normed.resize(x.rows(), d_state());
    table.inverse.resize(x.rows(), 1);
    detail::for_rows(x.rows(), table.num_threads,
                     [&](Index token) { write_state(params, x, token, table); });
    inner_.forward(params.first, table.normed, call, table.first);
    activate(table.first.logits, table.num_threads, table.hidden1);
    inner_.forward(params.second, table.hidden1, call, table.second);
    activate(table.second.logits, table.num_threads, table.hidden2);
    output_.forward(params.output, table.hidden2, call, table);
  }

  /// As that of LinearGate; gradient.state is that of what went on, and dx has the gradient of what
  /// came in behind that of the token.
  void backward_input(const Params& params, ConstMatrixRef<T> x, const Table& table,
                      RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
    for (GrowingMatrix<W>* each :
         {&table.ddown.logits, &table.dfirst.logits, &table.dsecond.logits, &table.dnormed}) {
      each->resize(x.rows(), d_state());
    }
    const int threads = table.num_threads;
    output_.backward_input(params.output, table.hidden2, table, gradient, table.dsecond.logits);
    activate_backward(table.second.logits, threads, table.dsecond.logits);
    inner_.backward_input(params.second, table.hidden1, table.second, table.dsecond,
                          table.dfirst.logits);
    activate_backward(table.first.logits, threads, table.dfirst.logits);
    inner_.backward_input(params.first, table.normed, table.first, table.dfirst, table.dnormed);
    detail::for_rows(x.rows(), threads,
                     [&](Index token) { write_dstate(params, token, table, gradient, dx); });
    down_.backward_input(params.down, x.leftCols(d_token()), table.down, table.ddown,
                         dx.leftCols(d_token()));
  }

  /// grads +=, after backward_input.
  void backward_params(const Params& params, ConstMatrixRef<T> x, const Table& table,
                       const RoutingGradient<W>& gradient, Params& grads) const {
    output_.backward_params(params.output, table.hidden2, table, gradient, grads.output);
    inner_.backward_params(params.second, table.hidden1, table.second, table.dsecond, grads.second);
    inner_.backward_params(params.first, table.normed, table.first, table.dfirst, grads.first);
    down_.backward_params(params.down, x.leftCols(d_token()), table.down, table.ddown, grads.down);
    // Columns are shared out: each sum goes over the tokens in their order.
    detail::for_rows(d_state(), table.num_threads, [&](Index col) {
      W norm(0), scale(0);
      for (Index token = 0; token < x.rows(); ++token) {
        if (table.is_padding(token)) {
          continue;
        }
        norm += table.dnormed(token, col) * (table.state(token, col) * table.inverse(token, 0));
        if (config_.takes_state) {
          scale += table.ddown.logits(token, col) * static_cast<W>(x(token, d_token() + col));
        }
      }
      grads.norm(0, col) += norm;
      if (config_.takes_state) {
        grads.state_scale(0, col) += scale;
      }
    });
  }

 private:
  static const StateGateConfig& checked(const StateGateConfig& config) {
    config.validate();
    return config;
  }

  /// So many for each number of a state that it takes.
  Index of_state(Index flops) const { return config_.takes_state ? flops * d_state() : 0; }

  void write_state(const Params& params, const ConstMatrixRef<T>& x, Index token,
                   Table& table) const {
    using std::sqrt;
    W* state = &table.state.coeffRef(token, 0);
    W* normed = &table.normed.coeffRef(token, 0);
    if (table.is_padding(token)) {
      table.inverse(token, 0) = W(0);
      std::fill_n(state, d_state(), W(0));
      std::fill_n(normed, d_state(), W(0));
      return;
    }
    W squares(0);
    for (Index i = 0; i < d_state(); ++i) {
      state[i] = table.down.logits(token, i);
      if (config_.takes_state) {
        state[i] += params.state_scale(0, i) * static_cast<W>(x(token, d_token() + i));
      }
      squares += state[i] * state[i];
    }
    const W mean = kernels::finite_or_nan(squares) / W(static_cast<double>(d_state()));
    const W inverse = W(1) / sqrt(mean + W(config_.epsilon));
    table.inverse(token, 0) = inverse;
    for (Index i = 0; i < d_state(); ++i) {
      normed[i] = state[i] * inverse * params.norm(0, i);
    }
  }

  /// With n = state / rms and g the gradient of n: dstate = (g - n mean(n g)) / rms, and what came
  /// back from the next layer.
  void write_dstate(const Params& params, Index token, const Table& table,
                    const RoutingGradient<W>& gradient, MatrixRef<T>& dx) const {
    W* dstate = &table.ddown.logits.coeffRef(token, 0);
    const bool padding = table.is_padding(token);
    const W inverse = table.inverse(token, 0);
    const auto n = [&](Index i) { return table.state(token, i) * inverse; };
    const auto g = [&](Index i) { return table.dnormed(token, i) * params.norm(0, i); };
    W mean(0);
    for (Index i = 0; !padding && i < d_state(); ++i) {
      mean += n(i) * g(i);
    }
    mean /= W(static_cast<double>(d_state()));
    for (Index i = 0; i < d_state(); ++i) {
      dstate[i] = padding ? W(0) : W((g(i) - n(i) * mean) * inverse + gradient.state(token, i));
      if (config_.takes_state) {
        dx(token, d_token() + i) =
            padding ? T(0) : static_cast<T>(dstate[i] * params.state_scale(0, i));
      }
    }
  }

  /// to = gelu(z), by erf.
  static void activate(const GrowingMatrix<W>& z, int threads, GrowingMatrix<W>& to) {
    using std::erf;
    to.resize(z.rows(), z.cols());
    detail::for_rows(z.rows(), threads, [&](Index row) {
      for (Index i = 0; i < z.cols(); ++i) {
        to(row, i) = z(row, i) * (W(0.5) * (W(1) + erf(z(row, i) * W(root_half))));
      }
    });
  }
  /// d, the gradient of gelu(z), becomes that of z.
  static void activate_backward(const GrowingMatrix<W>& z, int threads, GrowingMatrix<W>& d) {
    using std::erf, std::exp;
    detail::for_rows(z.rows(), threads, [&](Index row) {
      for (Index i = 0; i < z.cols(); ++i) {
        const W v = z(row, i);
        const W density = exp(W(-0.5) * v * v) * W(root_half_over_pi);
        d(row, i) *= W(0.5) * (W(1) + erf(v * W(root_half))) + v * density;
      }
    });
  }

  static constexpr double root_half = 0.70710678118654752440;
  static constexpr double root_half_over_pi = 0.39894228040143267794;  // 1 / sqrt(2 pi)

  StateGateConfig config_;
  LinearGate<T> down_;
  LinearGate<W> inner_, output_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
