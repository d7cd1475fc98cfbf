// SPDX-License-Identifier: Apache-2.0
// The loss that keeps logits small, so that a softmax of them is exact enough in few bits.
#pragma once

#include "../detail/check.hpp"
#include "../kernels/softmax.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The mean of log(sum_e exp(logit_e))^2 (Zoph 2022, ST-MoE, eq. 5).
template <Real T>
RoutingLoss<T> z_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_experts = table.logits.cols();
  detail::check_shape(table.logits, table.num_tokens(), num_experts, "z_loss: logits");
  RoutingLoss<T> loss;
  loss.gradient.logits.setZero(table.num_tokens(), num_experts);
  for (Index t = 0; t < table.num_tokens(); ++t) {
    if (!counted(t)) {
      continue;
    }
    const T* logits = &table.logits.coeffRef(t, 0);
    const T sum = kernels::log_sum_exp(logits, num_experts);
    if (sum < Eigen::NumTraits<T>::lowest()) {
      continue;  // every expert is masked
    }
    const T share = T(1.0 / static_cast<double>(counted.count()));
    loss.value += share * sum * sum;
    kernels::softmax(logits, num_experts, &loss.gradient.logits(t, 0));
    loss.gradient.logits.row(t) *= T(2) * share * sum;
  }
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
