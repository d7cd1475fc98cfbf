// SPDX-License-Identifier: Apache-2.0
// Losses that push counts of choices towards balance through the mean probabilities of experts.
// In comments: f_e is the fraction of the choices that fell on expert e, P_e the mean probability
// of e. Scores that do not sum to 1, as sigmoids, become the probabilities of a token by division
// by their sum (DeepSeek-V3 2024, eq. 19).
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "../routing/weights.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// Choices per expert, of the first `choices` choices of each counted token. Integers: a float
/// counts no further than to 2^24.
template <Real T>
std::vector<Index> count_choices(const RoutingTable<T>& table, const CountedTokens<T>& counted,
                                 Index choices) {
  std::vector<Index> count(static_cast<std::size_t>(check_experts(table)), 0);
  for (Index t = 0; t < table.num_tokens(); ++t) {
    for (Index k = 0; counted(t) && k < choices; ++k) {
      if (table.expert(t, k) != none) {
        ++count[static_cast<std::size_t>(table.expert(t, k))];
      }
    }
  }
  return count;
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

/// factor * sum_e count_e * sum_t p_te, of the first `choices` choices: every balancing loss with a
/// count and a mean. The count of an expert is that of its group of so many.
template <Real T>
RoutingLoss<T> balance(const RoutingTable<T>& table, TokenMask mask, Index choices,
                       const auto& factor_of, Index group_size = 1) {
  const CountedTokens<T> counted(table, mask);
  std::vector<Index> count = count_choices(table, counted, (std::min)(choices, table.top_k()));
  for (auto group = count.begin(); group != count.end(); group += group_size) {
    std::fill_n(group, group_size, std::accumulate(group, group + group_size, Index(0)));
  }
  RoutingLoss<T> loss;
  loss.gradient.probs.setZero(table.probs.rows(), table.probs.cols());
  if (counted.count() == 0 || table.top_k() == 0) {
    return loss;
  }
  const T factor = factor_of(T(static_cast<double>(counted.count())));
  std::vector<T> slope;
  slope.reserve(count.size());
  for (const Index choices_of_expert : count) {
    slope.push_back(factor * T(static_cast<double>(choices_of_expert)));
  }
  for (Index t = 0; t < table.num_tokens(); ++t) {
    if (counted(t)) {  // added token by token: N * E terms in one sum would be lost in its rounding
      loss.value += weighted_probability(table, t, slope, &loss.gradient.probs.coeffRef(t, 0));
    }
  }
  return loss;
}

}  // namespace detail

/// E * sum_e f_e P_e (Fedus 2021, Switch Transformers, eq. 4, for any top-k): 1 when balanced.
template <Real T>
RoutingLoss<T> load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  const T choices = T(static_cast<double>(table.top_k()));
  return detail::balance(table, mask, table.top_k(),
                         [&](const T& tokens) { return experts / (choices * tokens * tokens); });
}

/// G * sum_g f_g P_g over groups of E / G experts that follow each other, with the sums of their
/// f_e and P_e (DeepSeek-V2 2024, sec. 2.2.3, device-level balance; the first level of a
/// hierarchy): 1 when balanced. Throws std::invalid_argument unless num_groups divides E.
template <Real T>
RoutingLoss<T> group_balancing_loss(const RoutingTable<T>& table, Index num_groups,
                                    TokenMask mask = {}) {
  const Index num_experts = table.probs.cols();
  detail::throw_unless(num_groups >= 1 && num_experts % num_groups == 0,
                       "group_balancing_loss: num_groups = ", num_groups,
                       ", expected to divide num_experts = ", num_experts);
  const T groups = T(static_cast<double>(num_groups));
  const T choices = T(static_cast<double>(table.top_k()));
  return detail::balance(
      table, mask, table.top_k(),
      [&](const T& tokens) { return groups / (choices * tokens * tokens); },
      num_experts / num_groups);
}

/// load_balancing_loss_func of Hugging Face transformers for one layer: the same sum over each of
/// the k choices, K when balanced.
template <Real T>
RoutingLoss<T> hugging_face_load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  return detail::balance(table, mask, table.top_k(),
                         [&](const T& tokens) { return experts / (tokens * tokens); });
}

/// (1 / E) * sum_e (c_e / N) P_e with c_e counting first choices only (Lepikhin 2020, GShard,
/// algorithm 1): 1 / E^2 when balanced.
template <Real T>
RoutingLoss<T> gshard_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  return detail::balance(table, mask, 1,
                         [&](const T& tokens) { return T(1) / (experts * tokens * tokens); });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
