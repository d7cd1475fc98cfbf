// SPDX-License-Identifier: Apache-2.0
// Expert<T>: a feed-forward, gated or not. It computes the rows it is given and knows nothing of
// routing.
//
//   h = act(x W_up^T + b_up)                            plain
//   h = act(x W_gate^T + b_gate) * (x W_up^T + b_up)    gated (Shazeer 2020, GLU variants)
//   y = h W_down^T + b_down, times sigmoid(x . output_gate) where there is one
#pragma once

#include <optional>
#include <vector>

#include "activation.hpp"
#include "concepts.hpp"
#include "detail/parallel.hpp"
#include "detail/random.hpp"
#include "detail/reserve.hpp"
#include "kernels/gemm.hpp"
#include "kernels/lanes.hpp"
#include "kernels/permute.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Weights are (out, in), as in PyTorch; a tensor that the expert does not have is empty.
template <Real T>
struct ExpertParams {
  Matrix<T> gate = {}, up = {}, down = {};                 ///< (F, D_in), (F, D_in), (D_out, F)
  Matrix<T> gate_bias = {}, up_bias = {}, down_bias = {};  ///< (1, F), (1, F), (1, D_out)
  Matrix<T> output_gate = {};                              ///< (1, D_in)

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("gate"), p.gate...);
    visit(std::string_view("up"), p.up...);
    visit(std::string_view("down"), p.down...);
    visit(std::string_view("gate_bias"), p.gate_bias...);
    visit(std::string_view("up_bias"), p.up_bias...);
    visit(std::string_view("down_bias"), p.down_bias...);
    visit(std::string_view("output_gate"), p.output_gate...);
  }
};

/// A share of the parameters' rows, so that several threads can add to one expert's gradients.
struct Part {
  Index number = 0, count = 1;

  Index begin(Index rows) const { return rows * number / count; }
  Index end(Index rows) const { return rows * (number + 1) / count; }
};

template <Real T>
class Expert {
 public:
  using W = Wide<T>;
  using Params = ExpertParams<T>;

  /// The hidden rows of one tile. Grows to the largest tile it has seen.
  struct Scratch {
    Matrix<T> gate, up;  // (n, F): pre-activations; `up` then becomes the hidden row
  };

  /// What backward needs of one tile, and its own intermediate results.
  struct Tape {
    Matrix<T> gate, up;    // (n, F) pre-activations
    Matrix<T> hidden;      // (n, F)
    Matrix<T> dgate, dup;  // (n, F) written by backward_input
    // Only with an output gate:
    Matrix<T> ungated, dungated;  // (n, D_out) before the gate, and its gradient
    Matrix<T> factor, dfactor;    // (n, 1) sigmoid(x . output_gate), and the gradient of the dot
  };

  struct Sizes {
    Index d_in, d_ff, d_out;
  };

  /// Weights from N(0, 1 / fan_in), biases zero.
  Expert(Sizes sizes, const ExpertConfig& config, std::uint64_t seed) : config_(config) {
    detail::check(sizes.d_in > 0 && sizes.d_ff > 0 && sizes.d_out > 0, "Expert: sizes (",
                  sizes.d_in, ", ", sizes.d_ff, ", ", sizes.d_out, "), expected at least 1");
    params_.gate.resize(config.gated ? sizes.d_ff : 0, sizes.d_in);
    params_.up.resize(sizes.d_ff, sizes.d_in);
    params_.down.resize(sizes.d_out, sizes.d_ff);
    params_.gate_bias.setZero(1, config.gated && config.bias ? sizes.d_ff : 0);
    params_.up_bias.setZero(1, config.bias ? sizes.d_ff : 0);
    params_.down_bias.setZero(1, config.bias ? sizes.d_out : 0);
    params_.output_gate.resize(config.output_gate ? 1 : 0, sizes.d_in);
    std::uint64_t stream = 0;
    for (Matrix<T>* weight : {&params_.gate, &params_.up, &params_.down, &params_.output_gate}) {
      detail::fill_normal(*weight, seed, stream++);
    }
  }

  /// Takes ready weights. Throws std::invalid_argument if their shapes do not fit each other or
  /// the config.
  Expert(Params params, const ExpertConfig& config) : config_(config), params_(std::move(params)) {
    const Index d_in = params_.up.cols(), d_ff = params_.up.rows(), d_out = params_.down.rows();
    const Index bias = config.bias ? 1 : 0, gated = config.gated ? 1 : 0;
    detail::check(d_in > 0 && d_ff > 0 && d_out > 0, "Expert: up is (", d_ff, ", ", d_in,
                  ") and down has ", d_out, " rows, expected at least 1 of each");
    detail::check_shape(params_.down, d_out, d_ff, "Expert: down");
    detail::check(
        params_.gate.rows() == gated * d_ff && (!config.gated || params_.gate.cols() == d_in),
        "Expert: gate is (", params_.gate.rows(), ", ", params_.gate.cols(), "), expected (",
        gated * d_ff, ", ", d_in, ")");
    const auto check_row = [](const Matrix<T>& b, Index size, const char* name) {
      detail::check(b.size() == size && (size == 0 || b.rows() == 1), "Expert: ", name, " is (",
                    b.rows(), ", ", b.cols(), "), expected (1, ", size, ")");
    };
    check_row(params_.gate_bias, bias * gated * d_ff, "gate_bias");
    check_row(params_.up_bias, bias * d_ff, "up_bias");
    check_row(params_.down_bias, bias * d_out, "down_bias");
    check_row(params_.output_gate, config.output_gate ? d_in : 0, "output_gate");
  }

