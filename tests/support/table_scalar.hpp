// SPDX-License-Identifier: Apache-2.0
// A scalar of a routing table, for gradients that start from all of it.
#pragma once

#include "moe/routing_table.hpp"

namespace moe::testing {

/// The scalar whose derivatives are `slope`. A logit that is not finite, as a masked one, adds
/// nothing.
inline double scalar_of(const RoutingTable<double>& table, const RoutingGradient<double>& slope) {
  const auto finite = table.logits.array().isFinite();
  double sum = (table.weight.array() * slope.weight.array()).sum() +
               (table.probs.array() * slope.probs.array()).sum() +
               finite.select(table.logits.array() * slope.logits.array(), 0.0).sum();
  if (slope.noise_scale.size() > 0) {
    sum += (table.noise_scale.array() * slope.noise_scale.array()).sum();
  }
  return sum;
}

}  // namespace moe::testing
