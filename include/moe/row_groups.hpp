// SPDX-License-Identifier: Apache-2.0
// What a set of experts is asked to compute: rows of x, grouped by expert. A plan makes the groups
// of a routing table; rows that came from elsewhere already in order need no plan.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Rows in expert order: those of one expert, its group, follow each other.
struct RowGroups {
  std::span<const Index> offset;      ///< (E + 1): expert e has the rows [offset[e], offset[e + 1])
  std::span<const Index> token = {};  ///< (S) the row of x that each row is; empty: the same row

  Index num_experts() const { return static_cast<Index>(offset.size()) - 1; }
  Index num_rows() const { return offset.back(); }
  Index begin(Index expert) const { return offset[static_cast<std::size_t>(expert)]; }
  Index end(Index expert) const { return begin(expert + 1); }
  Index token_of(Index row) const {
    return token.empty() ? row : token[static_cast<std::size_t>(row)];
  }
  /// Experts with at least one row.
  Index num_active() const {
    Index active = 0;
    for (Index e = 0; e < num_experts(); ++e) {
      active += end(e) > begin(e) ? 1 : 0;
    }
    return active;
  }
};

/// The rows of x (N, D_in) that experts get, each times its weight (S), or as it is if empty.
template <Real T>
struct ExpertInput {
  ConstMatrixRef<T> x;
  RowGroups groups;
  std::span<const Wide<T>> weight = {};

  /// Row i is row i of x: nothing has to be gathered.
  bool in_order() const { return groups.token.empty() && weight.empty(); }
};

/// Rows [begin, end) of one expert, computed together.
struct GroupPart {
  Index expert, begin, end;

  Index rows() const { return end - begin; }
};

/// parts = all rows, each group in parts of even size with at most `most` rows: each of them reads
/// the expert's weights.
inline void cut_groups(const RowGroups& groups, Index most, std::vector<GroupPart>& parts) {
  const Index num_rows = groups.num_rows();
  parts.clear();
  parts.reserve(
      static_cast<std::size_t>(num_rows / most + std::min(num_rows, groups.num_experts())));
  for (Index e = 0; e < groups.num_experts(); ++e) {
    const Index first = groups.begin(e), rows = groups.end(e) - first;
    const Index count = (rows + most - 1) / most;
    for (Index number = 0; number < count; ++number) {
      parts.push_back({e, first + rows * number / count, first + rows * (number + 1) / count});
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
