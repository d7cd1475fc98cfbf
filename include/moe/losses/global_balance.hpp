// SPDX-License-Identifier: Apache-2.0
// Balance over more tokens than a call has: a global batch of micro-batches, also of other ranks
// (Qiu et al. 2025, Demons in the Detail; Qwen3). Micro-batches of few sequences need not be even
// in themselves, so that experts may specialise.
#pragma once

#include <span>

#include "balance.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// E * sum_e f_e P_e with the fractions f of a global batch, from its choices (E) of each expert,
/// as ExpertLoad counts them, and the mean probabilities P of the table: 1 when balanced. The mean
/// of it over micro-batches of as many tokens each is the load-balancing loss of the global batch,
/// value and gradient, if the choices of all of it are known to each; with those so far, as where
/// gradients are accumulated in one pass, it comes near that. Over no choices 0. Throws
/// std::invalid_argument unless there is a number for each expert, and none is negative.
template <Real T>
void global_balancing_loss(const RoutingTable<T>& table, std::span<const Index> choices,
                           TokenMask mask, RoutingLoss<T>& loss, int num_threads = 0) {
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = detail::check_experts(table);
  detail::throw_unless(std::ssize(choices) == num_experts, "global_balancing_loss: there are ",
                       choices.size(), " choices, expected one number for each of ", num_experts,
                       " experts");
  double total = 0.0;  // exact, as far as integers are
  for (const Index count : choices) {
    detail::throw_unless(count >= 0, "global_balancing_loss: an expert has ", count,
                         " choices, expected at least 0");
    total += static_cast<double>(count);
  }
  const bool nothing = counted.count() == 0 || total <= 0.0;
  const double tokens = static_cast<double>(counted.count());
  detail::LossMemory<T>& memory = loss.memory;
  memory.slope.clear();
  for (const Index count : choices) {
    memory.slope.push_back(T(nothing ? 0.0
                                     : static_cast<double>(num_experts) *
                                           static_cast<double>(count) / (total * tokens)));
  }
  const T* const slope = nothing ? nullptr : memory.slope.data();
  detail::sum_probabilities(
      table, counted, [&](Index) { return slope; }, loss,
      detail::loss_threads(table, num_experts, 2.0, num_threads));
}
template <Real T>
RoutingLoss<T> global_balancing_loss(const RoutingTable<T>& table, std::span<const Index> choices,
                                     TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  global_balancing_loss(table, choices, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
