// SPDX-License-Identifier: Apache-2.0
// The whole layer in plain loops, in double: the specification of every fast path and the oracle
// of the tests. One token at a time, one number at a time; slow, and meant to be read.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../layers/moe_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

using Row = std::vector<double>;

/// What one token's routing comes to.
struct Choice {
  Index expert;
  double weight;
  bool kept = true;
};
using Routing = std::vector<std::vector<Choice>>;  // per token, best first

template <class M>
Row row_of(const M& m, Index row) {
  Row values;
  for (Index col = 0; col < m.cols(); ++col) {
    values.push_back(static_cast<double>(m(row, col)));
  }
  return values;
}

/// w x, plus the bias if there is one.
template <class M>
Row linear(const M& w, const M& bias, const Row& x) {
  Row y;
  for (Index out = 0; out < w.rows(); ++out) {
    double sum = 0.0;
    for (Index in = 0; in < w.cols(); ++in) {
      sum += static_cast<double>(w(out, in)) * x[static_cast<std::size_t>(in)];
    }
    y.push_back(bias.size() > 0 ? sum + static_cast<double>(bias(0, out)) : sum);
  }
  return y;
}

inline double sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

inline double activate(Activation activation, double z) {
  const double pi = 3.14159265358979323846;
  switch (activation) {
    case Activation::relu:
      return z < 0 ? 0.0 : z;
    case Activation::relu_squared:
      return z < 0 ? 0.0 : z * z;
    case Activation::gelu_erf:
      return 0.5 * z * (1.0 + std::erf(z / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * z * (1.0 + std::tanh(std::sqrt(2.0 / pi) * (z + 0.044715 * z * z * z)));
    case Activation::silu:
      return z * sigmoid(z);
  }
  return std::nan("");
}

/// One row through a feed-forward.
template <Real T>
Row expert(const ExpertParams<T>& p, const ExpertConfig& config, const Row& x) {
  Row hidden = linear(p.up, p.up_bias, x);
  if (config.gated) {
    const Row gate = linear(p.gate, p.gate_bias, x);
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      hidden[i] *= activate(config.activation, gate[i]);
    }
  } else {
    for (double& h : hidden) {
      h = activate(config.activation, h);
    }
  }
  Row y = linear(p.down, p.down_bias, hidden);
  if (config.output_gate) {
    const double factor = sigmoid(linear(p.output_gate, Matrix<T>(), x)[0]);
    for (double& value : y) {
      value *= factor;
    }
  }
  return y;
}

inline Row softmax(const Row& z) {
  Row p = z;
  double max = -std::numeric_limits<double>::infinity(), sum = 0.0;
  for (const double value : z) {
    max = std::max(max, value);
  }
  for (double& value : p) {
    sum += value = std::exp(value - max);
  }
  for (double& value : p) {
    value /= sum;
  }
  return p;
}

/// The order of selection: larger first, every number before NaN.
inline bool is_before(double a, double b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

/// One token's choices, without noise. allowed[e] == 0 masks an expert; empty allows all.
/// Writes the scores of all experts to probs.
template <Real W>
std::vector<Choice> route(const RouterParams<W>& p, const RouterConfig& config, Index top_k,
                          const std::vector<std::uint8_t>& allowed, const Row& x, Row& probs) {
  Row logits = linear(p.weight, p.bias, x);
  std::vector<Index> order;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (allowed.empty() || allowed[e] != 0) {
      order.push_back(static_cast<Index>(e));
    } else {
      logits[e] = -std::numeric_limits<double>::infinity();
    }
  }
  if (order.empty()) {
    probs.assign(logits.size(), 0.0);
    return {};
  }
  probs = logits;
  if (config.score == Score::softmax) {
    probs = softmax(logits);
  } else {
    std::transform(logits.begin(), logits.end(), probs.begin(), sigmoid);
  }

  const auto at = [](const Row& row, Index e) { return row[static_cast<std::size_t>(e)]; };
  const auto rank = [&](Index e) {
    return config.selection.bias ? at(probs, e) + static_cast<double>(p.selection_bias(0, e))
                                 : at(logits, e);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return is_before(rank(a), rank(b)); });
  order.resize(std::min(order.size(), static_cast<std::size_t>(top_k)));
  Row weight;
  for (const Index e : order) {
    weight.push_back(config.weight.source == WeightSource::score ? at(probs, e)
                     : config.weight.source == WeightSource::one ? 1.0
                                                                 : at(logits, e));
  }
  if (config.weight.source == WeightSource::softmax_of_chosen) {
    weight = softmax(weight);
  }
  const double sum =
      config.weight.renormalise ? std::accumulate(weight.begin(), weight.end(), 1e-20) : 1.0;
  std::vector<Choice> choices;
  for (std::size_t k = 0; k < order.size(); ++k) {
    choices.push_back({order[k], config.weight.scale * weight[k] / sum});
  }
  return choices;
}

