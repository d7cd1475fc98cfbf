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

/// best (K + 1) = the experts of a token's largest logits. False, and best is not written, where no
/// expert has a rival.
template <Real T>
bool find_rivals(const RoutingTable<T>& table, Index token, ExpertId* best) {
  const Index num_experts = table.logits.cols(), top_k = table.top_k();
  if (top_k == 0 || top_k >= num_experts) {
    return false;
  }
  kernels::top_k(&table.logits.coeffRef(token, 0), nullptr, num_experts, top_k + 1, best);
  return true;
}

/// body(e, rival, z) for each logit of a token that is not masked: z = (clean - threshold) / scale,
/// where the threshold is the logit of the rival, or e is chosen whatever its noise: the rival is
/// `none` and z infinite. Without any noise z is infinite by what was chosen, ties as well. best is
/// that of find_rivals.
template <Real T, class Body>
void for_each_margin(const RoutingTable<T>& table, Index token, const ExpertId* best, Body&& body) {
  const auto is_masked = [](T logit) { return logit < Eigen::NumTraits<T>::lowest(); };
  const Index num_experts = table.logits.cols(), top_k = table.top_k();
  const T* logits = &table.logits.coeffRef(token, 0);
  const ExpertId last = best[top_k - 1];
  for (Index e = 0; e < num_experts; ++e) {
    if (is_masked(logits[e])) {
      continue;  // its load is 0
    }
    const bool chosen = e == last || kernels::ranks_above(logits[e], logits[last]) ||
                        (e < last && !kernels::ranks_above(logits[last], logits[e]));
    const Index rival = best[chosen ? top_k : top_k - 1];
    if (is_masked(logits[rival])) {
      body(e, Index{none}, T(-kernels::minus_infinity<T>()));
    } else {
      const T scale = table.noise_scale(token, e), low = kernels::minus_infinity<T>();
      body(e, rival,
           scale <= T(0) ? T(chosen ? -low : low)
                         : T((table.clean_logits(token, e) - logits[rival]) / scale));
    }
  }
}

/// gradient += that of a loss whose derivatives by the loads are `slope`, for one token.
template <Real T>
void add_load_gradient(const RoutingTable<T>& table, Index token, const ExpertId* best,
                       const std::vector<T>& slope, RoutingGradient<T>& gradient) {
  using std::exp;
  for_each_margin(table, token, best, [&](Index e, Index rival, const T& z) {
    const T density = T(std::numbers::inv_sqrtpi / std::numbers::sqrt2) * exp(T(-0.5) * z * z);
    if (rival == none || density <= T(0)) {
      return;  // also where the scale is 0
    }
    const T scale = table.noise_scale(token, e);
    const T dclean = slope[static_cast<std::size_t>(e)] * density / scale;
    // logits = clean + noise * scale: what flows to clean alone is taken back from the scale.
    const T noise = (table.logits(token, e) - table.clean_logits(token, e)) / scale;
    gradient.logits(token, e) += dclean;
    gradient.logits(token, rival) -= dclean;
    gradient.noise_scale(token, e) -= dclean * (noise + z);
  });
}

}  // namespace detail

/// The squared coefficient of variation of the experts' expected loads (Shazeer 2017): load_e =
/// sum_t Phi((clean_te - threshold_te) / scale_te), the probability that e is chosen if its own
/// noise is drawn again; the threshold is the k-th largest noisy logit of the others.
/// Throws std::invalid_argument if the table was made without noise.
template <Real T>
void load_loss(const RoutingTable<T>& table, TokenMask mask, RoutingLoss<T>& loss,
               int num_threads = 0) {
  using std::erfc;
  const detail::CountedTokens<T> counted(table, mask);
  const Index num_tokens = table.num_tokens(), num_experts = table.logits.cols();
  detail::check_written(table.logits, num_tokens, num_experts, "load_loss", "logits");
  detail::check_written(table.clean_logits, num_tokens, num_experts, "load_loss", "clean_logits");
  detail::check_written(table.noise_scale, num_tokens, num_experts, "load_loss",
                        "noise_scale (of noisy logits)");
  const int threads = detail::loss_threads(table, num_experts, 32.0, num_threads);
  detail::LossMemory<T>& memory = loss.memory;
  GrowingMatrix<T>& share = loss.gradient.logits;  // of the loads, until these are known
  loss.clear();
  share.setZero(num_tokens, num_experts);
  memory.best.setConstant(num_tokens, table.top_k() + 1, none);
  detail::for_rows(num_tokens, threads, [&](Index t) {
    ExpertId* best = &memory.best.coeffRef(t, 0);
    if (counted(t) && detail::find_rivals(table, t, best)) {
      detail::for_each_margin(table, t, best, [&](Index e, Index, const T& z) {
        share(t, e) = T(0.5) * erfc(z * T(-1.0 / std::numbers::sqrt2));
      });
    }
  });
  using Sum = detail::TokenSum<T>;
  memory.sum.assign(static_cast<std::size_t>(num_experts), Sum(0));
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index e = 0; e < num_experts; ++e) {
      memory.sum[static_cast<std::size_t>(e)] += static_cast<Sum>(share(t, e));
    }
  }
  loss.value = static_cast<T>(detail::squared_variation(memory.sum, memory.slope));
  share.setZero();
  loss.gradient.noise_scale.setZero(num_tokens, num_experts);
  detail::for_rows(num_tokens, threads, [&](Index t) {
    if (const ExpertId* best = &memory.best.coeffRef(t, 0); best[0] != none) {
      detail::add_load_gradient(table, t, best, memory.slope, loss.gradient);
    }
  });
}
template <Real T>
RoutingLoss<T> load_loss(const RoutingTable<T>& table, TokenMask mask = {}, int num_threads = 0) {
  RoutingLoss<T> loss;
  load_loss(table, mask, loss, num_threads);
  return loss;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
