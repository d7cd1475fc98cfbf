// SPDX-License-Identifier: Apache-2.0
// Assignment: which expert each token of a sequence has where all experts have equally many and the
// sum of the logits is largest. A minimum-cost flow by shortest augmenting paths (Jewell 1958):
// tokens come one by one, and each finds the cheapest chain of moves that ends at a free place.
//
// The graph has a node for each expert, and a pool. Of n = q E + r tokens each expert has q places
// of its own, and r more are lent by the pool, at most one to an expert.
//
// Costs are compared without rounding: then no move of those that are possible ever gains, and a
// cheapest chain has no circle in it. With rounded ones the search may go round for ever.
#pragma once

#include <algorithm>
#include <cmath>

#include "../call_options.hpp"
#include "../detail/exact_sum.hpp"
#include "../detail/reserve.hpp"
#include "../kernels/topk.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Works in order of the table. Exact for logits of up to the digits and range of double: no other
/// way to assign the same tokens has a larger sum, not by the last digit. A logit that is NaN
/// counts less than every other of the sequence, an infinite one as one more or less than all
/// finite. Time grows with the square of the number of tokens.
template <Real W>
class Assignment {
 public:
  Assignment(const Sequence& sequence, GatedTable<W>& table)
      : table_(table), sequence_(sequence), num_experts_(table.logits.cols()), pool_(num_experts_) {
    const Index nodes = num_experts_ + 1;
    // Of the most limbs, although few logits need them: no allocation depends on the logits.
    detail::grow(table.order, num_experts_ * num_experts_ + 4 * nodes +
                                  (nodes + 1) * detail::ExactSums::most_limbs);
    mover_ = table.order.data();
    size_ = mover_ + num_experts_ * num_experts_;
    lent_ = size_ + nodes;
    previous_ = lent_ + nodes;
    changed_ = previous_ + nodes;
    candidate_ = reinterpret_cast<Limb*>(changed_ + nodes);
    std::fill(mover_, mover_ + num_experts_ * num_experts_, Index(none));
    std::fill(size_, size_ + nodes, 0);
    std::fill(lent_, lent_ + nodes, 0);
    measure();
    distances_ = candidate_ + sums_.limbs();
  }

  /// Writes table.expert of the sequence's tokens, which is `none` before.
  void write() {
    for (Index token = sequence_.begin; token < sequence_.end; ++token) {
      if (table_.is_padding(token)) {
        continue;
      }
      find_paths(token);
      const Index end = nearest_end();
      if (end != none) {
        take_path(token, end);
      }
    }
  }

 private:
  using Limb = detail::ExactSums::Limb;
  static_assert(sizeof(Limb) == sizeof(Index));

  ExpertId& expert(Index token) { return table_.expert(token, 0); }
  bool is_reached(Index node) const { return previous_[node] != unreached; }
  Index& mover(Index from, Index to) const { return mover_[from * num_experts_ + to]; }
  Limb* distance(Index node) const { return distances_ + node * sums_.limbs(); }
  double logit(Index token, Index e) const { return static_cast<double>(table_.logits(token, e)); }

  /// The range of the finite logits, their digits, and the places.
  void measure() {
    bool any = false;
    for (Index token = sequence_.begin; token < sequence_.end; ++token) {
      for (Index e = 0; e < num_experts_; ++e) {
        if (!table_.may_have(token, e)) {
          continue;
        }
        const double z = logit(token, e);
        if (std::isfinite(z)) {
          low_ = any && low_ < z ? low_ : z;
          high_ = any && high_ > z ? high_ : z;
          any = true;
          sums_.admit(z);
        } else {
          sums_.admit(3.0);
        }
      }
    }
    // A chain has a move for each expert at most, with two logits, of up to six numbers each.
    sums_.reserve(12 * (static_cast<std::uint64_t>(num_experts_) + 2));
    const Index tokens = table_.count_tokens(sequence_.begin, sequence_.end);
    own_ = tokens / num_experts_;
    to_lend_ = tokens % num_experts_;
  }

  /// sum += what an expert is worth to a token, or -= it.
  void add_value(Index token, Index e, bool negative, Limb* sum) const {
    const double z = logit(token, e);
    if (std::isfinite(z)) {
      sums_.add(z, negative, sum);
    } else if (std::isnan(z)) {  // as far below -inf as +inf is above it, and one more
      sums_.add(low_, negative, sum);
      sums_.add(low_, negative, sum);
      sums_.add(high_, !negative, sum);
      sums_.add(3.0, !negative, sum);
    } else {
      sums_.add(z > 0.0 ? high_ : low_, negative, sum);
      sums_.add(z > 0.0 ? 1.0 : -1.0, negative, sum);
    }
  }

