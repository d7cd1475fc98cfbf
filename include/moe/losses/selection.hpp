// SPDX-License-Identifier: Apache-2.0
// A loss that teaches logits what was chosen: where a choice depends on other tokens, one token's
// logits can then stand for it (Raposo et al. 2024, Mixture-of-Depths).
#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels/vector_math.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The mean over the tokens of the binary cross-entropies, added up over the experts, of
/// sigmoid(logit) against whether the token has the expert. Masked experts do not count. The
/// gradient is that of the logits.
template <Real T>
void selection_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
                    int num_threads = 0) {
  using std::exp, std::log1p, std::abs;
  const detail::LogitLoss<T> over(table, mask, loss, num_threads, "selection_loss");
  detail::for_rows(table.num_tokens(), over.threads, [&](Index t) {
    for (Index e = 0; over.counted(t) && e < over.num_experts; ++e) {
      const T& logit = table.logits(t, e);
      if (logit < Eigen::NumTraits<T>::lowest()) {
        continue;  // masked
      }
      const ExpertId* chosen = &table.expert.coeffRef(t, 0);
      const bool has = std::find(chosen, chosen + table.top_k(), static_cast<ExpertId>(e)) !=
                       chosen + table.top_k();
      // -log sigmoid(z) = log(1 + exp(-z)), and of the other answer with z.
      const T z = has ? T(-logit) : logit;
      const T positive = z <= T(0) ? T(0) : z;
      over.term[static_cast<std::size_t>(t)] += over.share * (positive + log1p(exp(-abs(z))));
      const T slope = over.share * kernels::sigmoid(z);
      loss.gradient.logits(t, e) = has ? T(-slope) : slope;
    }
  });
  loss.value = detail::sum_of_terms(over.term, over.counted);
}
template <Real T>
RoutingLoss<T> selection_loss(const RoutingTable<T>& table, TokenMask mask = {},
                              int num_threads = 0) {
  RoutingLoss<T> loss;
  selection_loss(table, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