  Index d_in() const { return params_.up.cols(); }
  Index d_ff() const { return params_.up.rows(); }
  Index d_out() const { return params_.down.rows(); }
  const ExpertConfig& config() const { return config_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  /// Makes the scratch large enough for tiles of so many rows.
  void reserve(Scratch& scratch, Index rows) const {
    detail::grow_in_steps(scratch.up, rows, d_ff());
    detail::grow_in_steps(scratch.gate, config_.gated ? rows : 0, d_ff());
  }

  /// y (n, d_out) = f(x (n, d_in)). y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch) const;
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape) const;

  /// dx (n, d_in) = the gradient of x, and the tape keeps the gradients of the pre-activations.
  void backward_input(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx) const;

  /// grads += the gradients of the parameters, after backward_input with the same tape. With a
  /// part, only those rows of each tensor.
  void backward_params(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, const Tape& tape, Params& grads,
                       Part part = {}) const;

 private:
  /// z (n, out) = x (n, in) w (out, in)^T + bias
  static void linear(ConstMatrixRef<T> x, const Matrix<T>& w, const Matrix<T>& bias,
                     MatrixRef<T> z) {
    kernels::gemm<T>(kernels::view(x), kernels::view(w).transpose(), z, kernels::Update::assign);
    if (bias.size() > 0) {
      for (Index row = 0; row < z.rows(); ++row) {
        z.row(row) += bias.row(0);
      }
    }
  }

  /// grad (out, in) += dz (n, out)^T x (n, in), and the bias the sums of dz's columns; the rows of
  /// one part.
  static void linear_backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dz, Part part, Matrix<T>& grad,
                              Matrix<T>& bias) {
    const Index begin = part.begin(grad.rows()), rows = part.end(grad.rows()) - begin;
    kernels::gemm<T>(kernels::view(dz).block(0, begin, dz.rows(), rows).transpose(),
                     kernels::view(x), grad.middleRows(begin, rows), kernels::Update::add);
    if (bias.size() > 0) {
      for (Index row = 0; row < dz.rows(); ++row) {
        bias.middleCols(begin, rows) += dz.block(row, begin, 1, rows);
      }
    }
  }

  T output_factor(const T* x) const {
    return static_cast<T>(kernels::sigmoid(kernels::dot(x, params_.output_gate.data(), d_in())));
  }

  /// The gradient behind the output gate: dy itself, or dungated after writing it.
  ConstMatrixRef<T> ungate(ConstMatrixRef<T> dy, Tape& tape) const;

  /// hidden = act(gate) * up, or act(up). hidden may be up.
  void activate(ConstMatrixRef<T> gate, ConstMatrixRef<T> up, MatrixRef<T> hidden) const;

  ExpertConfig config_;
  Params params_;
};

template <Real T>
void Expert<T>::activate(ConstMatrixRef<T> gate, ConstMatrixRef<T> up, MatrixRef<T> hidden) const {
  with_activation(config_.activation, [&](auto act) {
    for (Index row = 0; row < up.rows(); ++row) {
      const T* gate_row = config_.gated ? &gate.coeffRef(row, 0) : nullptr;
      const T* up_row = &up.coeffRef(row, 0);
      T* hidden_row = &hidden.coeffRef(row, 0);
      kernels::for_lanes<W>(up.cols(), [&](auto at) {
        const auto u = at.load(up_row);
        at.store(hidden_row, config_.gated ? act.value(at.load(gate_row)) * u : act.value(u));
      });
    }
  });
}

template <Real T>
void Expert<T>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch) const {
  const Index rows = x.rows(), gate_rows = config_.gated ? rows : 0;
  reserve(scratch, rows);
  auto gate = scratch.gate.topRows(gate_rows);
  auto up = scratch.up.topRows(rows);
  if (config_.gated) {
    linear(x, params_.gate, params_.gate_bias, gate);
  }
  linear(x, params_.up, params_.up_bias, up);
  activate(gate, up, up);
  linear(up, params_.down, params_.down_bias, y);
  for (Index row = 0; config_.output_gate && row < rows; ++row) {
    y.row(row) *= output_factor(&x.coeffRef(row, 0));
  }
}

