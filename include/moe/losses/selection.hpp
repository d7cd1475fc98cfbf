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
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = table.logits.cols(), num_tokens = table.num_tokens();
  detail::check_shape(table.logits, num_tokens, num_experts, "selection_loss: logits");
  const int threads = detail::loss_threads(table, num_experts, 16.0, num_threads);
  const T share = T(1.0 / static_cast<double>((std::max)(counted.count(), Index{1})));
  std::vector<T>& term = loss.memory.term;
  term.assign(static_cast<std::size_t>(num_tokens), T(0));
  loss.clear();
  loss.gradient.logits.setZero(num_tokens, num_experts);
  detail::for_rows(num_tokens, threads, [&](Index t) {
    for (Index e = 0; counted(t) && e < num_experts; ++e) {
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
      term[static_cast<std::size_t>(t)] += share * (positive + log1p(exp(-abs(z))));
      const T slope = share * kernels::sigmoid(z);
      loss.gradient.logits(t, e) = has ? T(-slope) : slope;
    }
  });
  loss.value = detail::sum_of_terms(term, counted);
}
template <Real T>
RoutingLoss<T> selection_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  RoutingLoss<T> loss;
  selection_loss(table, mask, loss);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
