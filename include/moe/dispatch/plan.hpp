// SPDX-License-Identifier: Apache-2.0
// Lays out the router's choices as rows grouped by expert. Integers only: the plan knows no
// weights and no activations. Within an expert, rows keep token order.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "../config.hpp"
#include "../kernels/topk.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Consecutive rows [begin, end) of one expert, computed together.
struct Tile {
  ExpertId expert;
  Index begin, end;

  Index rows() const { return end - begin; }
};

class DispatchPlan {
 public:
  /// Most rows in a tile: enough to pay for reading a weight from memory and packing it.
  /// A constant, so that the plan does not depend on the number of threads.
  static constexpr Index tile_rows = 1024;

  /// Makes this the plan of a table. Memory is reused. Throws std::invalid_argument, the plan then
  /// being as it was, if an expert is neither `none` nor in [0, num_experts), if the capacity is
  /// not valid, if sequence_length does not divide the number of tokens, or if the policy is
  /// probability and the table has no probs (N, E).
  /// A capacity looks across the tokens of a sequence: a token's row then depends on its
  /// neighbours.
  template <Real T>
  void build(const RoutingTable<T>& table, Index num_experts, const Capacity& capacity = {},
             Index sequence_length = 0);

  Index num_rows() const { return static_cast<Index>(token_.size()); }
  Index num_experts() const { return static_cast<Index>(dropped_.size()); }
  /// Token of each row (S).
  std::span<const Index> token() const { return token_; }
  /// Which of its token's choices each row is (S).
  std::span<const Index> choice() const { return choice_; }
  /// Rows of expert e are [offset[e], offset[e + 1]) (E + 1).
  std::span<const Index> offset() const { return offset_; }
  /// Row of each (token, choice), or `dropped` (N, K).
  const Matrix<Index>& slot() const { return slot_; }
  /// The slots of one token (K).
  std::span<const Index> slots_of(Index token) const {
    return {slot_.data() + token * slot_.cols(), static_cast<std::size_t>(slot_.cols())};
  }
  Index kept(Index expert) const { return offset_[at(expert + 1)] - offset_[at(expert)]; }
  /// Choices of an expert that got no row because it was over capacity.
  Index dropped_of(Index expert) const { return dropped_[at(expert)]; }
  Index num_dropped() const;
  /// Experts with at least one row.
  Index num_active() const;
  /// All rows, cut into tiles of one expert each.
  std::span<const Tile> tiles() const { return tiles_; }
  /// The first of an expert's tiles, and one past its last.
  std::pair<std::size_t, std::size_t> tiles_of(Index expert) const {
    return {first_tile_[at(expert)], first_tile_[at(expert + 1)]};
  }

 private:
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  void clear(Index num_experts);
  template <Real T>
  void group(const RoutingTable<T>& table);
  template <Real T>
  void drop_by_probability(const RoutingTable<T>& table, Index limit, Index sequence_length);
  void drop_by_position(const Matrix<ExpertId>& expert, Index limit, Index sequence_length);
  void cut_tiles();

  std::vector<Index> offset_, token_, choice_, dropped_;
  Matrix<Index> slot_;
  std::vector<Tile> tiles_;
  std::vector<std::size_t> first_tile_;
  std::vector<Index> work_;  // counts per expert, or the order in which capacity is given out
};

/// Rows that each expert may have in a sequence of num_tokens; num_tokens if there is no limit.
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
      std::min(std::ceil(*capacity.factor * fair), static_cast<double>(num_tokens)));
}

inline Index DispatchPlan::num_dropped() const {
  Index sum = 0;
  for (const Index count : dropped_) {
    sum += count;
  }
  return sum;
}

inline Index DispatchPlan::num_active() const {
  Index active = 0;
  for (Index e = 0; e < num_experts(); ++e) {
    active += kept(e) > 0 ? 1 : 0;
  }
  return active;
}

template <Real T>
void DispatchPlan::build(const RoutingTable<T>& table, Index num_experts, const Capacity& capacity,
                         Index sequence_length) {
  const Index num_tokens = table.num_tokens();
  capacity.validate();
  detail::check_shape(table.weight, num_tokens, table.top_k(), "DispatchPlan: weight");
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index k = 0; k < table.top_k(); ++k) {
      const ExpertId e = table.expert(t, k);
      detail::check(e == none || (e >= 0 && e < num_experts), "DispatchPlan: expert of token ", t,
                    " is ", e, ", expected in [0, num_experts = ", num_experts, ")");
    }
  }
  const Index length = sequence_length == 0 ? std::max<Index>(num_tokens, 1) : sequence_length;
  detail::check(length > 0 && num_tokens % length == 0, "DispatchPlan: sequence_length = ", length,
                ", expected to divide the number of tokens = ", num_tokens);
  const bool by_probability = capacity.limited() && capacity.policy == DropPolicy::probability;
  if (by_probability) {
    detail::check_shape(table.probs, num_tokens, num_experts, "DispatchPlan: probs");
  }

  clear(num_experts);
  slot_.resize(num_tokens, table.top_k());
  slot_.setZero();
  work_.reserve(at(std::max(slot_.size(), num_experts + 1)));
  if (capacity.limited()) {
    const Index limit = capacity_rows(capacity, length, num_experts, table.top_k());
    if (by_probability) {
      drop_by_probability(table, limit, length);
    } else {
      drop_by_position(table.expert, limit, length);
    }
  }
  group(table);
  cut_tiles();
}

