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
#include "gate.hpp"

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

/// NaN where an expert has an infinite logit that no mask has made, and a finite score; allowed
/// (E), 0 masks, or empty: no mask.
inline Row score(Score kind, const Row& logits, const std::vector<std::uint8_t>& allowed = {}) {
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
  for (std::size_t e = 0; e < p.size(); ++e) {
    const bool masked = !allowed.empty() && allowed[e] == 0;
    p[e] = !masked && std::isinf(logits[e]) && std::isfinite(p[e]) ? std::nan("") : p[e];
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

/// The experts of `order`, best first, that stand for the group they are in: of the groups that
/// are kept, or so many of each. Ranks (E) of the others become 0 where they are to be.
inline std::vector<Index> limited(const GroupLimit& limit, Index top_k, std::vector<Index> order,
                                  Row& rank) {
  const Index size = static_cast<Index>(rank.size()) / limit.num_groups;
  std::vector<Row> groups(static_cast<std::size_t>(limit.num_groups));  // ranks, best first
  std::vector<std::size_t> by_score(groups.size());
  std::vector<Index> left;
  const auto group_of = [&](Index e) { return static_cast<std::size_t>(e / size); };
  for (const Index e : order) {
    Row& group = groups[group_of(e)];
    group.push_back(rank[static_cast<std::size_t>(e)]);
    if (static_cast<Index>(group.size()) <= top_k / limit.num_groups) {
      left.push_back(e);
    }
  }
  if (limit.rule == GroupRule::equal_quota) {
    return left;
  }
  const auto score = [&](std::size_t g) {
    const bool two = limit.rule == GroupRule::sum_of_two_best && groups[g].size() > 1;
    return groups[g][0] + (two ? groups[g][1] : 0.0);
  };
  std::iota(by_score.begin(), by_score.end(), 0);
  std::erase_if(by_score, [&](std::size_t g) { return groups[g].empty(); });
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](std::size_t a, std::size_t b) { return is_before(score(a), score(b)); });
  by_score.resize((std::min)(by_score.size(), static_cast<std::size_t>(limit.kept)));
  const auto is_out = [&](Index e) {
    return std::find(by_score.begin(), by_score.end(), group_of(e)) == by_score.end();
  };
  if (limit.others == OtherGroups::minus_infinity) {
    std::erase_if(order, is_out);
  }
  for (const Index e : order) {
    rank[static_cast<std::size_t>(e)] = is_out(e) ? 0.0 : rank[static_cast<std::size_t>(e)];
  }
  std::sort(order.begin(), order.end());
  return order;
}

/// One token's choices, without noise. Writes the scores of all experts to probs.
template <Real W>
std::vector<Choice> route(const RouterParams<W>& p, const RouterConfig& config, const Asked& asked,
                          const Row& x, Row& probs) {
  Row logits = capped(config.logits, linear(p.weight, p.bias, x));
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
  probs = score(config.score, logits, asked.allowed);

  const auto at = [](const Row& row, Index e) { return row[static_cast<std::size_t>(e)]; };
  const auto& selection = config.selection;
  Row rank = selection.bias || selection.groups ? probs : logits;
  const auto ranked = rank.size() - static_cast<std::size_t>(selection.always);
  for (std::size_t e = 0; selection.bias && e < ranked; ++e) {
    rank[e] += static_cast<double>(p.selection_bias(0, static_cast<Index>(e)));
  }
  const auto sort = [&] {
    std::stable_sort(order.begin(), order.end(),
                     [&](Index a, Index b) { return is_before(at(rank, a), at(rank, b)); });
  };
  if (asked.experts.empty()) {
    const auto first_always = std::find_if(
        order.begin(), order.end(), [&](Index e) { return e >= static_cast<Index>(ranked); });
    const std::vector<Index> always(first_always, order.end());
    order.erase(first_always, order.end());
    sort();
    if (selection.groups) {
      order = limited(*selection.groups, asked.top_k, order, rank);
      sort();
    }
    order.resize(
        (std::min)(order.size(), static_cast<std::size_t>(asked.top_k - selection.always)));
    order.insert(order.end(), always.begin(), always.end());
  } else {
    order.clear();
    std::copy_if(asked.experts.begin(), asked.experts.end(), std::back_inserter(order),
                 [](ExpertId e) { return e != none; });
  }
  Row weight;
  for (const Index e : order) {
    switch (config.weight.source) {
      case WeightSource::score:
        weight.push_back(at(probs, e));
        break;
      case WeightSource::biased_score:
        weight.push_back(at(probs, e) + static_cast<double>(p.selection_bias(0, e)));
        break;
      case WeightSource::softmax_of_chosen:
        weight.push_back(at(logits, e));
        break;
      case WeightSource::one:
        weight.push_back(1.0);
    }
  }
  if (config.weight.source == WeightSource::softmax_of_chosen) {
    weight = softmax(weight);
  }
  double sum = 1.0;
  const double epsilon = config.weight.epsilon;
  if (config.weight.renormalises(asked.top_k) &&
      config.weight.source != WeightSource::softmax_of_chosen) {
    sum = std::accumulate(weight.begin(), weight.end(), 0.0);
    sum = config.weight.epsilon_rule == EpsilonRule::added ? sum + epsilon
          : sum < epsilon                                  ? epsilon
                                                           : sum;
  }
  std::vector<Choice> choices;
  for (std::size_t k = 0; k < order.size(); ++k) {
    const ExpertScale kind = config.weight.expert_scale;
    const Index of = kind == ExpertScale::learned_for_all ? 0 : order[k];
    const double scale =
        kind == ExpertScale::off ? 1.0 : static_cast<double>(p.expert_scale(0, of));
    choices.push_back({order[k], config.weight.scale * weight[k] / sum * scale});
  }
  return choices;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