/// Marks what is over capacity: for each sequence and expert, those that come last.
inline void drop(const Capacity& capacity, Index sequence_length, Index num_experts, Index top_k,
                 const std::vector<Row>& probs, Routing& routing) {
  if (!capacity.limited()) {
    return;
  }
  const Index length = sequence_length == 0 ? static_cast<Index>(routing.size()) : sequence_length;
  const Index limit = capacity_rows(capacity, length, num_experts, top_k);
  for (std::size_t begin = 0; begin < routing.size(); begin += static_cast<std::size_t>(length)) {
    for (Index e = 0; e < num_experts; ++e) {
      std::vector<std::pair<double, Choice*>> queue;
      for (std::size_t t = begin; t < begin + static_cast<std::size_t>(length); ++t) {
        for (Choice& choice : routing[t]) {
          if (choice.expert == e) {
            queue.emplace_back(probs[t][static_cast<std::size_t>(e)], &choice);
          }
        }
      }
      if (capacity.policy == DropPolicy::probability) {
        std::stable_sort(queue.begin(), queue.end(),
                         [](const auto& a, const auto& b) { return is_before(a.first, b.first); });
      }
      for (std::size_t i = static_cast<std::size_t>(limit); i < queue.size(); ++i) {
        queue[i].second->kept = false;
      }
    }
  }
}

/// y (N, D_out) of a layer with our own router and experts, without noise.
template <Real T>
Matrix<double> forward(const MoELayer<T>& layer, const Matrix<T>& x, const CallOptions& call = {}) {
  Routing routing;
  std::vector<Row> probs(static_cast<std::size_t>(x.rows()));
  for (Index t = 0; t < x.rows(); ++t) {
    std::vector<std::uint8_t> allowed;
    for (Index e = 0; call.expert_mask != nullptr && e < layer.num_experts(); ++e) {
      allowed.push_back((*call.expert_mask)(call.expert_mask->rows() == 1 ? 0 : t, e));
    }
    if (call.tokens.is_padding(t)) {
      allowed.assign(static_cast<std::size_t>(layer.num_experts()), 0);
    }
    routing.push_back(route(layer.router().params(), layer.router().config(),
                            layer.router().top_k(), allowed, row_of(x, t),
                            probs[static_cast<std::size_t>(t)]));
  }
  drop(layer.options().capacity, call.tokens.sequence_length, layer.num_experts(),
       layer.router().top_k(), probs, routing);

  Matrix<double> y = Matrix<double>::Zero(x.rows(), layer.d_out());
  for (Index t = 0; t < x.rows(); ++t) {
    const auto add = [&](double weight, const Row& row) {
      for (Index col = 0; col < y.cols(); ++col) {
        y(t, col) += weight * row[static_cast<std::size_t>(col)];
      }
    };
    for (const Choice& choice : routing[static_cast<std::size_t>(t)]) {
      if (!choice.kept) {
        continue;
      }
      const Expert<T>& e = layer.experts()[static_cast<std::size_t>(choice.expert)];
      Row input = row_of(x, t);
      const bool on_input = layer.options().weight_on == WeightOn::input;
      for (double& value : input) {
        value *= on_input ? choice.weight : 1.0;
      }
      add(on_input ? 1.0 : choice.weight, expert(e.params(), e.config(), input));
    }
    if (layer.shared() && !call.tokens.is_padding(t)) {
      const Expert<T>& e = layer.shared()->expert();
      add(1.0, expert(e.params(), e.config(), row_of(x, t)));
    }
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
