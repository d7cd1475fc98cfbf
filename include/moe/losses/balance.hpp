// SPDX-License-Identifier: Apache-2.0
// Losses that push counts of choices towards balance through the mean probabilities of experts.
// In comments: f_e is the fraction of the choices that fell on expert e, P_e the mean probability
// of e. Scores that do not sum to 1, as sigmoids, become the probabilities of a token by division
// by their sum (DeepSeek-V3 2024), however small that is. A token the sum of whose scores
// is less than E times the least normal number, as where all of them underflow, has no
// probabilities: it adds 0 and has no gradient.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

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

/// The least sum of E scores by which gradients are divided: those of slopes of up to E stay
/// finite.
template <Real T>
T least_score_sum(Index num_experts) {
  const T least_normal = T(4.0) / -Eigen::NumTraits<T>::lowest();
  return T(static_cast<double>(num_experts)) * least_normal;
}

/// sum_e slope_e * p_te of one token, with its gradient in dprobs (E).
template <Real T>
T weighted_probability(const RoutingTable<T>& table, Index token, const T* slope, T* dprobs) {
  const Index num_experts = table.probs.cols();
  const T* probs = &table.probs.coeffRef(token, 0);
  T share(0);
  for (Index e = 0; e < num_experts; ++e) {
    dprobs[e] = slope[e];
    share += dprobs[e] * probs[e];
  }
  if (table.probs_sum_to_one) {
    return share;
  }
  T sum(0);
  for (Index e = 0; e < num_experts; ++e) {
    sum += probs[e];
  }
  const bool nothing = sum < least_score_sum<T>(num_experts);
  share = nothing ? T(0) : share / sum;
  for (Index e = 0; e < num_experts; ++e) {
    dprobs[e] = nothing ? T(0) : (dprobs[e] - share) / sum;
  }
  return share;
}

/// loss = sum_t sum_e slope_e p_te with the slopes (E) that slope_of(t) gives, null for none.
template <Real T, class SlopeOf>
void sum_probabilities(const RoutingTable<T>& table, const CountedTokens<T>& counted,
                       const SlopeOf& slope_of, RoutingLoss<T>& loss, int threads) {
  const Index num_experts = table.probs.cols(), num_tokens = table.num_tokens();
  LossMemory<T>& memory = loss.memory;
  loss.clear();
  loss.gradient.probs.resize(num_tokens, num_experts);
  // Added token by token: N * E terms in one sum would be lost in its rounding.
  memory.term.assign(static_cast<std::size_t>(num_tokens), T(0));
  for_rows(num_tokens, threads, [&](Index t) {
    T* dprobs = &loss.gradient.probs.coeffRef(t, 0);
    const T* slope = counted(t) ? slope_of(t) : nullptr;
    if (slope == nullptr) {
      std::fill_n(dprobs, num_experts, T(0));
    } else {
      memory.term[static_cast<std::size_t>(t)] = weighted_probability(table, t, slope, dprobs);
    }
  });
  loss.value = sum_of_terms(memory.term, counted);
}

/// What a balancing loss counts: of the first `choices` choices those of each expert, or of the
/// group of so many that it belongs to.
struct BalanceCount {
  Index choices, group_size = 1;
};

/// loss = factor * sum_e count_e * sum_t p_te: every balancing loss with a count and a mean.
/// factor_of is given the number of tokens.
template <Real T>
void balance(const RoutingTable<T>& table, const CountedTokens<T>& counted,
             const BalanceCount& what, const auto& factor_of, RoutingLoss<T>& loss,
             int num_threads) {
  const int threads = loss_threads(table, check_experts(table), 2.0, num_threads);
  LossMemory<T>& memory = loss.memory;
  count_choices(table, counted, (std::min)(what.choices, table.top_k()), memory.count);
  for (auto group = memory.count.begin(); group != memory.count.end(); group += what.group_size) {
    std::fill_n(group, what.group_size, std::accumulate(group, group + what.group_size, Index(0)));
  }
  const bool nothing = counted.count() == 0 || table.top_k() == 0;
  const T factor = nothing ? T(0) : factor_of(T(static_cast<double>(counted.count())));
  memory.slope.clear();
  for (const Index choices_of_expert : memory.count) {
    memory.slope.push_back(factor * T(static_cast<double>(choices_of_expert)));
  }
  const T* const slope = nothing ? nullptr : memory.slope.data();
  sum_probabilities(
      table, counted, [&](Index) { return slope; }, loss, threads);
}

}  // namespace detail

/// E * sum_e f_e P_e (Fedus 2021, Switch Transformers, for any top-k): 1 when balanced.
template <Real T>
void load_balancing_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
                         int num_threads = 0) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  const T choices = T(static_cast<double>(table.top_k()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), {table.top_k()},
      [&](const T& tokens) { return experts / (choices * tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {},
                                   int num_threads = 0) {
  RoutingLoss<T> loss;
  load_balancing_loss(table, mask, loss, num_threads);
  return loss;
}

/// G * sum_g f_g P_g over groups of E / G experts that follow each other, with the sums of their
/// f_e and P_e (DeepSeek-V2 2024, device-level balance; the first level of a hierarchy): 1 when
/// balanced. Throws std::invalid_argument unless num_groups divides E.
template <Real T>
void group_balancing_loss(const RoutingTable<T>& table, Index num_groups, TokenMask mask,
                          RoutingLoss<T>& loss, int num_threads = 0) {
  const Index num_experts = table.probs.cols();
  detail::throw_unless(num_groups >= 1 && num_experts % num_groups == 0,
                       "group_balancing_loss: num_groups = ", num_groups,
                       ", expected to divide num_experts = ", num_experts);
  const T groups = T(static_cast<double>(num_groups));
  const T choices = T(static_cast<double>(table.top_k()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), {table.top_k(), num_experts / num_groups},
      [&](const T& tokens) { return groups / (choices * tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> group_balancing_loss(const RoutingTable<T>& table, Index num_groups,
                                    TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  group_balancing_loss(table, num_groups, mask, loss, num_threads);
  return loss;
}

/// load_balancing_loss_func of Hugging Face transformers for one layer: the same sum over each of
/// the k choices, K when balanced.
template <Real T>
void hugging_face_load_balancing_loss(const RoutingTable<T>& table, TokenMask mask,
                                      RoutingLoss<T>& loss, int num_threads = 0) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), {table.top_k()},
      [&](const T& tokens) { return experts / (tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> hugging_face_load_balancing_loss(const RoutingTable<T>& table, TokenMask mask = {},
                                                int num_threads = 0) {
  RoutingLoss<T> loss;
  hugging_face_load_balancing_loss(table, mask, loss, num_threads);
  return loss;
}

/// (1 / E) * sum_e (c_e / N) P_e with c_e counting first choices only (Lepikhin 2020, GShard):
/// 1 / E^2 when balanced.
template <Real T>
void gshard_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
                 int num_threads = 0) {
  const T experts = T(static_cast<double>(table.probs.cols()));
  detail::balance(
      table, detail::CountedTokens<T>(table, mask), {1},
      [&](const T& tokens) { return T(1) / (experts * tokens * tokens); }, loss, num_threads);
}
template <Real T>
RoutingLoss<T> gshard_loss(const RoutingTable<T>& table, TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  gshard_loss(table, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
