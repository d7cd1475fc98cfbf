// SPDX-License-Identifier: Apache-2.0
// Assignment: which expert each token of a sequence has where all experts have equally many and the
// sum of the logits is largest. A minimum-cost flow by shortest augmenting paths (Jewell 1958):
// tokens come one by one, and each finds the cheapest chain of moves that ends at a free place.
//
// The graph has a node for each expert, and a pool. Of n = q E + r tokens each expert has q places
// of its own, and r more are lent by the pool, at most one to an expert.
#pragma once

#include <algorithm>

#include "../call_options.hpp"
#include "../detail/reserve.hpp"
#include "../kernels/topk.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Works in scratch and order of the table. Exact but for differences that are lost in the rounding
/// of W. A logit that is NaN counts less than every other of the sequence, an infinite one as one
/// more or less than all finite. Time grows with the square of the number of tokens.
template <Real W>
class Assignment {
 public:
  Assignment(const Sequence& sequence, GatedTable<W>& table)
      : table_(table), sequence_(sequence), num_experts_(table.logits.cols()), pool_(num_experts_) {
    const Index nodes = num_experts_ + 1;
    detail::grow(table.order, num_experts_ * num_experts_ + 3 * nodes);
    mover_ = table.order.data();
    size_ = mover_ + num_experts_ * num_experts_;
    lent_ = size_ + nodes;
    previous_ = lent_ + nodes;
    std::fill(mover_, mover_ + num_experts_ * num_experts_, Index(none));
    std::fill(size_, size_ + nodes, 0);
    std::fill(lent_, lent_ + nodes, 0);
    detail::grow_both(table.scratch, 1, nodes);
    distance_ = table.scratch.data();
    measure();
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
  ExpertId& expert(Index token) { return table_.expert(token, 0); }
  bool is_reached(Index node) const { return previous_[node] != unreached; }

  /// The range of the finite logits, the places, and what is too little to count.
  void measure() {
    const Index tokens = table_.count_tokens(sequence_.begin, sequence_.end);
    bool any = false;
    for (Index token = sequence_.begin; token < sequence_.end; ++token) {
      for (Index e = 0; e < num_experts_; ++e) {
        const W z = table_.logits(token, e);
        if (z >= Eigen::NumTraits<W>::lowest() && z <= Eigen::NumTraits<W>::highest()) {
          low_ = any && low_ < z ? low_ : z;
          high_ = any && high_ > z ? high_ : z;
          any = true;
        }
      }
    }
    own_ = tokens / num_experts_;
    to_lend_ = tokens % num_experts_;
    low_ -= W(1);
    high_ += W(1);
    tiny_ = W(64) * Eigen::NumTraits<W>::epsilon() * (high_ - low_);
  }

  W value(Index token, Index e) const {
    const W z = table_.logits(token, e);
    return z > high_ ? high_ : z >= low_ ? z : z < low_ ? low_ : low_ - (high_ - low_);
  }
  /// Of moving the best token of an expert to another.
  W cost(Index from, Index to) const {
    const Index token = mover(from, to);
    return value(token, from) - value(token, to);
  }
  Index& mover(Index from, Index to) const { return mover_[from * num_experts_ + to]; }

  /// The cheapest ways from a token to all nodes (Bellman and Ford).
  void find_paths(Index token) {
    std::fill(previous_, previous_ + num_experts_ + 1, unreached);
    for (Index e = 0; e < num_experts_; ++e) {
      if (table_.may_have(token, e)) {
        distance_[e] = -value(token, e);
        previous_[e] = source;
      }
    }
    bool changed = true;
    for (Index round = 0; changed && round <= num_experts_; ++round) {
      changed = false;
      for (Index from = 0; from < num_experts_; ++from) {
        if (!is_reached(from)) {
          continue;
        }
        for (Index to = 0; to < num_experts_; ++to) {
          if (to != from && mover(from, to) != none) {
            changed |= improve(from, to, distance_[from] + cost(from, to));
          }
        }
        if (lent_[from] == 0) {
          changed |= improve(from, pool_, distance_[from]);
        }
      }
      for (Index e = 0; e < num_experts_ && is_reached(pool_); ++e) {
        if (lent_[e] != 0) {
          changed |= improve(pool_, e, distance_[pool_]);
        }
      }
    }
  }

  bool improve(Index from, Index to, const W& distance) {
    if (is_reached(to) && !(distance < distance_[to] - tiny_)) {
      return false;
    }
    distance_[to] = distance;
    previous_[to] = from;
    return true;
  }

  /// The nearest node with a free place, `none` if there is none; of equals the lowest.
  Index nearest_end() const {
    Index best = none;
    for (Index node = 0; node <= num_experts_; ++node) {
      const bool is_free =
          node == pool_ ? lent_[pool_] < to_lend_ : size_[node] - lent_[node] < own_;
      if (is_free && is_reached(node) && (best == none || distance_[node] < distance_[best])) {
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
            (mover(from, to) == none || value(token, from) - value(token, to) < cost(from, to))) {
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
  W low_ = W(0), high_ = W(0), tiny_ = W(0);
  Index* mover_;     // (E, E) the token to move from one expert to another
  Index* size_;      // (E) tokens of each expert
  Index* lent_;      // (E) 1: it has a place of the pool; behind them how many are lent
  Index* previous_;  // (E + 1) the node before each on its way
  W* distance_;      // (E + 1)
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
