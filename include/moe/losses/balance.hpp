// SPDX-License-Identifier: Apache-2.0
// Losses that push counts of choices towards balance through the mean probabilities of experts.
// In comments: f_e is the fraction of the choices that fell on expert e, P_e the mean probability
// of e. Scores that do not sum to 1, as sigmoids, become the probabilities of a token by division
// by their sum (DeepSeek-V3 2024, eq. 19).
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../routing/weights.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// count (E) = choices of each expert, of the first `choices` choices of each counted token.
/// Integers: a float counts no further than to 2^24.
template <Real T>
void count_choices(const RoutingTable<T>& table, const CountedTokens<T>& counted, Index choices,
                   std::vector<Index>& count) {
  count.assign(static_cast<std::size_t>(table.probs.cols()), 0);
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; counted(t) && k < choices; ++k) {
      if (table.expert(t, k) != none) {
        ++count[static_cast<std::size_t>(table.expert(t, k))];
      }
    }
  }
}

/// sum_e slope_e * p_te of one token, with its gradient in dprobs (E).
template <Real T>
T weighted_probability(const RoutingTable<T>& table, Index token, const std::vector<T>& slope,
                       T* dprobs) {
  const Index num_experts = table.probs.cols();
  const T* probs = &table.probs.coeffRef(token, 0);
  T share(0);
  for (Index e = 0; e < num_experts; ++e) {
    dprobs[e] = slope[static_cast<std::size_t>(e)];
    share += dprobs[e] * probs[e];
  }
  if (table.probs_sum_to_one) {
    return share;
  }
  const T sum = renormalising_sum<T>(num_experts, [&](Index e) { return probs[e]; });
  const bool nothing = sum <= renormalising_sum<T>(0, [](Index) { return T(0); });
  share = nothing ? T(0) : share / sum;
  for (Index e = 0; e < num_experts; ++e) {
    dprobs[e] = nothing ? T(0) : (dprobs[e] - share) / sum;
  }
  return share;
}

/// loss = factor * sum_e count_e * sum_t p_te, of the first `choices` choices: every balancing loss
/// with a count and a mean. factor_of is given the number of tokens.
template <Real T>
void balance(const RoutingTable<T>& table, const CountedTokens<T>& counted, Index choices,
             const auto& factor_of, RoutingLoss<T>& loss, int num_threads) {
  const Index num_experts = check_experts(table), num_tokens = table.num_tokens();
  const int threads = loss_threads(table, num_experts, 2.0, num_threads);
  LossMemory<T>& memory = loss.memory;
  count_choices(table, counted, (std::min)(choices, table.top_k()), memory.count);
  const bool nothing = counted.count() == 0 || table.top_k() == 0;
  const T factor = nothing ? T(0) : factor_of(T(static_cast<double>(counted.count())));
  memory.slope.clear();
  for (const Index choices_of_expert : memory.count) {
    memory.slope.push_back(factor * T(static_cast<double>(choices_of_expert)));
  }
  loss.clear();
  loss.gradient.probs.resize(num_tokens, num_experts);
  // Added token by token: N * E terms in one sum would be lost in its rounding.
  memory.term.assign(static_cast<std::size_t>(num_tokens), T(0));
  for_rows(num_tokens, threads, [&](Index t) {
    T* dprobs = &loss.gradient.probs.coeffRef(t, 0);
    if (nothing || !counted(t)) {
      std::fill_n(dprobs, num_experts, T(0));
    } else {
      memory.term[static_cast<std::size_t>(t)] =
          weighted_probability(table, t, memory.slope, dprobs);
    }
  });
  loss.value = sum_of_terms(memory.term, counted);
}

}  // namespace detail

/// E * sum_e f_e P_e (Fedus 2021, Switch Transformers, eq. 4, for any top-k): 1 when balanced.
template <Real T>
void load_balancing_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
                         int num_threads = 0) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  const T choices = T(static_cast<double>(table.top_k()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), table.top_k(),
      [&](const T& tokens) { return experts / (choices * tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  RoutingLoss<T> loss;
  load_balancing_loss(table, mask, loss);
  return loss;
}

/// load_balancing_loss_func of Hugging Face transformers for one layer: the same sum over each of
/// the k choices, K when balanced.
template <Real T>
void hugging_face_load_balancing_loss(const RoutingTable<T>& table, TokenMask mask,
                                      RoutingLoss<T>& loss, int num_threads = 0) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), table.top_k(),
      [&](const T& tokens) { return experts / (tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> hugging_face_load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  RoutingLoss<T> loss;
  hugging_face_load_balancing_loss(table, mask, loss);
  return loss;
}

/// (1 / E) * sum_e (c_e / N) P_e with c_e counting first choices only (Lepikhin 2020, GShard,
/// algorithm 1): 1 / E^2 when balanced.
template <Real T>
void gshard_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
                 int num_threads = 0) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), 1,
      [&](const T& tokens) { return T(1) / (experts * tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> gshard_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  RoutingLoss<T> loss;
  gshard_loss(table, mask, loss);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
