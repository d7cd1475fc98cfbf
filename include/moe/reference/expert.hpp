// SPDX-License-Identifier: Apache-2.0
// One row through a feed-forward, one number after the other, in double: what the experts and their
// kernels are held against.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "../experts/expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

using Row = std::vector<double>;

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

inline double activate(const ExpertConfig& config, double z) {
  const double pi = 3.14159265358979323846;
  switch (config.activation) {
    case Activation::relu:
      return z < 0 ? 0.0 : z;
    case Activation::relu_squared:
      return z < 0 ? 0.0 : z * z;
    case Activation::gelu_erf:
      return 0.5 * z * (1.0 + std::erf(z / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * z * (1.0 + std::tanh(std::sqrt(2.0 / pi) * (z + 0.044715 * z * z * z)));
    case Activation::gelu_quick:
      return z * sigmoid(config.alpha * z);
    case Activation::silu:
      return z * sigmoid(z);
    case Activation::situ:
      return config.gate_bound * std::tanh(z / config.gate_bound) * sigmoid(z);
  }
  return std::nan("");
}

/// One hidden number from its gate and up.
inline double gated_pair(const ExpertConfig& config, double gate, double up) {
  if (config.activation == Activation::situ) {
    return activate(config, gate) * config.up_bound * std::tanh(up / config.up_bound);
  }
  const double limit = config.limit.value_or(std::numeric_limits<double>::infinity());
  const bool before = config.clamp == Clamp::before;
  if (before && gate > limit) {
    gate = limit;
  }
  double value = activate(config, gate);
  if (!before && value > limit) {
    value = limit;
  }
  if (up > limit) {
    up = limit;
  }
  if (up < -limit) {
    up = -limit;
  }
  return value * (up + config.up_offset);
}

/// One row through a feed-forward.
template <Real T>
Row expert(const ExpertParams<T>& p, const ExpertConfig& config, const Row& x) {
  Row hidden = linear(p.up, p.up_bias, x);
  if (config.gated) {
    const Row gate = linear(p.gate, p.gate_bias, x);
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      hidden[i] = gated_pair(config, gate[i], hidden[i]);
    }
  } else {
    for (double& h : hidden) {
      h = activate(config, h);
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

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
