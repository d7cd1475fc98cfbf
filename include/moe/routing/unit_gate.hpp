// SPDX-License-Identifier: Apache-2.0
// UnitGate: logits are a learned scale times the cosines of the token and a direction of each
// expert. As the router of Soft MoE it keeps the softmaxes from collapsing in wide models
// (Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts).
//
// Looks at one token, and is causal.
#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels/finite.hpp"
#include "gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct UnitGateConfig {
  /// Is added to each length before it divides: of our choosing.
  double epsilon = 1e-6;
  double scale = 1.0;  ///< at the beginning

  void validate() const {
    detail::throw_unless(std::isfinite(epsilon) && epsilon > 0.0, "UnitGate: epsilon = ", epsilon,
                         ", expected positive and finite");
    detail::throw_unless(std::isfinite(scale), "UnitGate: scale = ", scale, ", expected finite");
  }
};

/// A Tensor for each tensor of the gate: a matrix, or its Shape.
template <class Tensor>
struct UnitGateTensors {
  LinearGateTensors<Tensor> direction = {};  ///< weight (E, D), of any length; the rest is empty
  Tensor scale = {};                         ///< (1, 1)

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("weight"), p.direction.weight...);
    visit(std::string_view("scale"), p.scale...);
  }
};

/// logits = scale * (x / (|x| + epsilon)) . (w / (|w| + epsilon)), in Wide<T>. The product is that
/// of x and w as they are: no normalised copy is made of either.
template <Real T>
class UnitGate {
 public:
  using W = Wide<T>;
  using Params = UnitGateTensors<Matrix<W>>;

  struct Table : LinearGate<T>::Table {
    GrowingMatrix<W> cosine;                ///< (N, E)
    GrowingMatrix<W> token_length;          ///< (N, 1) |x|, 0 for padding
    GrowingMatrix<W> direction_length;      ///< (1, E) |w|
    mutable GrowingMatrix<W> of_token;      ///< (N, 1) memory of a backward; one at a time:
    mutable GrowingMatrix<W> of_direction;  ///< (1, E) sums of gradients times cosines
  };

  /// Throws std::invalid_argument if a size or the config is out of its range.
  UnitGate(Index d_model, Index num_experts, const UnitGateConfig& config)
      : linear_(d_model, num_experts, {}), config_(config) {
    config.validate();
  }

  Index d_model() const { return linear_.d_model(); }
  Index num_experts() const { return linear_.num_experts(); }
  const UnitGateConfig& config() const { return config_; }
  /// This gate for tokens in another scalar.
  template <Real U>
  UnitGate<U> cast() const {
    return {d_model(), num_experts(), config_};
  }
  double multiply_adds(Index rows) const { return linear_.multiply_adds(rows); }
  /// Of so many tokens, and once a call the lengths of the directions.
  Flops forward_flops(Index tokens) const {
    const Index length = 2 * d_model() + 1;
    return linear_.forward_flops(tokens) +
           tokens * detail::flops_of_one(0, length + 2 + 5 * num_experts()) +
           detail::flops_of_one(0, num_experts() * length);
  }
  /// Where every expert has a gradient.
  Flops backward_flops(Index tokens) const {
    const Index take_off = 2 * d_model() + 5;
    return linear_.backward_flops(tokens) +
           tokens * detail::flops_of_one(0, take_off + 2 + 9 * num_experts()) +
           detail::flops_of_one(0, num_experts() * (1 + (tokens > 0 ? take_off : 0)) + 1);
  }

  /// Directions from N(0, 1 / d_model), the scale as the config says.
  Params initial_params(std::uint64_t seed) const {
    return {linear_.initial_params(seed), Matrix<W>::Constant(1, 1, W(config_.scale))};
  }
  /// What each tensor has to be.
  UnitGateTensors<Shape> shapes() const { return {linear_.shapes(), {1, 1}}; }