inline void DispatchPlan::clear(Index num_experts) {
  offset_.assign(at(num_experts + 1), 0);
  dropped_.assign(at(num_experts), 0);
  token_.clear();
  choice_.clear();
  tiles_.clear();
  first_tile_.assign(offset_.size(), 0);
}

inline void DispatchPlan::drop_by_position(const Matrix<ExpertId>& expert, Index limit,
                                           Index sequence_length) {
  for (Index t = 0; t < expert.rows(); ++t) {
    if (t % sequence_length == 0) {
      work_.assign(dropped_.size(), 0);
    }
    for (Index k = 0; k < expert.cols(); ++k) {
      const ExpertId e = expert(t, k);
      if (e != none && ++work_[at(e)] > limit) {
        slot_(t, k) = dropped;
        ++dropped_[at(e)];
      }
    }
  }
}

template <Real T>
void DispatchPlan::drop_by_probability(const RoutingTable<T>& table, Index limit,
                                       Index sequence_length) {
  // Choices (t * K + k) in the order in which each (sequence, expert) gives out its rows.
  const Index top_k = table.top_k();
  const ExpertId* expert = table.expert.data();
  work_.clear();
  for (Index i = 0; i < table.expert.size(); ++i) {
    if (expert[i] != none) {
      work_.push_back(i);
    }
  }
  const auto before = [&](Index a, Index b) {
    const Index sequence_a = a / top_k / sequence_length, sequence_b = b / top_k / sequence_length;
    if (sequence_a != sequence_b) {
      return sequence_a < sequence_b;
    }
    if (expert[a] != expert[b]) {
      return expert[a] < expert[b];
    }
    const T p_a = table.probs(a / top_k, expert[a]), p_b = table.probs(b / top_k, expert[b]);
    if (kernels::ranks_above(p_a, p_b) || kernels::ranks_above(p_b, p_a)) {
      return kernels::ranks_above(p_a, p_b);
    }
    return a < b;
  };
  std::sort(work_.begin(), work_.end(), before);
  Index taken = 0, sequence = -1;
  ExpertId current = none;
  for (const Index i : work_) {
    if (i / top_k / sequence_length != sequence || expert[i] != current) {
      sequence = i / top_k / sequence_length;
      current = expert[i];
      taken = 0;
    }
    if (++taken > limit) {
      slot_.data()[i] = dropped;
      ++dropped_[at(current)];
    }
  }
}

template <Real T>
void DispatchPlan::group(const RoutingTable<T>& table) {
  const Index top_k = table.top_k();
  const ExpertId* expert = table.expert.data();
  Index* slot = slot_.data();
  for (Index i = 0; i < slot_.size(); ++i) {
    if (expert[i] == none) {
      slot[i] = dropped;
    } else if (slot[i] != dropped) {
      ++offset_[at(expert[i] + 1)];
    }
  }
  for (std::size_t e = 1; e < offset_.size(); ++e) {
    offset_[e] += offset_[e - 1];
  }
  // The upper bound, so that another routing of as many tokens needs no new memory.
  token_.reserve(at(slot_.size()));
  choice_.reserve(at(slot_.size()));
  token_.resize(at(offset_.back()));
  choice_.resize(at(offset_.back()));
  work_.assign(offset_.begin(), offset_.end());
  for (Index i = 0; i < slot_.size(); ++i) {
    if (slot[i] != dropped) {
      slot[i] = work_[at(expert[i])]++;
      token_[at(slot[i])] = i / top_k;
      choice_[at(slot[i])] = i % top_k;
    }
  }
}

inline void DispatchPlan::cut_tiles() {
  tiles_.reserve(at(slot_.size() / tile_rows + std::min(slot_.size(), num_experts())));
  for (Index e = 0; e < num_experts(); ++e) {
    // Of even size: each of them reads the expert's weights.
    const Index num_tiles = (kept(e) + tile_rows - 1) / tile_rows;
    for (Index number = 0; number < num_tiles; ++number) {
      const Index first = offset_[at(e)];
      tiles_.push_back({static_cast<ExpertId>(e), first + kept(e) * number / num_tiles,
                        first + kept(e) * (number + 1) / num_tiles});
    }
    first_tile_[at(e + 1)] = tiles_.size();
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
