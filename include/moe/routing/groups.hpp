// SPDX-License-Identifier: Apache-2.0
// A part of selection: experts in groups, of which a token has only some, or equally many experts
// of each.
#pragma once

#include <algorithm>

#include "../config.hpp"
#include "../kernels/topk.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The groups of one token. rank (E) is what experts are ranked by, score (num_groups) is memory.
template <Real W>
class TokenGroups {
 public:
  TokenGroups(const GroupLimit& limit, const TokenRoute<W>& token, W* rank, W* score)
      : limit_(limit),
        token_(token),
        size_(token.num_experts / limit.num_groups),
        rank_(rank),
        score_(score) {}

  /// Writes the token's experts, best first, then `none`; returns how many there are.
  Index select() {
    std::fill(token_.expert, token_.expert + token_.top_k, none);
    if (limit_.rule == GroupRule::equal_quota) {
      return select_quota();
    }
    for (Index group = 0; group < limit_.num_groups; ++group) {
      score_[group] = score_of(group);
    }
    Index count = 0;
    for (Index group = 0; group < limit_.num_groups; ++group) {
      if (is_kept(group)) {
        count = insert(group, count, token_.top_k, token_.expert);
      } else if (limit_.others == OtherGroups::zero) {
        std::fill(rank_ + group * size_, rank_ + (group + 1) * size_, W(0));
        count = insert(group, count, token_.top_k, token_.expert);
      }
    }
    return count;
  }

 private:
  bool allowed(Index expert) const { return token_.allowed == nullptr || token_.allowed[expert]; }
  bool any_allowed(Index group) const {
    Index expert = group * size_;
    while (expert < (group + 1) * size_ && !allowed(expert)) {
      ++expert;
    }
    return expert < (group + 1) * size_;
  }

  /// Puts a group's experts among the best so far.
  Index insert(Index group, Index count, Index most, ExpertId* chosen) const {
    for (Index expert = group * size_; expert < (group + 1) * size_; ++expert) {
      if (allowed(expert)) {
        count = kernels::insert_best(rank_, expert, count, most, chosen);
      }
    }
    return count;
  }

  /// The best of each group, then all of them in order.
  Index select_quota() const {
    const Index quota = token_.top_k / limit_.num_groups;
    Index count = 0;
    for (Index group = 0; group < limit_.num_groups; ++group) {
      count += insert(group, 0, quota, token_.expert + count);
    }
    for (Index k = 0; k < count; ++k) {
      kernels::insert_best(rank_, token_.expert[k], k, count, token_.expert);
    }
    return count;
  }

  /// Of what is allowed in it; if that is one expert, no second is added.
  W score_of(Index group) const {
    ExpertId best[2];
    const Index most = limit_.rule == GroupRule::sum_of_two_best ? 2 : 1;
    const Index count = insert(group, 0, most, best);
    return count == 0 ? W(0) : count == 1 ? rank_[best[0]] : rank_[best[0]] + rank_[best[1]];
  }

  /// Whether fewer than `kept` groups stand before it.
  bool is_kept(Index group) const {
    Index before = 0;
    for (Index other = 0; other < limit_.num_groups; ++other) {
      const bool above = kernels::ranks_above(score_[other], score_[group]) ||
                         (other < group && !kernels::ranks_above(score_[group], score_[other]));
      before += above && any_allowed(other) ? 1 : 0;
    }
    return before < limit_.kept;
  }

  const GroupLimit& limit_;
  const TokenRoute<W>& token_;
  Index size_;
  W *rank_, *score_;
};

/// FLOPs of a token, by the rule of cost.hpp; comparisons are none.
constexpr Index group_flops(const GroupLimit& limit) {
  return limit.rule == GroupRule::sum_of_two_best ? limit.num_groups : 0;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
