// SPDX-License-Identifier: Apache-2.0
// Who keeps its place: the step between the routing table and the plan. The table stays as the
// router wished it, which the balancing losses need; what is dropped here gets no row.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../call_options.hpp"
#include "../detail/random.hpp"
#include "../kernels/topk.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Rows that each expert may have of a sequence; as many as tokens if there is no limit.
inline Index capacity_rows(const Capacity& capacity, Index num_tokens, Index num_experts,
                           Index top_k) {
  if (capacity.rows) {
    return *capacity.rows;
  }
  if (!capacity.factor) {
    return num_tokens;
  }
  const double fair = static_cast<double>(num_tokens) * static_cast<double>(top_k) /
                      static_cast<double>(num_experts);
  return static_cast<Index>(
      (std::min)(std::ceil(*capacity.factor * fair), static_cast<double>(num_tokens)));
}

/// Throws std::invalid_argument unless every expert of the table is `none` or one of num_experts,
/// and every choice has a weight. More is not asked of a router: an expert that a token has twice
/// has two rows, which both take capacity, and a weight may be anything, also NaN, which reaches y.
template <Real T>
void check_table(const RoutingTable<T>& table, Index num_experts) {
  const Index num_tokens = table.num_tokens();
  detail::check_shape(table.weight, num_tokens, table.top_k(), "RoutingTable: weight");
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index k = 0; k < table.top_k(); ++k) {
      const ExpertId e = table.expert(t, k);
      detail::throw_unless(e == none || (e >= 0 && e < num_experts),
                           "RoutingTable: expert of token ", t, " is ", e,
                           ", expected in [0, num_experts = ", num_experts, ")");
    }
  }
}

/// The choices of a table that keep their place: those of tokens, not of padding, within the
/// capacity of their expert. A capacity looks across the tokens of a sequence: a token's row then
/// depends on its neighbours.
class KeptChoices {
 public:
  /// Makes this the choices of a table. Memory is reused. Throws std::invalid_argument if the
  /// table, the capacity or the tokens are not valid, or if the policy goes by probabilities and
  /// the table has no probs (N, E).
  template <Real T>
  void select(const RoutingTable<T>& table, Index num_experts, const Capacity& capacity,
              const Tokens& tokens);

  /// Leaves out choices as call.expert_dropout says, of a table with so many for each token. A
  /// draw comes from the seed, the token's place in its batch and the number of the choice. What
  /// had no place gets none: a capacity counts those that are left out.
  void drop_out(Index top_k, const CallOptions& call);

  /// Whether a choice, numbered token * K + k, keeps its place; an expert `none` has none to keep.
  bool operator[](Index choice) const {
    return mark_.empty() || mark_[static_cast<std::size_t>(choice)] != 0;
  }
  /// Choices in the table, N * K.
  Index num_choices() const { return num_choices_; }
  Index num_experts() const { return static_cast<Index>(dropped_.size()); }
  /// Choices of an expert that were over capacity.
  Index dropped_of(Index expert) const { return dropped_[static_cast<std::size_t>(expert)]; }
  Index num_dropped() const {
    Index sum = 0;
    for (const Index count : dropped_) {
      sum += count;
    }
    return sum;
  }

 private:
  template <Real T>
  void drop(const RoutingTable<T>& table, const Sequence& sequence, const Capacity& capacity);
  template <Real T>
  void order_by_probability(const RoutingTable<T>& table);
  template <Real T>
  void order_by_choice(const RoutingTable<T>& table, bool by_priority);

  Index num_choices_ = 0;
  std::vector<std::uint8_t> mark_;  // (N * K), not 0: kept; empty: all are
  std::vector<Index> dropped_;      // (E)
  std::vector<Index> order_;        // choices of a sequence, in the order in which they get places
  std::vector<Index> taken_;        // (E) places taken in a sequence
};

