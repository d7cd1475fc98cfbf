// SPDX-License-Identifier: Apache-2.0
// Balance without a loss: a router's selection bias follows the load of its experts. It takes part
// in the choice alone, so no gradient is disturbed.
//
//   by count      bias += rate * sign(mean - choices)  (Wang et al. 2024; DeepSeek-V3), or in
//                 proportion to how far an expert is off
//   by quantile   bias = what would have made the choices of a batch even (Megatron-LM 2026,
//                 quantile balancing)
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "expert_load.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

enum class BiasRule { sign, proportional };

struct BiasUpdate {
  double rate = 1e-3;
  BiasRule rule = BiasRule::sign;
  double limit = std::numeric_limits<double>::infinity();  ///< of each bias, either side of 0
  bool centre = false;  ///< their mean is taken off: only differences matter to a choice

  void validate() const {
    detail::throw_unless(std::isfinite(rate) && rate >= 0.0, "BiasUpdate: rate = ", rate,
                         ", expected finite and at least 0");
    detail::check_enum(rule, BiasRule::proportional, "BiasUpdate: rule");
    detail::throw_unless(limit > 0.0, "BiasUpdate: limit = ", limit, ", expected positive");
  }
};

namespace detail {

template <class W>
void take_mean_off(Matrix<W>& bias) {
  if (bias.size() > 0) {
    bias.array() -= bias.mean();
  }
}

template <class W>
void check_bias(const Matrix<W>& bias, Index num_experts) {
  using std::isfinite;
  throw_unless(bias.size() == num_experts, "selection_bias has ", bias.size(),
               " numbers, expected one for each of ", num_experts, " experts");
  for (Index e = 0; e < bias.size(); ++e) {
    throw_unless(isfinite(bias.data()[e]), "selection_bias of expert ", e, " is ", bias.data()[e],
                 ", expected finite");
  }
}

}  // namespace detail

/// bias (1, E) += by the load of a step, of all its micro-batches; nothing without choices. The
/// rule `proportional` moves it by rate * (1 - choices / mean). The bias is
/// router().params().selection_bias. Evaluation is not to be counted. Throws std::invalid_argument
/// if it has not one finite number an expert, or an update breaks its rules or is not finite in W.
template <Real W>
void update_selection_bias(Matrix<W>& bias, const ExpertLoad& load, const BiasUpdate& update = {}) {
  using std::isfinite;
  update.validate();
  detail::check_bias(bias, static_cast<Index>(load.choices().size()));
  // An expert with all of the choices is off by the number of the others.
  detail::throw_unless(isfinite(static_cast<W>(update.rate * static_cast<double>(bias.size()))),
                       "BiasUpdate: rate = ", update.rate, ", expected so small that ", bias.size(),
                       " times it is finite in the scalar of the bias");
  const double mean = load.mean();
  if (mean <= 0.0) {
    return;
  }
  for (Index e = 0; e < bias.size(); ++e) {
    const double off =
        1.0 - static_cast<double>(load.choices()[static_cast<std::size_t>(e)]) / mean;
    const double sign = off > 0.0 ? 1.0 : off < 0.0 ? -1.0 : 0.0;
    const double by = update.rule == BiasRule::sign ? sign : off;
    bias.data()[e] += static_cast<W>(update.rate * by);
  }
  if (update.centre) {
    detail::take_mean_off(bias);
  }
  const W limit = static_cast<W>(update.limit);
  bias = bias.cwiseMax(-limit).cwiseMin(limit);
}

/// Moves bias (1, E) by `rate`, in [0, 1], towards the one that gives every expert K N / E of the
/// table's tokens: a token's threshold is its (K + 1)-th best score and bias, and an expert's bias
/// what takes so many of its scores above the thresholds; its mean is taken off. Scores are
/// table.probs, as a router with Score::sigmoid selects by. Padding has no say, nor
/// has a token with a NaN. Throws std::invalid_argument on another shape or rate, or a bias that is
/// not finite, and nothing happens if K is E or there are no tokens. Allocates.
template <Real W>
void balance_by_quantile(const RoutingTable<W>& table, double rate, Matrix<W>& bias) {
  const Index num_experts = table.probs.cols(), top_k = table.top_k();
  detail::check_bias(bias, num_experts);
  detail::throw_unless(rate >= 0.0 && rate <= 1.0, "balance_by_quantile: rate = ", rate,
                       ", expected in [0, 1]");
  detail::check_shape(table.probs, table.num_tokens(), num_experts, "balance_by_quantile: probs");
  std::vector<Index> tokens;
  for (Index t = 0; t < table.num_tokens(); ++t) {
    if (!table.is_padding(t) && !table.probs.row(t).hasNaN()) {
      tokens.push_back(t);
    }
  }
  if (tokens.empty() || top_k >= num_experts) {
    return;
  }
  std::vector<W> threshold, values(static_cast<std::size_t>(num_experts));
  for (const Index t : tokens) {
    for (Index e = 0; e < num_experts; ++e) {
      values[static_cast<std::size_t>(e)] = table.probs(t, e) + bias.data()[e];
    }
    std::nth_element(values.begin(), values.begin() + top_k, values.end(), std::greater<W>());
    threshold.push_back(values[static_cast<std::size_t>(top_k)]);
  }
  const std::ptrdiff_t share = std::ssize(tokens) * top_k / num_experts;
  values.resize(tokens.size());
  for (Index e = 0; e < num_experts; ++e) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      values[i] = table.probs(tokens[i], e) - threshold[i];
    }
    const auto at = values.begin() + (std::min)(share, std::ssize(values) - 1);
    std::nth_element(values.begin(), at, values.end(), std::greater<W>());
    bias.data()[e] += static_cast<W>(rate) * (-*at - bias.data()[e]);
  }
  detail::take_mean_off(bias);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
