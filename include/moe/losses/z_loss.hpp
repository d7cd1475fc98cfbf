// SPDX-License-Identifier: Apache-2.0
// The loss that keeps logits small, so that a softmax of them is exact enough in few bits.
#pragma once

#include <cstddef>

#include "../kernels/softmax.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The mean of log(sum_e exp(logit_e))^2 (Zoph 2022, ST-MoE).
template <Real T>
void z_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
            int num_threads = 0) {
  const detail::LogitLoss<T> over(table, mask, loss, num_threads, "z_loss");
  detail::for_rows(table.num_tokens(), over.threads, [&](Index t) {
    if (!over.counted(t)) {
      return;
    }
    const T* logits = &table.logits.coeffRef(t, 0);
    const T sum = kernels::log_sum_exp(logits, over.num_experts);
    if (sum < Eigen::NumTraits<T>::lowest()) {
      return;  // every expert is masked
    }
    over.term[static_cast<std::size_t>(t)] = over.share * sum * sum;
    kernels::softmax(logits, over.num_experts, &loss.gradient.logits.coeffRef(t, 0));
    loss.gradient.logits.row(t) *= T(2) * over.share * sum;
  });
  loss.value = detail::sum_of_terms(over.term, over.counted);
}
template <Real T>
RoutingLoss<T> z_loss(const RoutingTable<T>& table, TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  z_loss(table, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
