// SPDX-License-Identifier: Apache-2.0
// What passes between gate, rule and router: the routing table with what backward needs of the
// call, and one token of it, forward and backward.
#pragma once

#include <optional>
#include <vector>

#include "../detail/identity.hpp"
#include "../routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The table of a GatedRouter. A gate derives its own from it if its backward needs more of a call.
/// Before gate and rule are called, the router has written all members of this struct.
template <Real W>
struct GatedTable : RoutingTable<W> {
  GrowingMatrix<std::uint8_t> mask;  ///< as asked for by the call; empty: all allowed
  std::optional<std::uint64_t> noise_seed;
  int num_threads = 1;  ///< of the call, for its backward
  /// (num_threads, at least 2 E), for token rules; a table rule may give it another shape.
  Matrix<W> scratch;
  std::vector<Index> order;  ///< memory for table rules, of any size
  detail::Owner owner;       ///< the router that wrote it, to go back from; nobody: not all of it

  /// (E), 0: the token may not have the expert; null: it may have all. Padding has a row, too.
  const std::uint8_t* allowed(Index token) const {
    if (mask.size() == 0) {
      return nullptr;
    }
    return &mask.coeffRef(mask.rows() == 1 ? 0 : token, 0);
  }
  /// Of rows [begin, end), those that are no padding.
  Index count_tokens(Index begin, Index end) const {
    Index count = 0;
    for (Index row = begin; row < end; ++row) {
      count += this->is_padding(row) ? 0 : 1;
    }
    return count;
  }
  /// Whether a token may have an expert: it is no padding, and no mask keeps it out.
  bool may_have(Index token, Index e) const {
    const std::uint8_t* experts = allowed(token);
    return !this->is_padding(token) && (experts == nullptr || experts[e] != 0);
  }
};

/// What the gate of a hidden layer, with a table of its own, has to know of the call. Nothing is
/// masked there.
template <Real W>
void hand_on_call(const GatedTable<W>& from, GatedTable<W>& to) {
  to.num_threads = from.num_threads;
  to.noise_seed = from.noise_seed;
  to.padding = from.padding;
}

/// One token, as a rule sees it: it reads the logits and writes the rest.
template <Real W>
struct TokenRoute {
  Index num_experts = 0, top_k = 0;  ///< of the call, where it asks for another than the rule's
  const std::uint8_t* allowed = nullptr;  ///< (E), 0: masked; null: none is
  const W* logits = nullptr;              ///< (E), -inf where masked
  W* probs = nullptr;                     ///< (E), of a masked expert 0 whatever is written here
  ExpertId* expert = nullptr;             ///< (K), best first, `none` where a choice is not used
  W* weight = nullptr;                    ///< (K), 0 where a choice is not used
  W* scratch = nullptr;                   ///< (2 E), for what is computed on the way
  Index row = 0;                          ///< of the token in the batch: what draws go by
  std::optional<std::uint64_t> noise_seed = std::nullopt;  ///< of the call
  std::int32_t id = -1;  ///< in the vocabulary, -1 where the call gives no ids
  bool chosen = false;   ///< the call gave the experts: they stand in `expert`
};

/// One token backwards: a rule adds to dlogits what dweight and dprobs make of it.
template <Real W>
struct TokenGradient {
  Index num_experts = 0, top_k = 0;
  const std::uint8_t* allowed = nullptr;  ///< (E), as in TokenRoute
  const W* logits = nullptr;              ///< (E)
  const W* probs = nullptr;               ///< (E)
  const ExpertId* expert = nullptr;       ///< (K)
  const W* weight = nullptr;              ///< (K)
  const W* dweight = nullptr;             ///< (K)
  W* dprobs = nullptr;                    ///< (E), may be used as scratch
  W* dlogits = nullptr;                   ///< (E), of a masked expert 0 whatever is added here
  Index row = 0;                          ///< as in TokenRoute
  std::optional<std::uint64_t> noise_seed = std::nullopt;
};

template <Real W>
TokenRoute<W> token_route(Index token, int worker, GatedTable<W>& table) {
  return {table.logits.cols(),
          table.top_k(),
          table.allowed(token),
          &table.logits.coeffRef(token, 0),
          &table.probs.coeffRef(token, 0),
          &table.expert.coeffRef(token, 0),
          &table.weight.coeffRef(token, 0),
          &table.scratch.coeffRef(worker, 0),
          token,
          table.noise_seed};
}

template <Real W>
TokenGradient<W> token_gradient(Index token, const GatedTable<W>& table,
                                RoutingGradient<W>& gradient) {
  return {table.logits.cols(),
          table.top_k(),
          table.allowed(token),
          &table.logits.coeffRef(token, 0),
          &table.probs.coeffRef(token, 0),
          &table.expert.coeffRef(token, 0),
          &table.weight.coeffRef(token, 0),
          &gradient.weight.coeffRef(token, 0),
          &gradient.probs.coeffRef(token, 0),
          &gradient.logits.coeffRef(token, 0),
          token,
          table.noise_seed};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
