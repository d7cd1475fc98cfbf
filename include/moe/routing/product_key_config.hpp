// SPDX-License-Identifier: Apache-2.0
// ProductKeyConfig: how many keys lead to the experts and where they are read, and what routing by
// them costs. product_keys.hpp does it.
#pragma once

#include <algorithm>

#include "../flops.hpp"
#include "gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Where a token reads the logits of its halves, in the rows (N, 2n) that the gate made.
enum class KeyReading {
  /// In its own row, one behind the other.
  per_token,
  /// As published weights of Doge were trained: their code takes the same memory for (2, N, n), so
  /// that token t reads a half of the row of token t / 2 and a half of that of token (N + t) / 2.
  /// What a token gets then depends on the batch, also on tokens behind it. Padding is left out
  /// first. For a single token both readings are one.
  across_batch
};

struct ProductKeyConfig {
  Index num_keys = 0;  ///< n, of each half
  Index top_k = 1;
  KeyReading reading = KeyReading::per_token;

  Index num_experts() const { return num_keys * num_keys; }
  /// Throws std::invalid_argument naming the first value that breaks a rule.
  void validate() const {
    constexpr Index most = 46340;  // whose square is an ExpertId
    detail::throw_unless(num_keys >= 1 && num_keys <= most,
                         "ProductKeyConfig: num_keys = ", num_keys, ", expected in [1, ", most,
                         "]");
    detail::throw_unless(top_k >= 1 && top_k <= num_experts(), "ProductKeyConfig: top_k = ", top_k,
                         ", expected in [1, num_keys^2 = ", num_experts(), "]");
    detail::check_enum(reading, KeyReading::across_batch, "ProductKeyConfig: reading");
  }
  /// Keys of a half that the best experts can have.
  Index best_keys() const { return (std::min)(top_k, num_keys); }
  /// Sums that are looked at: the expert of the a-th and the b-th best key has a b - 1 before it.
  Index num_sums() const {
    Index count = 0;
    for (Index a = 1; a <= best_keys(); ++a) {
      count += (std::min)(top_k / a, best_keys());
    }
    return count;
  }
};

/// FLOPs of so many tokens.
inline Flops product_key_forward_flops(Index d_model, const ProductKeyConfig& config,
                                       Index tokens) {
  return LinearGate<float>(d_model, 2 * config.num_keys, {}).forward_flops(tokens) +
         tokens * detail::flops_of_one(0, config.num_sums() + 4 * config.top_k);
}
inline Flops product_key_backward_flops(Index d_model, const ProductKeyConfig& config,
                                        Index tokens) {
  return LinearGate<float>(d_model, 2 * config.num_keys, {}).backward_flops(tokens) +
         tokens * detail::flops_of_one(0, 6 * config.top_k);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
