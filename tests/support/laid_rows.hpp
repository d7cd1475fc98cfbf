// SPDX-License-Identifier: Apache-2.0
// A hand-made routing table and what its choices come to: those that are kept, and their rows.
#pragma once

#include <vector>

#include "moe/dispatch/plan.hpp"

namespace moe::testing {

using Ints = std::vector<Index>;
inline constexpr Index no_row = -1;

inline Ints ints(std::span<const Index> values) { return {values.begin(), values.end()}; }

/// A table (N, K) from rows of choices; weights are 1, probs (N, E) zeros.
inline RoutingTable<float> table_of(Index top_k, const std::vector<ExpertId>& expert,
                                    Index num_experts) {
  RoutingTable<float> table;
  table.expert = Eigen::Map<const Matrix<ExpertId>>(
      expert.data(), static_cast<Index>(expert.size()) / top_k, top_k);
  table.weight.setOnes(table.expert.rows(), top_k);
  table.probs.setZero(table.expert.rows(), num_experts);
  return table;
}

struct LaidRows {
  KeptChoices kept;
  DispatchPlan plan;
  Index top_k = 0;

  LaidRows() = default;
  template <Real T>
  LaidRows(const RoutingTable<T>& table, Index num_experts, const Capacity& capacity = {},
           const Tokens& tokens = {}) {
    lay(table, num_experts, capacity, tokens);
  }

  template <Real T>
  void lay(const RoutingTable<T>& table, Index num_experts, const Capacity& capacity = {},
           const Tokens& tokens = {}) {
    kept.select(table, num_experts, capacity, tokens);
    plan.build(table, kept, num_experts);
    top_k = table.top_k();
  }

  /// The row of each choice, token by token, or no_row.
  Ints slots() const {
    Ints all(static_cast<std::size_t>(plan.num_tokens() * top_k), no_row);
    for (Index t = 0; t < plan.num_tokens(); ++t) {
      for (const Index slot : plan.slots_of(t)) {
        all[static_cast<std::size_t>(t * top_k + plan.choice()[static_cast<std::size_t>(slot)])] =
            slot;
      }
    }
    return all;
  }
};

}  // namespace moe::testing
