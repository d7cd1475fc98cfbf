// SPDX-License-Identifier: Apache-2.0
// Lays out the router's choices as rows grouped by expert: a counting sort. Integers only: the plan
// knows no weights and no activations. Within an expert, rows keep token order. A choice that is
// `none` or not kept has no row, and memory and time are those of the rows.
#pragma once

#include <span>
#include <vector>

#include "../row_groups.hpp"
#include "capacity.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

class DispatchPlan {
 public:
  /// Makes this the plan of the kept choices of a table, which is as select() has checked it.
  /// Memory is reused. Throws std::invalid_argument if they are of a table of another size.
  template <Real T>
  void build(const RoutingTable<T>& table, const KeptChoices& kept, Index num_experts);

  Index num_tokens() const { return static_cast<Index>(first_slot_.size()) - 1; }
  /// Choices of each token in the table, K.
  Index top_k() const { return top_k_; }
  Index num_rows() const { return static_cast<Index>(token_.size()); }
  Index num_experts() const { return static_cast<Index>(offset_.size()) - 1; }
  /// The rows in expert order.
  RowGroups groups() const { return {offset_, token_}; }
  /// Rows of expert e are [offset[e], offset[e + 1]) (E + 1).
  std::span<const Index> offset() const { return offset_; }
  /// Token of each row (S).
  std::span<const Index> token() const { return token_; }
  /// Which of its token's choices each row is (S).
  std::span<const Index> choice() const { return choice_; }
  /// The rows of one token, its choices in order.
  std::span<const Index> slots_of(Index token) const {
    const std::size_t first = first_slot_[at(token)];
    return std::span(slot_).subspan(first, first_slot_[at(token) + 1] - first);
  }
  /// Rows of an expert.
  Index kept(Index expert) const { return offset_[at(expert + 1)] - offset_[at(expert)]; }
  /// Experts with at least one row.
  Index num_active() const { return groups().num_active(); }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  Index top_k_ = 0;
  std::vector<Index> offset_{0}, token_, choice_;
  std::vector<Index> slot_;                 // (S) rows of token 0, of token 1, ...
  std::vector<std::size_t> first_slot_{0};  // (N + 1) where each token's begin in it
  std::vector<Index> next_;                 // (E) the next free row of each expert
};

template <Real T>
void DispatchPlan::build(const RoutingTable<T>& table, const KeptChoices& kept, Index num_experts) {
  detail::throw_unless(
      kept.num_choices() == table.expert.size() && kept.num_experts() == num_experts,
      "DispatchPlan: kept are choices of ", kept.num_choices(), " to ", kept.num_experts(),
      " experts, expected of ", table.expert.size(), " to ", num_experts);
  const Index top_k = top_k_ = table.top_k();
  const ExpertId* expert = table.expert.data();
  const auto has_row = [&](Index choice) { return expert[choice] != none && kept[choice]; };
  offset_.assign(at(num_experts + 1), 0);
  first_slot_.assign(at(table.num_tokens() + 1), 0);
  for (Index t = 0, choice = 0; t < table.num_tokens(); ++t) {
    first_slot_[at(t + 1)] = first_slot_[at(t)];
    for (const Index end = choice + top_k; choice < end; ++choice) {
      if (has_row(choice)) {
        ++offset_[at(expert[choice] + 1)];
        ++first_slot_[at(t + 1)];
      }
    }
  }
  for (std::size_t e = 1; e < offset_.size(); ++e) {
    offset_[e] += offset_[e - 1];
  }
  next_.assign(offset_.begin(), offset_.end() - 1);
  for (std::vector<Index>* rows : {&token_, &choice_, &slot_}) {
    rows->resize(first_slot_.back());
  }
  std::size_t slot = 0;
  for (Index choice = 0; choice < table.expert.size(); ++choice) {
    if (has_row(choice)) {
      const Index row = next_[at(expert[choice])]++;
      token_[at(row)] = choice / top_k;
      choice_[at(row)] = choice % top_k;
      slot_[slot++] = row;
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
