// SPDX-License-Identifier: Apache-2.0
// Parts of a router as a user would make them: a rule for a token, a rule for the whole table, a
// gate.
#pragma once

#include <algorithm>
#include <string_view>
#include <vector>

#include "moe/routing/concepts.hpp"

namespace moe::testing {

/// A token takes each expert whose logit is positive, as many as there are; the weight is the logit
/// (ReMoE, Wang 2024, without its loss).
struct ReluRule {
  using Params = NoParams;
  Index num_experts;

  Index top_k() const { return num_experts; }
  void route(const Params&, const TokenRoute<double>& token) const {
    std::fill(token.expert, token.expert + token.top_k, none);
    std::fill(token.weight, token.weight + token.top_k, 0.0);
    Index choice = 0;
    for (Index e = 0; e < token.num_experts; ++e) {
      token.probs[e] = token.logits[e] > 0.0 ? token.logits[e] : 0.0;
      if (token.probs[e] > 0.0) {
        token.expert[choice] = static_cast<ExpertId>(e);
        token.weight[choice++] = token.probs[e];
      }
    }
  }
  void backward(const Params&, const TokenGradient<double>& token) const {
    for (Index k = 0; k < token.top_k && token.expert[k] != none; ++k) {
      const Index e = token.expert[k];
      token.dlogits[e] += token.dweight[k] + token.dprobs[e];
    }
  }
};
static_assert(TokenRule<ReluRule, double> && TrainableRule<ReluRule, double>);

/// Each expert takes the tokens with its `rows` largest logits (expert choice, Zhou 2022); the
/// weight is exp(logit). Choice k of a token is expert k.
struct ExpertChoiceRule {
  using Params = NoParams;
  Index rows;

  void route(const Params&, const CallOptions&, GatedTable<double>& table) const {
    const Index tokens = table.logits.rows(), experts = table.logits.cols();
    table.expert.setConstant(tokens, experts, none);
    table.weight.setZero(tokens, experts);
    table.probs = table.logits.array().exp();
    for (Index e = 0; e < experts; ++e) {
      std::vector<Index> queue;
      for (Index t = 0; t < tokens; ++t) {
        if (!table.is_padding(t) && (table.allowed(t) == nullptr || table.allowed(t)[e] != 0)) {
          queue.push_back(t);
        }
      }
      std::stable_sort(queue.begin(), queue.end(),
                       [&](Index a, Index b) { return table.logits(a, e) > table.logits(b, e); });
      queue.resize(std::min(queue.size(), static_cast<std::size_t>(rows)));
      for (const Index t : queue) {
        table.expert(t, e) = static_cast<ExpertId>(e);
        table.weight(t, e) = table.probs(t, e);
      }
    }
  }
  void backward(const Params&, const GatedTable<double>& table,
                RoutingGradient<double>& gradient) const {
    const auto chosen = (table.expert.array() != none).cast<double>();
    gradient.logits.array() +=
        table.probs.array() * (gradient.probs.array() + chosen * gradient.weight.array());
  }
};
static_assert(TableRule<ExpertChoiceRule, double> && TrainableRule<ExpertChoiceRule, double>);
static_assert(!TokenRule<ExpertChoiceRule, double> && !TableRule<ReluRule, double>);

/// logits = scale * W (x / |x|), W (E, D), and the table keeps x / |x|.
struct CosineGate {
  struct Params {
    Matrix<double> direction = {};

    template <class Visit, class... P>
    static void for_each(Visit&& visit, P&... p) {
      visit(std::string_view("direction"), p.direction...);
    }
  };
  struct Table : GatedTable<double> {
    Matrix<double> unit;
  };
  Index width, experts;
  double scale = 4.0;

  Index d_model() const { return width; }
  Index num_experts() const { return experts; }
  void forward(const Params& p, ConstMatrixRef<double> x, const CallOptions&, Table& table) const {
    table.unit = x.rowwise().normalized();
    for (Index t = 0; t < x.rows(); ++t) {
      if (table.is_padding(t)) {
        table.unit.row(t).setZero();
      }
    }
    table.logits = scale * table.unit * p.direction.transpose();
  }
  void backward_input(const Params& p, ConstMatrixRef<double> x, const Table& table,
                      RoutingGradient<double>& gradient, MatrixRef<double> dx) const {
    const Matrix<double> dunit = scale * gradient.logits * p.direction;
    for (Index t = 0; t < x.rows(); ++t) {
      if (table.is_padding(t)) {
        dx.row(t).setZero();
      } else {
        const double along = dunit.row(t).dot(table.unit.row(t));
        dx.row(t) = (dunit.row(t) - along * table.unit.row(t)) / x.row(t).norm();
      }
    }
  }
  void backward_params(const Params&, ConstMatrixRef<double>, const Table& table,
                       const RoutingGradient<double>& gradient, Params& grads) const {
    grads.direction += scale * gradient.logits.transpose() * table.unit;
  }
};
static_assert(GateLike<CosineGate, double> && TrainableGate<CosineGate, double>);

}  // namespace moe::testing
