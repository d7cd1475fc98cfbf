// SPDX-License-Identifier: Apache-2.0
// Balance within each sequence (DeepSeek-V3 2024, complementary sequence-wise auxiliary loss).
#pragma once

#include "../call_options.hpp"
#include "balance.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// memory.count and memory.slope (B, E), memory.sequence (N), and the number of sequences that have
/// a token that counts.
template <Real T>
Index count_sequences(const RoutingTable<T>& table, const CountedTokens<T>& counted,
                      const Tokens& tokens, LossMemory<T>& memory) {
  const Index num_experts = table.probs.cols(), num_tokens = table.num_tokens();
  const Index num_sequences = tokens.num_sequences(num_tokens);
  memory.count.assign(static_cast<std::size_t>(num_sequences * num_experts), 0);
  memory.slope.assign(memory.count.size(), T(0));
  memory.sequence.assign(static_cast<std::size_t>(num_tokens), 0);
  Index seen = 0;
  for (Index b = 0; b < num_sequences; ++b) {
    const Sequence sequence = tokens.sequence(b, num_tokens);
    Index* const count = memory.count.data() + b * num_experts;
    Index size = 0;
    for (Index t = sequence.begin; t < sequence.end; ++t) {
      memory.sequence[static_cast<std::size_t>(t)] = b;
      size += counted(t) ? 1 : 0;
      for (Index k = 0; counted(t) && k < table.top_k(); ++k) {
        if (const ExpertId e = table.expert(t, k); e != none) {
          ++count[e];
        }
      }
    }
    const auto of_sequence = static_cast<double>(size),
               choices = static_cast<double>(table.top_k());
    for (Index e = 0; size > 0 && table.top_k() > 0 && e < num_experts; ++e) {
      memory.slope[static_cast<std::size_t>(b * num_experts + e)] =
          T(static_cast<double>(num_experts) * static_cast<double>(count[e]) /
            (choices * of_sequence * of_sequence));
    }
    seen += size > 0 ? 1 : 0;
  }
  return seen;
}

}  // namespace detail

/// The mean, over the sequences that have a token that counts, of the load-balancing loss of each:
/// 1 when balanced. `tokens` says which those are, as in the call. Throws std::invalid_argument if
/// it does not fit the table.
template <Real T>
void sequence_balancing_loss(const RoutingTable<T>& table, const Tokens& tokens, TokenMask mask,
                             RoutingLoss<T>& loss, int num_threads = 0) {
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = detail::check_experts(table);
  tokens.validate(table.num_tokens());
  detail::LossMemory<T>& memory = loss.memory;
  const Index seen = detail::count_sequences(table, counted, tokens, memory);
  const T share = T(1.0 / static_cast<double>((std::max)(seen, Index{1})));
  for (T& slope : memory.slope) {
    slope *= share;
  }
  const bool nothing = table.top_k() == 0;
  const auto slope_of = [&](Index token) -> const T* {
    return nothing ? nullptr
                   : memory.slope.data() +
                         memory.sequence[static_cast<std::size_t>(token)] * num_experts;
  };
  detail::sum_probabilities(table, counted, slope_of, loss,
                            detail::loss_threads(table, num_experts, 2.0, num_threads));
}
template <Real T>
RoutingLoss<T> sequence_balancing_loss(const RoutingTable<T>& table, const Tokens& tokens,
                                       TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  sequence_balancing_loss(table, tokens, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
