// SPDX-License-Identifier: Apache-2.0
// The loss that keeps logits small, so that a softmax of them is exact enough in few bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../detail/check.hpp"
#include "../kernels/softmax.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The mean of log(sum_e exp(logit_e))^2 (Zoph 2022, ST-MoE, eq. 5).
template <Real T>
void z_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
            int num_threads = 0) {
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = table.logits.cols(), num_tokens = table.num_tokens();
  detail::check_shape(table.logits, num_tokens, num_experts, "z_loss: logits");
  const int threads = detail::loss_threads(table, num_experts, 16.0, num_threads);
  const T share = T(1.0 / static_cast<double>((std::max)(counted.count(), Index{1})));
  std::vector<T>& term = loss.memory.term;
  term.assign(static_cast<std::size_t>(num_tokens), T(0));
  loss.clear();
  loss.gradient.logits.setZero(num_tokens, num_experts);
  detail::for_rows(num_tokens, threads, [&](Index t) {
    if (!counted(t)) {
      return;
    }
    const T* logits = &table.logits.coeffRef(t, 0);
    const T sum = kernels::log_sum_exp(logits, num_experts);
    if (sum < Eigen::NumTraits<T>::lowest()) {
      return;  // every expert is masked
    }
    term[static_cast<std::size_t>(t)] = share * sum * sum;
    kernels::softmax(logits, num_experts, &loss.gradient.logits.coeffRef(t, 0));
    loss.gradient.logits.row(t) *= T(2) * share * sum;
  });
  loss.value = detail::sum_of_terms(term, counted);
}
template <Real T>
RoutingLoss<T> z_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  RoutingLoss<T> loss;
  z_loss(table, mask, loss);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