template <Real T>
void Expert<T>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape) const {
  const Index rows = x.rows(), gate_rows = config_.gated ? rows : 0;
  for (Matrix<T>* m : {&tape.up, &tape.hidden, &tape.dup}) {
    detail::grow_in_steps(*m, rows, d_ff());
  }
  for (Matrix<T>* m : {&tape.gate, &tape.dgate}) {
    detail::grow_in_steps(*m, gate_rows, d_ff());
  }
  auto gate = tape.gate.topRows(gate_rows);
  auto up = tape.up.topRows(rows);
  auto hidden = tape.hidden.topRows(rows);
  if (config_.gated) {
    linear(x, params_.gate, params_.gate_bias, gate);
  }
  linear(x, params_.up, params_.up_bias, up);
  activate(gate, up, hidden);
  linear(hidden, params_.down, params_.down_bias, y);
  if (config_.output_gate) {
    for (Matrix<T>* m : {&tape.ungated, &tape.dungated}) {
      detail::grow_in_steps(*m, rows, d_out());
    }
    for (Matrix<T>* m : {&tape.factor, &tape.dfactor}) {
      detail::grow_in_steps(*m, rows, 1);
    }
    tape.ungated.topRows(rows) = y;
    for (Index row = 0; row < rows; ++row) {
      tape.factor(row, 0) = output_factor(&x.coeffRef(row, 0));
      y.row(row) *= tape.factor(row, 0);
    }
  }
}

template <Real T>
ConstMatrixRef<T> Expert<T>::ungate(ConstMatrixRef<T> dy, Tape& tape) const {
  if (!config_.output_gate) {
    return dy;
  }
  for (Index row = 0; row < dy.rows(); ++row) {
    const T factor = tape.factor(row, 0);
    const T dfactor =
        static_cast<T>(kernels::dot(&dy.coeffRef(row, 0), &tape.ungated.coeffRef(row, 0), d_out()));
    tape.dfactor(row, 0) = dfactor * (factor * (T(1) - factor));
    tape.dungated.row(row) = factor * dy.row(row);
  }
  return tape.dungated.topRows(dy.rows());
}

template <Real T>
void Expert<T>::backward_input(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape,
                               MatrixRef<T> dx) const {
  const Index rows = x.rows();
  auto dup = tape.dup.topRows(rows);
  kernels::gemm<T>(kernels::view(ungate(dy, tape)), kernels::view(params_.down), dup,
                   kernels::Update::assign);
  // dup holds dhidden here and becomes the gradient of the pre-activation in place.
  with_activation(config_.activation, [&](auto act) {
    for (Index row = 0; row < rows; ++row) {
      const T* up_row = &tape.up.coeffRef(row, 0);
      const T* gate_row = config_.gated ? &tape.gate.coeffRef(row, 0) : nullptr;
      T* dgate_row = config_.gated ? &tape.dgate.coeffRef(row, 0) : nullptr;
      T* dup_row = &dup.coeffRef(row, 0);
      kernels::for_lanes<W>(d_ff(), [&](auto at) {
        const auto dhidden = at.load(dup_row), up = at.load(up_row);
        if (config_.gated) {
          const auto gate = at.load(gate_row);
          at.store(dgate_row, dhidden * up * act.derivative(gate));
          at.store(dup_row, dhidden * act.value(gate));
        } else {
          at.store(dup_row, dhidden * act.derivative(up));
        }
      });
    }
  });
  kernels::gemm<T>(kernels::view(dup), kernels::view(params_.up), dx, kernels::Update::assign);
  if (config_.gated) {
    kernels::gemm<T>(kernels::view(tape.dgate.topRows(rows)), kernels::view(params_.gate), dx,
                     kernels::Update::add);
  }
  for (Index row = 0; config_.output_gate && row < rows; ++row) {
    dx.row(row) += tape.dfactor(row, 0) * params_.output_gate.row(0);
  }
}

template <Real T>
void Expert<T>::backward_params(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, const Tape& tape,
                                Params& grads, Part part) const {
  const Index rows = x.rows();
  const ConstMatrixRef<T> dungated =
      config_.output_gate ? ConstMatrixRef<T>(tape.dungated.topRows(rows)) : dy;
  linear_backward(tape.hidden.topRows(rows), dungated, part, grads.down, grads.down_bias);
  linear_backward(x, tape.dup.topRows(rows), part, grads.up, grads.up_bias);
  if (config_.gated) {
    linear_backward(x, tape.dgate.topRows(rows), part, grads.gate, grads.gate_bias);
  }
  for (Index row = 0; config_.output_gate && part.number == 0 && row < rows; ++row) {
    grads.output_gate.row(0) += tape.dfactor(row, 0) * x.row(row);
  }
}

/// The routed experts of a config, with random weights from the seed.
template <Real T>
std::vector<Expert<T>> make_experts(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  std::vector<std::optional<Expert<T>>> made(static_cast<std::size_t>(config.num_experts));
  detail::parallel_for(config.num_experts, detail::num_threads(0), [&](Index e, int) {
    made[static_cast<std::size_t>(e)].emplace(
        typename Expert<T>::Sizes{config.d_model, config.d_ff, config.output_width()},
        config.expert, detail::mix(seed + 2 + static_cast<std::uint64_t>(e)));
  });
  std::vector<Expert<T>> experts;
  experts.reserve(made.size());
  for (std::optional<Expert<T>>& expert : made) {
    experts.push_back(std::move(*expert));
  }
  return experts;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
