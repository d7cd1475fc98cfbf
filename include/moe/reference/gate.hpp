// SPDX-License-Identifier: Apache-2.0
// The gates that are more than a projection, one token at a time in plain loops and in double,
// without noise.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../routing/cosine_gate.hpp"
#include "../routing/norm_gate.hpp"
#include "../routing/two_layer_gate.hpp"
#include "../routing/unit_gate.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// Logits with a cap, if the config has one.
inline Row capped(const LogitsConfig& config, Row logits) {
  if (const double cap = config.softcap; cap > 0.0) {
    for (double& z : logits) {
      z = std::isinf(z) ? std::nan("") : cap * std::tanh(z / cap);
    }
  }
  return logits;
}

inline double dot(const Row& a, const Row& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

/// The sum of the squares, NaN if it is infinite: what it divides would become 0.
inline double squares(const Row& a) {
  const double sum = dot(a, a);
  return std::isinf(sum) ? std::nan("") : sum;
}

template <Real W>
Row logits(const NormGateTensors<Matrix<W>>& p, const LogitsConfig& config,
           const InputNormConfig& norm, Row x) {
  const double rms = std::sqrt(squares(x) / static_cast<double>(x.size()) + norm.epsilon);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto col = static_cast<Index>(i);
    x[i] *= norm.factor / rms * (norm.scale ? static_cast<double>(p.norm_scale(0, col)) : 1.0);
  }
  return capped(config, linear(p.weight, p.bias, x));
}

template <Real W>
Row logits(const TwoLayerGateTensors<Matrix<W>>& p, const LogitsConfig& config, const Row& x) {
  Row hidden = linear(p.hidden.weight, p.hidden.bias, x);
  for (double& h : hidden) {
    h = std::isinf(h) ? std::nan("") : std::tanh(h);
  }
  return capped(config, linear(p.output.weight, p.output.bias, hidden));
}

template <Real W>
Row logits(const CosineGateTensors<Matrix<W>>& p, const Row& x) {
  const Row projected = linear(p.projection.weight, p.projection.bias, x);
  const double sharpness = (std::min)(100.0, std::exp(static_cast<double>(p.log_sharpness(0, 0))));
  Row z;
  for (Index e = 0; e < p.direction.rows(); ++e) {
    const Row direction = row_of(p.direction, e);
    const double lengths = std::sqrt(squares(projected)) * std::sqrt(squares(direction));
    z.push_back(sharpness * dot(projected, direction) / lengths);
  }
  return z;
}

template <Real W>
Row logits(const UnitGateTensors<Matrix<W>>& p, const UnitGateConfig& config, Row x) {
  const auto to_unit = [&](Row& row) {
    const double length = std::sqrt(squares(row));
    for (double& value : row) {
      value /= length + config.epsilon;
    }
  };
  to_unit(x);
  Row z;
  for (Index e = 0; e < p.direction.weight.rows(); ++e) {
    Row direction = row_of(p.direction.weight, e);
    to_unit(direction);
    z.push_back(static_cast<double>(p.scale(0, 0)) * dot(x, direction));
  }
  return z;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
