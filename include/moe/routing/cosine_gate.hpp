// SPDX-License-Identifier: Apache-2.0
// CosineGate: logits are cosines between a low-dimensional projection of the token and a direction
// of each expert, over a learned temperature (Chi et al. 2022, X-MoE).
//
// Looks at one token, and is causal.
#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels/finite.hpp"
#include "gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct CosineGateConfig {
  Index width = 256;         ///< of the projection, P
  double temperature = 0.5;  ///< at the beginning
  bool bias = true;          ///< of the projection

  void validate() const {
    detail::throw_unless(width > 0, "CosineGate: width = ", width, ", expected at least 1");
    detail::throw_unless(temperature >= 0.01 && std::isfinite(temperature),
                         "CosineGate: temperature = ", temperature,
                         ", expected finite and at least 0.01");
  }
};

/// A Tensor for each tensor of the gate: a matrix, or its Shape.
template <class Tensor>
struct CosineGateTensors {
  LinearGateTensors<Tensor> projection = {};  ///< projection (P, D), projection_bias (1, P)
  Tensor direction = {};                      ///< (E, P), of any length
  Tensor log_sharpness = {};                  ///< (1, 1) log(1 / temperature)

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("projection"), p.projection.weight...);
    visit(std::string_view("projection_bias"), p.projection.bias...);
    visit(std::string_view("direction"), p.direction...);
    visit(std::string_view("log_sharpness"), p.log_sharpness...);
  }
};

/// logits = exp(min(log_sharpness, log 100)) * cosine(projection of x, direction), in Wide<T>.
template <Real T>
class CosineGate {
 public:
  using W = Wide<T>;
  using Params = CosineGateTensors<Matrix<W>>;

  struct Table : LinearGate<W>::Table {
    typename LinearGate<T>::Table projection;  ///< its logits have length 1
    GrowingMatrix<W> length;                   ///< (N, 1) that they had
    LinearGateParams<W> unit;                  ///< directions of length 1
    GrowingMatrix<W> unit_length;              ///< (E, 1) that they have
    W sharpness = W(1);
    mutable RoutingGradient<W> dprojection;  ///< memory of a backward; one at a time
    mutable LinearGateParams<W> dunit;
  };

  /// Throws std::invalid_argument if a size or the config is out of its range.
  CosineGate(Index d_model, Index num_experts, const CosineGateConfig& config)
      : config_(valid(config)),
        projection_(d_model, config.width, {.bias = config.bias}),
        cosine_(config.width, num_experts, {}) {}

  Index d_model() const { return projection_.d_model(); }
  Index num_experts() const { return cosine_.num_experts(); }
  /// This gate for tokens in another scalar.
  template <Real U>
  CosineGate<U> cast() const {
    return {d_model(), num_experts(), config_};
  }
  double multiply_adds(Index rows) const {
    return projection_.multiply_adds(rows) + cosine_.multiply_adds(rows);
  }
  /// Numbers of a token between x and logits: its projection.
  Index inner_width() const { return config_.width; }
  /// Of so many tokens; once a call, directions and sharpness are made ready.
  Flops forward_flops(Index tokens) const {
    return projection_.forward_flops(tokens) + cosine_.forward_flops(tokens) +
           tokens * detail::flops_of_one(0, unit_flops() + num_experts()) +
           detail::flops_of_one(0, num_experts() * unit_flops() + 1);
  }
  /// Where every expert has a gradient, and the sharpness is below its bound.
  Flops backward_flops(Index tokens) const {
    return projection_.backward_flops(tokens) + cosine_.backward_flops(tokens) +
           tokens * detail::flops_of_one(0, 5 * config_.width + 4 * num_experts()) +
           detail::flops_of_one(0, tokens > 0 ? num_experts() * 6 * config_.width + 1 : 1);
  }

  /// Projection and directions from N(0, 1 / columns), the temperature as the config says.
  Params initial_params(std::uint64_t seed) const {
    return {projection_.initial_params(detail::seed_of(seed, 0)),
            cosine_.initial_params(detail::seed_of(seed, 1)).weight,
            Matrix<W>::Constant(1, 1, W(-std::log(config_.temperature)))};
  }
  /// What each tensor has to be.
  CosineGateTensors<Shape> shapes() const {
    return {projection_.shapes(), {num_experts(), config_.width}, {1, 1}};
  }