  /// Whether it costs less to move one token from an expert to another than it costs to move the
  /// other token. Of numbers that differ after rounding the smaller is the smaller.
  bool moves_for_less(Index token, Index other, Index from, Index to) const {
    const double z[] = {logit(token, from), logit(token, to), logit(other, from), logit(other, to)};
    if (std::all_of(z, z + 4, [](double number) { return std::isfinite(number); })) {
      const double cost = z[0] - z[1], others = z[2] - z[3];
      if (cost < others || cost > others) {
        return cost < others;
      }
    }
    sums_.clear(candidate_);
    add_value(token, from, false, candidate_);
    add_value(token, to, true, candidate_);
    add_value(other, from, true, candidate_);
    add_value(other, to, false, candidate_);
    return sums_.is_negative(candidate_);
  }

  /// The cheapest ways from a token to all nodes (Bellman and Ford). What has not changed since it
  /// was gone on from improves nothing.
  void find_paths(Index token) {
    std::fill(previous_, previous_ + num_experts_ + 1, unreached);
    std::fill(changed_, changed_ + num_experts_ + 1, 0);
    for (Index e = 0; e < num_experts_; ++e) {
      if (table_.may_have(token, e)) {
        sums_.clear(candidate_);
        add_value(token, e, true, candidate_);
        improve(source, e);
      }
    }
    bool changed = true;
    for (Index round = 0; changed && round <= num_experts_; ++round) {
      changed = false;
      for (Index from = 0; from < num_experts_; ++from) {
        changed |= changed_[from] != 0 && go_on_from(from);
      }
      if (changed_[pool_] != 0) {
        changed_[pool_] = 0;
        for (Index e = 0; e < num_experts_; ++e) {
          if (lent_[e] != 0) {
            sums_.copy(distance(pool_), candidate_);
            changed |= improve(pool_, e);
          }
        }
      }
    }
  }

  bool go_on_from(Index from) {
    bool changed = false;
    changed_[from] = 0;
    for (Index to = 0; to < num_experts_; ++to) {
      if (to != from && mover(from, to) != none) {
        sums_.copy(distance(from), candidate_);
        add_value(mover(from, to), from, false, candidate_);
        add_value(mover(from, to), to, true, candidate_);
        changed |= improve(from, to);
      }
    }
    if (lent_[from] == 0) {
      sums_.copy(distance(from), candidate_);
      changed |= improve(from, pool_);
    }
    return changed;
  }

  /// Takes the candidate for the distance of a node if it is less.
  bool improve(Index from, Index to) {
    if (is_reached(to) && !sums_.is_less(candidate_, distance(to))) {
      return false;
    }
    sums_.copy(candidate_, distance(to));
    previous_[to] = from;
    changed_[to] = 1;
    return true;
  }

  /// The nearest node with a free place, `none` if there is none; of equals the lowest.
  Index nearest_end() const {
    Index best = none;
    for (Index node = 0; node <= num_experts_; ++node) {
      const bool is_free =
          node == pool_ ? lent_[pool_] < to_lend_ : size_[node] - lent_[node] < own_;
      if (is_free && is_reached(node) &&
          (best == none || sums_.is_less(distance(node), distance(best)))) {
        best = node;
      }
    }
    return best;
  }

  /// Moves tokens along the way to a node, from its end.
  void take_path(Index token, Index end) {
    lent_[pool_] += end == pool_ ? 1 : 0;
    Index node = end;
    for (; previous_[node] != source; node = previous_[node]) {
      const Index from = previous_[node];
      if (node == pool_) {
        lent_[from] = 1;
      } else if (from == pool_) {
        lent_[node] = 0;
      } else {
        expert(mover(from, node)) = static_cast<ExpertId>(node);
        --size_[from];
        ++size_[node];
      }
    }
    expert(token) = static_cast<ExpertId>(node);
    ++size_[node];
    for (node = end; node != source; node = previous_[node]) {
      if (node != pool_) {
        find_movers(node, token);
      }
    }
  }

  /// Which token of an expert moves to each other at least cost, of those up to `last`.
  void find_movers(Index from, Index last) {
    std::fill(&mover(from, 0), &mover(from, 0) + num_experts_, Index(none));
    for (Index token = sequence_.begin; token <= last; ++token) {
      if (expert(token) != static_cast<ExpertId>(from)) {
        continue;
      }
      for (Index to = 0; to < num_experts_; ++to) {
        if (to != from && table_.may_have(token, to) &&
            (mover(from, to) == none || moves_for_less(token, mover(from, to), from, to))) {
          mover(from, to) = token;
        }
      }
    }
  }

  static constexpr Index source = -1, unreached = -2;

  GatedTable<W>& table_;
  Sequence sequence_;
  Index num_experts_, pool_;
  Index own_ = 0, to_lend_ = 0;
  double low_ = 0.0, high_ = 0.0;
  detail::ExactSums sums_;
  Index* mover_;     // (E, E) the token to move from one expert to another
  Index* size_;      // (E) tokens of each expert
  Index* lent_;      // (E) 1: it has a place of the pool; behind them how many are lent
  Index* previous_;  // (E + 1) the node before each on its way
  Index* changed_;   // (E + 1) 1: its distance is less than when it was gone on from
  Limb* candidate_;  // (limbs) a sum for the moment
  Limb* distances_;  // (E + 1, limbs)
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