  /// Writes logits.
  void forward(const Params& params, ConstMatrixRef<T> x, const CallOptions& call,
               Table& table) const {
    linear_.forward(params.direction, x, call, table);
    table.cosine.resize(x.rows(), num_experts());
    table.token_length.resize(x.rows(), 1);
    table.direction_length.resize(1, num_experts());
    const Matrix<W>& weight = params.direction.weight;
    for (Index e = 0; e < num_experts(); ++e) {
      table.direction_length(0, e) = length_of(&weight.coeffRef(e, 0));
    }
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      table.token_length(token, 0) =
          table.is_padding(token) ? W(0) : length_of(&x.coeffRef(token, 0));
      const W inverse = inverse_of(table.token_length(token, 0));
      for (Index e = 0; e < num_experts(); ++e) {
        table.cosine(token, e) =
            table.logits(token, e) * inverse * inverse_of(table.direction_length(0, e));
        table.logits(token, e) = params.scale(0, 0) * table.cosine(token, e);
      }
    });
  }

  /// As that of LinearGate; on return gradient.logits is that of the products x . w.
  void backward_input(const Params& params, ConstMatrixRef<T> x, const Table& table,
                      RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
    sum_columns(table, gradient);
    table.of_token.resize(x.rows(), 1);
    const W scale = params.scale(0, 0);
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      const W inverse = inverse_of(table.token_length(token, 0));
      W sum(0);
      for (Index e = 0; e < num_experts(); ++e) {
        if (table.may_have(token, e)) {
          W& dlogit = gradient.logits(token, e);
          sum += dlogit * table.cosine(token, e);
          dlogit *= scale * inverse * inverse_of(table.direction_length(0, e));
        }
      }
      table.of_token(token, 0) = sum;
    });
    linear_.backward_input(params.direction, x, table, gradient, dx);
    detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
      if (!table.is_padding(token)) {
        take_off(scale * table.of_token(token, 0), table.token_length(token, 0),
                 &x.coeffRef(token, 0), &dx.coeffRef(token, 0));
      }
    });
  }

  /// grads +=, after backward_input.
  void backward_params(const Params& params, ConstMatrixRef<T> x, const Table& table,
                       const RoutingGradient<W>& gradient, Params& grads) const {
    linear_.backward_params(params.direction, x, table, gradient, grads.direction);
    W sum(0);
    for (Index e = 0; e < num_experts(); ++e) {
      const W of_direction = table.of_direction(0, e);
      sum += of_direction;
      if (!(of_direction >= W(0) && of_direction <= W(0))) {  // that of a masked expert is 0
        take_off(params.scale(0, 0) * of_direction, table.direction_length(0, e),
                 &params.direction.weight.coeffRef(e, 0), &grads.direction.weight.coeffRef(e, 0));
      }
    }
    grads.scale(0, 0) += sum;
  }

 private:
  /// NaN if the squares are more than W holds: cosines with infinity would be 0.
  template <class Scalar>
  W length_of(const Scalar* row) const {
    using std::sqrt;
    return sqrt(kernels::finite_or_nan(kernels::dot(row, row, d_model())));
  }
  W inverse_of(const W& length) const { return W(1) / (length + W(config_.epsilon)); }

  /// of_direction = the sums over the tokens, in their order.
  void sum_columns(const Table& table, const RoutingGradient<W>& gradient) const {
    table.of_direction.resize(1, num_experts());
    detail::for_blocks(num_experts(), 64, table.num_threads, [&](Index begin, Index size) {
      const Index end = begin + size;
      W* sum = &table.of_direction.coeffRef(0, 0);
      std::fill(sum + begin, sum + end, W(0));
      for (Index token = 0; token < table.cosine.rows(); ++token) {
        for (Index e = begin; e < end; ++e) {
          sum[e] +=
              table.may_have(token, e) ? gradient.logits(token, e) * table.cosine(token, e) : W(0);
        }
      }
    });
  }

  /// What a longer vector does to the cosines: gradient -= sum / (length (length + epsilon)) *
  /// vector, where `sum` is that of the gradients of its cosines times them.
  template <class From, class To>
  void take_off(const W& sum, const W& length, const From* vector, To* gradient) const {
    if (length <= W(0)) {
      return;  // a vector of zeros has no direction to take off
    }
    const W factor = sum * inverse_of(length) / length;
    for (Index col = 0; col < d_model(); ++col) {
      gradient[col] =
          static_cast<To>(static_cast<W>(gradient[col]) - factor * static_cast<W>(vector[col]));
    }
  }

  LinearGate<T> linear_;
  UnitGateConfig config_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