  /// Writes logits.
  void forward(const Params& params, ConstMatrixRef<T> x, const CallOptions& call,
               Table& table) const {
    using std::exp;
    hand_on_call(table, table.projection);
    projection_.forward(params.projection, x, call, table.projection);
    table.length.resize(x.rows(), 1);
    table.unit.weight = params.direction;
    table.unit_length.resize(num_experts(), 1);
    normalise(table.projection.logits, table.length, table.num_threads);
    normalise(table.unit.weight, table.unit_length, 1);
    cosine_.forward(table.unit, table.projection.logits, call, table);
    const W log_sharpness = params.log_sharpness(0, 0);
    table.sharpness = exp(log_sharpness > most() ? most() : log_sharpness);
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      for (Index e = 0; e < num_experts(); ++e) {
        table.logits(token, e) *= table.sharpness;
      }
    });
  }

  /// As that of LinearGate; on return gradient.logits is that of the cosines.
  void backward_input(const Params& params, ConstMatrixRef<T> x, const Table& table,
                      RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
    GrowingMatrix<W>& du = table.dprojection.logits;
    du.resize(x.rows(), config_.width);
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      for (Index e = 0; e < num_experts(); ++e) {
        gradient.logits(token, e) *= table.may_have(token, e) ? table.sharpness : W(1);
      }
    });
    cosine_.backward_input(table.unit, table.projection.logits, table, gradient, du);
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      if (!table.is_padding(token)) {
        take_off_radial(&table.projection.logits.coeffRef(token, 0), table.length(token, 0),
                        &du.coeffRef(token, 0));
      }
    });
    projection_.backward_input(params.projection, x, table.projection, table.dprojection, dx);
  }

  /// grads +=, after backward_input.
  void backward_params(const Params& params, ConstMatrixRef<T> x, const Table& table,
                       const RoutingGradient<W>& gradient, Params& grads) const {
    projection_.backward_params(params.projection, x, table.projection, table.dprojection,
                                grads.projection);
    Matrix<W>& dunit = table.dunit.weight;
    dunit.setZero(num_experts(), config_.width);
    cosine_.backward_params(table.unit, table.projection.logits, table, gradient, table.dunit);
    for (Index e = 0; e < num_experts(); ++e) {
      W* const of_expert = &dunit.coeffRef(e, 0);
      if (std::all_of(of_expert, of_expert + config_.width,
                      [](const W& d) { return d >= W(0) && d <= W(0); })) {
        continue;  // a masked expert's is 0 also where its direction is NaN
      }
      take_off_radial(&table.unit.weight.coeffRef(e, 0), table.unit_length(e, 0), of_expert);
      grads.direction.row(e) += dunit.row(e);
    }
    if (!(params.log_sharpness(0, 0) > most())) {
      grads.log_sharpness(0, 0) += sharpness_gradient(table, gradient);
    }
  }

 private:
  static constexpr double least_length = 1e-12;
  Index unit_flops() const { return 3 * config_.width + 1; }  // of normalise() for one row
  static W most() { return W(std::log(100.0)); }              // of log_sharpness

  static const CosineGateConfig& valid(const CosineGateConfig& config) {
    config.validate();
    return config;
  }

  /// Rows of length 1, and the length that they had, or 1e-12 of shorter ones.
  static void normalise(auto& rows, GrowingMatrix<W>& length, int num_threads) {
    using std::sqrt;
    detail::for_rows(rows.rows(), num_threads, [&](Index row) {
      W squares(0);
      for (Index col = 0; col < rows.cols(); ++col) {
        squares += rows(row, col) * rows(row, col);
      }
      const W root = sqrt(kernels::finite_or_nan(squares));  // cosines with infinity would be 0
      length(row, 0) = root < W(least_length) ? W(least_length) : root;
      for (Index col = 0; col < rows.cols(); ++col) {
        rows(row, col) /= length(row, 0);
      }
    });
  }

  /// Makes the gradient (P) of a row of length 1 that of the row as it was.
  void take_off_radial(const W* unit, const W& length, W* gradient) const {
    W radial(0);
    for (Index col = 0; length > W(least_length) && col < config_.width; ++col) {
      radial += unit[col] * gradient[col];
    }
    for (Index col = 0; col < config_.width; ++col) {
      gradient[col] = (gradient[col] - unit[col] * radial) / length;
    }
  }

  /// d logit / d log_sharpness is the logit, and gradient.logits has been multiplied by sharpness.
  W sharpness_gradient(const Table& table, const RoutingGradient<W>& gradient) const {
    W sum(0);
    for (Index token = 0; token < table.logits.rows(); ++token) {
      for (Index e = 0; e < num_experts(); ++e) {
        sum += table.may_have(token, e)
                   ? gradient.logits(token, e) / table.sharpness * table.logits(token, e)
                   : W(0);
      }
    }
    return sum;
  }

  CosineGateConfig config_;
  LinearGate<T> projection_;
  LinearGate<W> cosine_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
