// SPDX-License-Identifier: Apache-2.0
// What a set of experts is asked to compute: rows of x, grouped by expert. A plan makes the groups
// of a routing table; rows that came from elsewhere already in order need no plan.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "detail/check.hpp"
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

  /// Throws std::invalid_argument unless the groups are those of so many experts, one behind the
  /// other from row 0 on, and every row is one of the rows of x. A token may be in a group twice.
  void validate(Index experts, Index x_rows) const;
};

/// The rows of x (N, D_in) that experts get, each times its weight (S), or as it is if empty.
template <Real T>
struct ExpertInput {
  ConstMatrixRef<T> x;
  RowGroups groups;
  std::span<const Wide<T>> weight = {};
  /// (S) that multiply each row's hidden numbers and the bias behind them; or nothing.
  std::span<const Wide<T>> hidden_weight = {};

  /// Row i is row i of x: nothing has to be gathered.
  bool in_order() const { return groups.token.empty() && weight.empty(); }
};

inline void RowGroups::validate(Index experts, Index x_rows) const {
  detail::throw_unless(num_experts() == experts, "RowGroups: offset has ", offset.size(),
                       " elements, expected num_experts + 1 = ", experts + 1);
  detail::throw_unless(offset.front() == 0, "RowGroups: offset[0] = ", offset.front(),
                       ", expected 0");
  for (std::size_t e = 1; e < offset.size(); ++e) {
    detail::throw_unless(offset[e] >= offset[e - 1], "RowGroups: offset[", e, "] = ", offset[e],
                         ", expected at least ", offset[e - 1]);
  }
  if (token.empty()) {
    return detail::throw_unless(num_rows() <= x_rows, "RowGroups: there are ", num_rows(),
                                " rows, expected at most those of x = ", x_rows);
  }
  detail::throw_unless(static_cast<Index>(token.size()) == num_rows(), "RowGroups: token has ",
                       token.size(), " elements, expected as many as rows = ", num_rows());
  for (std::size_t row = 0; row < token.size(); ++row) {
    detail::throw_unless(token[row] >= 0 && token[row] < x_rows, "RowGroups: token[", row,
                         "] = ", token[row], ", expected in [0, rows of x = ", x_rows, ")");
  }
}

/// A set that says `static constexpr bool weighs_hidden = true`: it takes weights of hidden rows
/// and, if it trains, leaves their gradients in tape.dhidden_weight (S).
template <class Set>
concept WeighsHidden = requires {
  requires Set::weighs_hidden;
};

/// What a set of experts asks of a call: groups of its experts, an x of its width, a weight for
/// each row or none (any number, also NaN, which reaches its row), and room for its outputs. Throws
/// std::invalid_argument otherwise.
template <class Set, Real T>
void check_set_call(const Set& set, const ExpertInput<T>& input, const MatrixRef<T>& rows) {
  input.groups.validate(set.num_experts(), input.x.rows());
  const Index num_rows = input.groups.num_rows();
  detail::check_shape(input.x, input.x.rows(), set.d_in(), "experts: x");
  detail::throw_unless(input.weight.empty() || static_cast<Index>(input.weight.size()) == num_rows,
                       "experts: weight has ", input.weight.size(),
                       " elements, expected as many as rows = ", num_rows);
  if constexpr (WeighsHidden<Set>) {
    detail::throw_unless(
        input.hidden_weight.empty() || static_cast<Index>(input.hidden_weight.size()) == num_rows,
        "experts: hidden_weight has ", input.hidden_weight.size(),
        " elements, expected as many as rows = ", num_rows);
  } else {
    detail::throw_unless(input.hidden_weight.empty(),
                         "experts: hidden_weight is set, expected none by a set without hidden "
                         "rows");
  }
  detail::check_shape(rows, num_rows, set.d_out(), "experts: rows");
}

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
      static_cast<std::size_t>(num_rows / most + (std::min)(num_rows, groups.num_experts())));
  for (Index e = 0; e < groups.num_experts(); ++e) {
    const Index first = groups.begin(e), rows = groups.end(e) - first;
    const Index count = (rows + most - 1) / most;
    for (Index number = 0; number < count; ++number) {
      parts.push_back({e, first + rows * number / count, first + rows * (number + 1) / count});
    }
  }
}

/// Whether the groups are those of which the parts were cut, one behind the other from row 0 on.
inline bool are_parts_of(const std::vector<GroupPart>& parts, const RowGroups& groups) {
  const bool inside = std::all_of(parts.begin(), parts.end(), [&](const GroupPart& part) {
    return part.begin >= groups.begin(part.expert) && part.end <= groups.end(part.expert);
  });
  return inside && (parts.empty() ? 0 : parts.back().end) == groups.num_rows();
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
