// SPDX-License-Identifier: Apache-2.0
// What a single call says of its tokens and asks of a layer: CallOptions. Checked by validate()
// before anything is computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "config.hpp"
#include "detail/check.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// 0 = the expert may not be chosen. One row for all tokens, or a row for each: (1, E) or (N, E).
using ExpertMask = Matrix<std::uint8_t>;

/// Tokens [begin, end) of one sequence.
struct Sequence {
  Index begin, end;
};

/// What the rows of x are, for whoever looks further than at one row. Spans are the caller's, read
/// in the call only; what is empty or 0 was not said.
struct Tokens {
  /// (N) numbers in the vocabulary, for routers that go by them.
  std::span<const std::int32_t> ids = {};
  /// The batch is sequences of so many tokens each; 0: one sequence.
  Index sequence_length = 0;
  /// (B + 1) or: sequence b has the tokens [sequence_offset[b], sequence_offset[b + 1]).
  std::span<const Index> sequence_offset = {};
  /// (N) where each row stands in a batch of which only some rows are here, as a layer that leaves
  /// out tokens says it to its block; empty: row i stands at i.
  std::span<const Index> position = {};
  /// (N) not 0: the row is no token. It has no expert, takes no capacity, is not seen by losses,
  /// gets 0 in y and dx, and its x and dy, which may be NaN, reach no gradient.
  std::span<const std::uint8_t> padding = {};

  Index position_of(Index token) const {
    return position.empty() ? token : position[static_cast<std::size_t>(token)];
  }
  bool is_padding(Index token) const {
    return !padding.empty() && padding[static_cast<std::size_t>(token)] != 0;
  }
  Index num_sequences(Index num_tokens) const;
  Sequence sequence(Index number, Index num_tokens) const;

  /// Throws std::invalid_argument unless all of it fits a batch of so many rows.
  void validate(Index num_tokens) const;
};

/// What one call may ask for. All of it is read, nothing kept.
struct CallOptions {
  /// Threads of this call; 0 for OpenMP's default. Results do not depend on it.
  int num_threads = 0;
  /// What the rows of x are.
  Tokens tokens = {};
  /// Null: every expert is allowed. A token with no allowed expert gets zeros from the routed part.
  const ExpertMask* expert_mask = nullptr;
  /// Draws the jitter and the noise of a training step; none: the router is evaluated without. The
  /// draws come from it and the place in the batch alone, so every layer and every step wants its
  /// own: step * number of layers + number of the layer will do.
  std::optional<std::uint64_t> noise_seed = std::nullopt;
  /// Experts of each token in this call, more or fewer than the router's top_k; all is then as of a
  /// router made with so many, also whether weights are renormalised where that is not said. A rule
  /// that cannot (ObeysCall) refuses it, and the layer a router of one's own that did not.
  std::optional<Index> top_k = std::nullopt;
  /// In place of the layer's in this call, behind any router: looser in evaluation, say.
  std::optional<Capacity> capacity = std::nullopt;
  /// (N, K) or null: the experts that each token takes, as if the router had chosen them; weights,
  /// scores and gradients are the router's of now (routing replay: a policy is trained on the
  /// choices with which its samples were drawn). `none` is no choice; rows of padding are not read.
  /// Capacity applies. Routers that cannot are refused as for top_k.
  const Matrix<ExpertId>* experts = nullptr;
  /// In [0, 1), of a call with a noise_seed: each choice is left out with this probability, behind
  /// routing and capacity, and the weights of the others are divided by 1 less it, so that the
  /// output is in the mean what it is without (expert output masking, NLLB Team 2022, as fairseq
  /// has it). The choices that are left out take no rows; losses and loads see them. For layers
  /// that choose experts whose weights act on their outputs or hidden rows.
  double expert_dropout = 0.0;

  /// Whether choices are left out in this call.
  bool drops_experts() const { return expert_dropout > 0.0 && noise_seed.has_value(); }

  /// Throws std::invalid_argument unless all of it fits so many tokens and experts.
  void validate(Index num_tokens, Index num_experts) const;

  /// Throws std::invalid_argument if a router that chose these experts (N, K) did not do as `top_k`
  /// and `experts` say.
  void check_obeyed(const ConstMatrixRef<ExpertId>& chosen) const;

 private:
  void validate_experts(Index num_tokens, Index num_experts) const;
};

inline Index Tokens::num_sequences(Index num_tokens) const {
  if (!sequence_offset.empty()) {
    return static_cast<Index>(sequence_offset.size()) - 1;
  }
  return sequence_length == 0 ? 1 : num_tokens / sequence_length;
}

inline Sequence Tokens::sequence(Index number, Index num_tokens) const {
  if (!sequence_offset.empty()) {
    const auto b = static_cast<std::size_t>(number);
    return {sequence_offset[b], sequence_offset[b + 1]};
  }
  const Index length = sequence_length == 0 ? num_tokens : sequence_length;
  return {number * length, (number + 1) * length};
}

