// SPDX-License-Identifier: Apache-2.0
// The loss that keeps the experts of a token few where the router does not limit them, with the
// coefficient that steers their number (Wang, Zhu and Chen 2024, ReMoE).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "../detail/check.hpp"
#include "../routing_table.hpp"
#include "balance.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The part of all pairs of a token and an expert in which the expert is not chosen (ReMoE).
/// Over no tokens 1.
template <Real T>
double sparsity(const RoutingTable<T>& table, TokenMask mask = {}) {
  const detail::CountedTokens<T> counted(table, mask);
  Index chosen = 0;
  for (Index token = 0; token < table.num_tokens(); ++token) {
    for (Index k = 0; counted(token) && k < table.top_k(); ++k) {
      chosen += table.expert(token, k) == none ? 0 : 1;
    }
  }
  const Index pairs = counted.count() * table.probs.cols();
  return pairs == 0 ? 1.0 : 1.0 - static_cast<double>(chosen) / static_cast<double>(pairs);
}

/// The mean over tokens of sum_e f_e p_te with f_e = E / (k N) * the tokens that chose e: an L1
/// norm of the scores that weighs popular experts more (ReMoE). k is the number of
/// experts per token that is aimed at. Throws std::invalid_argument if it is not in (0, E].
template <Real T>
void balanced_l1_loss(const RoutingTable<T>& table, double experts_per_token, TokenMask mask,
                      RoutingLoss<T>& loss, int num_threads = 0) {
  const auto experts = static_cast<double>(table.probs.cols());
  detail::throw_unless(experts_per_token > 0.0 && experts_per_token <= experts,
                       "balanced_l1_loss: experts_per_token = ", experts_per_token,
                       ", expected in (0, num_experts = ", table.probs.cols(), "]");
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = detail::check_experts(table), num_tokens = table.num_tokens();
  const int threads = detail::loss_threads(table, num_experts, 2.0, num_threads);
  detail::LossMemory<T>& memory = loss.memory;
  detail::count_choices(table, counted, table.top_k(), memory.count);
  const auto tokens = static_cast<double>((std::max)(counted.count(), Index{1}));
  memory.slope.clear();
  for (const Index takers : memory.count) {
    memory.slope.push_back(
        T(experts * static_cast<double>(takers) / (experts_per_token * tokens * tokens)));
  }
  loss.clear();
  loss.gradient.probs.setZero(num_tokens, num_experts);
  memory.term.assign(static_cast<std::size_t>(num_tokens), T(0));
  // Of the scores as they are: divided by their sum they would have no length to shrink.
  detail::for_rows(num_tokens, threads, [&](Index t) {
    for (Index e = 0; counted(t) && e < num_experts; ++e) {
      loss.gradient.probs(t, e) = memory.slope[static_cast<std::size_t>(e)];
      memory.term[static_cast<std::size_t>(t)] += loss.gradient.probs(t, e) * table.probs(t, e);
    }
  });
  loss.value = detail::sum_of_terms(memory.term, counted);
}
template <Real T>
RoutingLoss<T> balanced_l1_loss(const RoutingTable<T>& table, double experts_per_token,
                                TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  balanced_l1_loss(table, experts_per_token, mask, loss, num_threads);
  return loss;
}

/// The coefficient of an L1 loss: after each step it grows by a factor if too many experts were
/// chosen, and shrinks by it if too few (ReMoE). One serves all layers, with the mean of
/// their sparsities.
class SparsityControl {
 public:
  /// Throws std::invalid_argument unless 0 < experts_per_token <= num_experts, coefficient > 0 and
  /// factor > 1.
  SparsityControl(Index num_experts, double experts_per_token, double coefficient = 1e-8,
                  double factor = 1.2)
      : target_(1.0 - experts_per_token / static_cast<double>(num_experts)),
        coefficient_(coefficient),
        factor_(factor) {
    detail::throw_unless(
        experts_per_token > 0.0 && experts_per_token <= static_cast<double>(num_experts),
        "SparsityControl: experts_per_token = ", experts_per_token,
        ", expected in (0, num_experts = ", num_experts, "]");
    detail::throw_unless(std::isfinite(coefficient) && coefficient > 0.0,
                         "SparsityControl: coefficient = ", coefficient,
                         ", expected positive and finite");
    detail::throw_unless(std::isfinite(factor) && factor > 1.0,
                         "SparsityControl: factor = ", factor, ", expected above 1 and finite");
  }

  double coefficient() const { return coefficient_; }
  double target() const { return target_; }

  /// Takes in the sparsity of a step; one on target, or NaN, changes nothing.
  void update(double sparsity) {
    coefficient_ *= sparsity < target_ ? factor_ : sparsity > target_ ? 1.0 / factor_ : 1.0;
  }

 private:
  double target_, coefficient_, factor_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
