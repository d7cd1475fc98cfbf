// SPDX-License-Identifier: Apache-2.0
// The loss that evens out how much weight each expert is given.
#pragma once

#include <cstddef>
#include <vector>

#include "../detail/check.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"
#include "variation.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The squared coefficient of variation of the experts' summed weights (Shazeer 2017).
/// It looks at the choices alone, on one thread.
template <Real T>
void importance_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss) {
  const detail::CountedTokens<T> counted(table, mask);
  detail::check_shape(table.weight, table.num_tokens(), table.top_k(), "loss: weight");
  using Sum = detail::TokenSum<T>;
  std::vector<Sum>& importance = loss.memory.sum;
  std::vector<T>& slope = loss.memory.slope;
  importance.assign(static_cast<std::size_t>(detail::check_experts(table)), Sum(0));
  const auto for_each_choice = [&](const auto& body) {
    for (Index t = 0; t < table.num_tokens(); ++t) {
      for (Index k = 0; counted(t) && k < table.top_k(); ++k) {
        if (table.expert(t, k) != none) {
          body(t, k, static_cast<std::size_t>(table.expert(t, k)));
        }
      }
    }
  };
  for_each_choice([&](Index t, Index k, std::size_t e) {
    importance[e] += static_cast<Sum>(table.weight(t, k));
  });
  loss.clear();
  loss.gradient.weight.setZero(table.num_tokens(), table.top_k());
  loss.value = static_cast<T>(detail::squared_variation(importance, slope));
  for_each_choice([&](Index t, Index k, std::size_t e) { loss.gradient.weight(t, k) = slope[e]; });
}
template <Real T>
RoutingLoss<T> importance_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  RoutingLoss<T> loss;
  importance_loss(table, mask, loss);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
