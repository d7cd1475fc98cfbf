// SPDX-License-Identifier: Apache-2.0
// The loss that evens out how many tokens each expert may expect. A count has no derivative; where
// the router adds noise, the probability to be chosen has one.
#pragma once

#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

#include "../detail/check.hpp"
#include "../kernels/softmax.hpp"
#include "../kernels/topk.hpp"
#include "../routing_table.hpp"
#include "loss.hpp"
#include "variation.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// body(t, e, rival, z) for each logit of a counted token that is not masked: z = (clean -
/// threshold) / scale, where the threshold is the logit of the rival, or e is chosen whatever its
/// noise: the rival is `none` and z infinite.
template <Real T, class Body>
void for_each_margin(const RoutingTable<T>& table, const CountedTokens<T>& counted, Body&& body) {
  const auto is_masked = [](T logit) { return logit < Eigen::NumTraits<T>::lowest(); };
  const Index num_experts = table.logits.cols(), top_k = table.top_k();
  if (top_k == 0 || top_k >= num_experts) {
    return;  // no expert has a rival
  }
  std::vector<ExpertId> best(static_cast<std::size_t>(top_k + 1));
  for (Index t = 0; t < table.num_tokens(); ++t) {
    if (!counted(t)) {
      continue;
    }
    const T* logits = &table.logits.coeffRef(t, 0);
    kernels::top_k(logits, nullptr, num_experts, top_k + 1, best.data());
    const ExpertId last = best[static_cast<std::size_t>(top_k - 1)];
    for (Index e = 0; e < num_experts; ++e) {
      if (is_masked(logits[e])) {
        continue;  // its load is 0
      }
      const bool chosen = e == last || kernels::ranks_above(logits[e], logits[last]) ||
                          (e < last && !kernels::ranks_above(logits[last], logits[e]));
      const Index rival = best[static_cast<std::size_t>(chosen ? top_k : top_k - 1)];
      if (is_masked(logits[rival])) {
        body(t, e, none, T(-kernels::minus_infinity<T>()));
      } else {
        body(t, e, rival, T((table.clean_logits(t, e) - logits[rival]) / table.noise_scale(t, e)));
      }
    }
  }
}

}  // namespace detail

/// The squared coefficient of variation of the experts' expected loads (Shazeer 2017, eq. 8 to 11):
/// load_e = sum_t Phi((clean_te - threshold_te) / scale_te), the probability that e is chosen if
/// its own noise is drawn again; the threshold is the k-th largest noisy logit of the others.
/// Throws std::invalid_argument if the table was made without noise.
template <Real T>
RoutingLoss<T> load_loss(const RoutingTable<T>& table, TokenMask mask = {}) {
  using std::erfc, std::exp;
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_tokens = table.num_tokens(), num_experts = table.logits.cols();
  detail::check_shape(table.logits, num_tokens, num_experts, "load_loss: logits");
  detail::check_shape(table.clean_logits, num_tokens, num_experts, "load_loss: clean_logits");
  detail::check_shape(table.noise_scale, num_tokens, num_experts, "load_loss: noise_scale");

  std::vector<T> load(static_cast<std::size_t>(num_experts), T(0)), slope;
  detail::for_each_margin(table, counted, [&](Index, Index e, Index, const T& z) {
    load[static_cast<std::size_t>(e)] += T(0.5) * erfc(z * T(-1.0 / std::numbers::sqrt2));
  });
  RoutingLoss<T> loss;
  loss.value = detail::squared_variation(load, slope);
  loss.gradient.logits.setZero(num_tokens, num_experts);
  loss.gradient.noise_scale.setZero(num_tokens, num_experts);
  detail::for_each_margin(table, counted, [&](Index t, Index e, Index rival, const T& z) {
    const T density = T(std::numbers::inv_sqrtpi / std::numbers::sqrt2) * exp(T(-0.5) * z * z);
    if (rival == none || density <= T(0)) {
      return;  // also where the scale is 0
    }
    const T scale = table.noise_scale(t, e);
    const T dclean = slope[static_cast<std::size_t>(e)] * density / scale;
    // logits = clean + noise * scale: what flows to clean alone is taken back from the scale.
    const T noise = (table.logits(t, e) - table.clean_logits(t, e)) / scale;
    loss.gradient.logits(t, e) += dclean;
    loss.gradient.logits(t, rival) -= dclean;
    loss.gradient.noise_scale(t, e) -= dclean * (noise + z);
  });
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
