// SPDX-License-Identifier: Apache-2.0
// One token through the router, in plain loops and in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <vector>

#include "../routing/router.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// What one token's routing comes to.
struct Choice {
  Index expert;
  double weight;
  bool kept = true;
};
using Routing = std::vector<std::vector<Choice>>;  // per token, best first

inline Row softmax(const Row& z) {
  Row p = z;
  double max = -std::numeric_limits<double>::infinity(), sum = 0.0;
  for (const double value : z) {
    max = (std::max)(max, value);
  }
  for (double& value : p) {
    sum += value = std::exp(value - max);
  }
  for (double& value : p) {
    value /= sum;
  }
  return p;
}

inline Row score(Score kind, const Row& logits) {
  Row p = logits;
  switch (kind) {
    case Score::softmax:
      return softmax(logits);
    case Score::sigmoid:
      std::transform(logits.begin(), logits.end(), p.begin(), sigmoid);
      break;
    case Score::sqrt_softplus:
      std::transform(logits.begin(), logits.end(), p.begin(),
                     [](double z) { return std::sqrt(z > 40 ? z : std::log1p(std::exp(z))); });
      break;
    case Score::identity:
      break;
  }
  return p;
}

/// The order of selection: larger first, every number before NaN.
inline bool is_before(double a, double b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

/// What a call asks of one token's routing.
struct Asked {
  Index top_k;
  std::vector<std::uint8_t> allowed = {};  // 0 masks an expert; empty allows all
  std::vector<ExpertId> experts = {};      // those to take, but for `none`; empty: the best
};

/// One token's choices, without noise. Writes the scores of all experts to probs.
template <Real W>
std::vector<Choice> route(const RouterParams<W>& p, const RouterConfig& config, const Asked& asked,
                          const Row& x, Row& probs) {
  Row logits = linear(p.weight, p.bias, x);
  if (const double cap = config.logits.softcap; cap > 0.0) {
    for (double& z : logits) {
      z = std::isinf(z) ? std::nan("") : cap * std::tanh(z / cap);
    }
  }
  std::vector<Index> order;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (asked.allowed.empty() || asked.allowed[e] != 0) {
      order.push_back(static_cast<Index>(e));
    } else {
      logits[e] = -std::numeric_limits<double>::infinity();
    }
  }
  if (order.empty()) {
    probs.assign(logits.size(), 0.0);
    return {};
  }
  probs = score(config.score, logits);

  const auto at = [](const Row& row, Index e) { return row[static_cast<std::size_t>(e)]; };
  const auto rank = [&](Index e) {
    return config.selection.bias ? at(probs, e) + static_cast<double>(p.selection_bias(0, e))
                                 : at(logits, e);
  };
  if (asked.experts.empty()) {
    std::stable_sort(order.begin(), order.end(),
                     [&](Index a, Index b) { return is_before(rank(a), rank(b)); });
    order.resize((std::min)(order.size(), static_cast<std::size_t>(asked.top_k)));
  } else {
    order.clear();
    std::copy_if(asked.experts.begin(), asked.experts.end(), std::back_inserter(order),
                 [](ExpertId e) { return e != none; });
  }
  Row weight;
  for (const Index e : order) {
    weight.push_back(config.weight.source == WeightSource::score ? at(probs, e)
                     : config.weight.source == WeightSource::one ? 1.0
                                                                 : at(logits, e));
  }
  if (config.weight.source == WeightSource::softmax_of_chosen) {
    weight = softmax(weight);
  }
  const double sum = config.weight.renormalises(asked.top_k)
                         ? std::accumulate(weight.begin(), weight.end(), 1e-20)
                         : 1.0;
  std::vector<Choice> choices;
  for (std::size_t k = 0; k < order.size(); ++k) {
    choices.push_back({order[k], config.weight.scale * weight[k] / sum});
  }
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
