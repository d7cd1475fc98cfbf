// SPDX-License-Identifier: Apache-2.0
// Selection by table: the experts of a token are those of its number in the vocabulary. Numbers of
// experts, which nothing trains.
#pragma once

#include <algorithm>
#include <span>

#include "../call_options.hpp"
#include "../detail/random.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (vocabulary, k): the experts of each id, best first.
using ExpertTable = Matrix<ExpertId>;

/// Throws std::invalid_argument unless the table has these sizes, and each row so many different
/// experts.
inline void check_expert_table(const ExpertTable& table, Index vocabulary, Index num_experts,
                               Index top_k) {
  if (vocabulary > 0) {
    detail::check_shape(table, vocabulary, top_k, "Router: the table of experts");
  } else {
    detail::throw_unless(table.size() == 0, "Router: the table of experts is (", table.rows(), ", ",
                         table.cols(), "), expected none without selection.vocabulary");
  }
  for (Index id = 0; id < vocabulary; ++id) {
    const ExpertId* row = table.data() + id * top_k;
    for (Index k = 0; k < top_k; ++k) {
      detail::throw_unless(row[k] >= 0 && row[k] < num_experts, "Router: the table of experts has ",
                           row[k], " for id ", id, ", expected in [0, num_experts = ", num_experts,
                           ")");
      detail::throw_unless(std::find(row, row + k, row[k]) == row + k,
                           "Router: the table of experts has ", row[k], " twice for id ", id);
    }
  }
}

/// Each row a sample of so many of the experts (Floyd 1987); empty if there are no such rows.
inline ExpertTable random_expert_table(Index vocabulary, Index num_experts, Index top_k,
                                       std::uint64_t seed) {
  if (vocabulary <= 0 || top_k < 1 || top_k > num_experts) {
    return {};
  }
  const detail::CounterRandom random(seed, 1);
  ExpertTable table(vocabulary, top_k);
  for (Index id = 0; id < vocabulary; ++id) {
    ExpertId* row = table.data() + id * top_k;
    for (Index k = 0; k < top_k; ++k) {
      const Index last = num_experts - top_k + k;
      const double place = random.uniform(static_cast<std::uint64_t>(id * top_k + k));
      const auto drawn = static_cast<ExpertId>(place * static_cast<double>(last + 1));
      const bool is_new = std::find(row, row + k, drawn) == row + k;
      row[k] = is_new ? drawn : static_cast<ExpertId>(last);
    }
  }
  return table;
}

/// Throws std::invalid_argument unless the call says which row of a table each token has. Ids of
/// padding are not read, and none if the call gives the experts.
inline void check_token_ids(const ExpertTable& table, const CallOptions& call, Index num_tokens) {
  const std::span<const std::int32_t> ids = call.tokens.ids;
  if (call.experts != nullptr || num_tokens == 0) {
    return;
  }
  detail::throw_unless(!ids.empty(),
                       "Router: the call has no tokens.ids, expected one for each token, by which "
                       "the table of experts goes");
  for (Index token = 0; token < num_tokens; ++token) {
    const std::int32_t id = ids[static_cast<std::size_t>(token)];
    detail::throw_unless(call.tokens.is_padding(token) || (id >= 0 && id < table.rows()),
                         "Router: tokens.ids[", token, "] = ", id,
                         ", expected in [0, vocabulary = ", table.rows(), ")");
  }
  const Index top_k = call.top_k.value_or(table.cols());
  detail::throw_unless(top_k <= table.cols(), "Router: top_k of the call = ", top_k,
                       ", expected at most ", table.cols(), ", as the table of experts has");
}

/// Writes the token's experts from the table, `none` for a masked one; returns how many choices
/// may be used. Leaves those that the call gave. The token's id must be one of the table's.
template <Real W>
Index select_from_table(const ExpertTable& table, const TokenRoute<W>& token) {
  for (Index k = 0; !token.chosen && k < token.top_k; ++k) {
    const ExpertId e = table(token.id, k);
    token.expert[k] = token.allowed == nullptr || token.allowed[e] != 0 ? e : none;
  }
  return token.top_k;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