inline void Tokens::validate(Index num_tokens) const {
  const auto check_size = [&](std::size_t size, const char* name) {
    detail::throw_unless(size == 0 || static_cast<Index>(size) == num_tokens, "Tokens: ", name,
                         " has ", size, " elements, expected as many as tokens = ", num_tokens);
  };
  check_size(ids.size(), "ids");
  check_size(position.size(), "position");
  check_size(padding.size(), "padding");
  detail::throw_unless(
      sequence_length >= 0 && (sequence_length == 0 || num_tokens % sequence_length == 0),
      "Tokens: sequence_length = ", sequence_length,
      ", expected to divide the number of tokens = ", num_tokens);
  if (sequence_offset.empty()) {
    return;
  }
  detail::throw_unless(sequence_length == 0,
                       "Tokens: sequence_length and sequence_offset are both set, expected one");
  detail::throw_unless(sequence_offset.front() == 0 && sequence_offset.back() == num_tokens,
                       "Tokens: sequence_offset goes from ", sequence_offset.front(), " to ",
                       sequence_offset.back(),
                       ", expected from 0 to the number of tokens = ", num_tokens);
  for (std::size_t b = 1; b < sequence_offset.size(); ++b) {
    detail::throw_unless(sequence_offset[b - 1] <= sequence_offset[b], "Tokens: sequence_offset[",
                         b, "] = ", sequence_offset[b], ", expected at least ",
                         sequence_offset[b - 1]);
  }
}

inline void CallOptions::validate(Index num_tokens, Index num_experts) const {
  tokens.validate(num_tokens);
  if (expert_mask != nullptr) {
    const ExpertMask& mask = *expert_mask;
    detail::throw_unless(
        (mask.rows() == 1 || mask.rows() == num_tokens) && mask.cols() == num_experts,
        "CallOptions: expert_mask is (", mask.rows(), ", ", mask.cols(), "), expected (1 or ",
        num_tokens, ", ", num_experts, ")");
  }
  if (top_k) {
    detail::throw_unless(*top_k >= 1 && *top_k <= num_experts, "CallOptions: top_k = ", *top_k,
                         ", expected in [1, num_experts = ", num_experts, "]");
  }
  if (capacity) {
    capacity->validate();
  }
  detail::throw_unless(expert_dropout >= 0.0 && expert_dropout < 1.0,
                       "CallOptions: expert_dropout = ", expert_dropout, ", expected in [0, 1)");
  if (experts != nullptr) {
    validate_experts(num_tokens, num_experts);
  }
}

inline void CallOptions::check_obeyed(const ConstMatrixRef<ExpertId>& chosen) const {
  detail::throw_unless(!top_k || chosen.cols() == *top_k, "CallOptions: the router chose ",
                       chosen.cols(), " experts a token, expected top_k = ", top_k.value_or(0));
  for (Index t = 0; experts != nullptr && t < chosen.rows(); ++t) {
    const ExpertId* given = &experts->coeffRef(t, 0);
    for (Index k = 0; k < chosen.cols(); ++k) {
      const ExpertId e = chosen(t, k);
      detail::throw_unless(
          e == none || std::find(given, given + experts->cols(), e) != given + experts->cols(),
          "CallOptions: the router chose expert ", e, " for token ", t,
          ", expected one of `experts`");
    }
  }
}

inline void CallOptions::validate_experts(Index num_tokens, Index num_experts) const {
  const Index choices = experts->cols();
  detail::throw_unless(experts->rows() == num_tokens && choices >= 1 && choices <= num_experts,
                       "CallOptions: experts is (", experts->rows(), ", ", choices, "), expected (",
                       num_tokens, ", 1 to num_experts = ", num_experts, ")");
  detail::throw_unless(!top_k, "CallOptions: top_k and experts are both set, expected one");
  for (Index t = 0; t < num_tokens; ++t) {
    const ExpertId* of_token = &experts->coeffRef(t, 0);
    for (Index k = 0; k < choices && !tokens.is_padding(t); ++k) {
      const ExpertId e = of_token[k];
      if (e == none) {
        continue;
      }
      detail::throw_unless(e >= 0 && e < num_experts, "CallOptions: experts of token ", t, " has ",
                           e, ", expected in [0, num_experts = ", num_experts, ")");
      detail::throw_unless(std::find(of_token, of_token + k, e) == of_token + k,
                           "CallOptions: experts of token ", t, " has ", e, " twice");
      detail::throw_unless(
          expert_mask == nullptr || (*expert_mask)(expert_mask->rows() == 1 ? 0 : t, e) != 0,
          "CallOptions: experts of token ", t, " has ", e, ", which is masked");
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