template <Real T>
void KeptChoices::select(const RoutingTable<T>& table, Index num_experts, const Capacity& capacity,
                         const Tokens& tokens) {
  const Index num_tokens = table.num_tokens(), top_k = table.top_k();
  capacity.validate();
  check_table(table, num_experts);
  tokens.validate(num_tokens);
  const bool by_probability = capacity.policy == DropPolicy::probability ||
                              capacity.policy == DropPolicy::second_choices_by_priority;
  if (capacity.limited() && by_probability) {
    detail::check_shape(table.probs, num_tokens, num_experts, "RoutingTable: probs");
  }
  num_choices_ = table.expert.size();
  mark_.clear();
  dropped_.assign(static_cast<std::size_t>(num_experts), 0);
  if (!capacity.limited() && tokens.padding.empty()) {
    return;
  }
  mark_.resize(static_cast<std::size_t>(table.expert.size()));
  order_.reserve(mark_.size());  // as if of one sequence: the next call's may be longer
  for (Index choice = 0; choice < table.expert.size(); ++choice) {
    mark_[static_cast<std::size_t>(choice)] = tokens.is_padding(choice / top_k) ? 0 : 1;
  }
  for (Index b = 0; capacity.limited() && b < tokens.num_sequences(num_tokens); ++b) {
    drop(table, tokens.sequence(b, num_tokens), capacity);
  }
}

/// Drops what is over capacity in one sequence. Its padding counts for nothing.
template <Real T>
void KeptChoices::drop(const RoutingTable<T>& table, const Sequence& sequence,
                       const Capacity& capacity) {
  const Index top_k = table.top_k(), num_experts = static_cast<Index>(dropped_.size());
  const ExpertId* expert = table.expert.data();
  Index num_tokens = 0;
  order_.clear();
  for (Index t = sequence.begin; t < sequence.end; ++t) {
    const bool is_token = top_k > 0 && (*this)[t * top_k];
    num_tokens += is_token ? 1 : 0;
    for (Index choice = t * top_k; is_token && choice < (t + 1) * top_k; ++choice) {
      if (expert[choice] != none) {
        order_.push_back(choice);
      }
    }
  }
  if (capacity.policy == DropPolicy::probability) {
    order_by_probability(table);
  } else if (capacity.policy != DropPolicy::position) {
    order_by_choice(table, capacity.policy == DropPolicy::second_choices_by_priority);
  }
  const Index limit = capacity_rows(capacity, num_tokens, num_experts, top_k);
  taken_.assign(dropped_.size(), 0);
  for (const Index choice : order_) {
    const auto e = static_cast<std::size_t>(expert[choice]);
    if (++taken_[e] > limit) {
      mark_[static_cast<std::size_t>(choice)] = 0;
      ++dropped_[e];
    }
  }
}

inline void KeptChoices::drop_out(Index top_k, const CallOptions& call) {
  constexpr std::uint64_t stream = 8;  // behind those of routers
  if (!call.drops_experts()) {
    return;
  }
  const detail::CounterRandom random(*call.noise_seed, stream);
  if (mark_.empty()) {
    mark_.assign(static_cast<std::size_t>(num_choices_), 1);
  }
  for (Index choice = 0; choice < num_choices_; ++choice) {
    const Index place = call.tokens.position_of(choice / top_k) * top_k + choice % top_k;
    if (random.uniform(static_cast<std::uint64_t>(place)) < call.expert_dropout) {
      mark_[static_cast<std::size_t>(choice)] = 0;
    }
  }
}

template <Real T>
void KeptChoices::order_by_probability(const RoutingTable<T>& table) {
  const Index top_k = table.top_k();
  const ExpertId* expert = table.expert.data();
  std::sort(order_.begin(), order_.end(), [&](Index a, Index b) {
    const T p_a = table.probs(a / top_k, expert[a]), p_b = table.probs(b / top_k, expert[b]);
    if (kernels::ranks_above(p_a, p_b) || kernels::ranks_above(p_b, p_a)) {
      return kernels::ranks_above(p_a, p_b);
    }
    return a < b;
  });
}

/// All first choices, then all second ones; of each in the order of the tokens, or of the
/// probability of their first choice.
template <Real T>
void KeptChoices::order_by_choice(const RoutingTable<T>& table, bool by_priority) {
  const Index top_k = table.top_k();
  const auto priority = [&](Index choice) {
    const ExpertId first = table.expert(choice / top_k, 0);
    return first == none ? T(0) : table.probs(choice / top_k, first);
  };
  std::sort(order_.begin(), order_.end(), [&](Index a, Index b) {
    if (a % top_k != b % top_k) {
      return a % top_k < b % top_k;
    }
    if (by_priority) {
      const T p_a = priority(a), p_b = priority(b);
      if (kernels::ranks_above(p_a, p_b) || kernels::ranks_above(p_b, p_a)) {
        return kernels::ranks_above(p_a, p_b);
      }
    }
    return a < b;
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
