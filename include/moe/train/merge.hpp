// SPDX-License-Identifier: Apache-2.0
// Fewer experts: groups of them become one each, their mean by load or saliency, and the router has
// a row for each group (Li et al. 2024, Merge, Then Compress).
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "prune.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// (E) of each expert in its group. Throws std::invalid_argument unless every group up to the last
/// has an expert, and weights are finite and at least 0; where they are all 0 they count as equal.
inline std::vector<double> shares_in_groups(std::span<const ExpertId> group,
                                            std::span<const double> weight, Index num_groups) {
  std::vector<double> sum(static_cast<std::size_t>(num_groups), 0.0), members = sum, share;
  for (std::size_t e = 0; e < group.size(); ++e) {
    throw_unless(std::isfinite(weight[e]) && weight[e] >= 0.0, "merge_experts: weight ", e, " is ",
                 weight[e], ", expected finite and at least 0");
    sum[static_cast<std::size_t>(group[e])] += weight[e];
    members[static_cast<std::size_t>(group[e])] += 1.0;
  }
  for (std::size_t g = 0; g < sum.size(); ++g) {
    throw_unless(members[g] > 0.0, "merge_experts: group ", g, " has no expert, expected one");
    throw_unless(std::isfinite(sum[g]), "merge_experts: the weights of group ", g, " add up to ",
                 sum[g], ", expected a finite sum");
  }
  for (std::size_t e = 0; e < group.size(); ++e) {
    const auto g = static_cast<std::size_t>(group[e]);
    share.push_back(sum[g] > 0.0 ? weight[e] / sum[g] : 1.0 / members[g]);
  }
  return share;
}

/// of(e) times its share, added up over the experts of a group that have one, and rounded once.
template <class W, class Of>
Matrix<W> mean_of_group(std::span<const ExpertId> group, ExpertId number,
                        std::span<const double> share, Of&& of) {
  Matrix<double> sum;
  for (std::size_t e = 0; e < group.size(); ++e) {
    if (group[e] == number && share[e] > 0.0) {
      const Matrix<double> part = share[e] * of(e).template cast<double>();
      sum = sum.size() == 0 ? part : Matrix<double>(sum + part);
    }
  }
  return sum.unaryExpr([](double value) { return kernels::convert<W>(value); });
}

/// A router's tensor with the means of groups where it has something of each expert.
template <class W>
void merge_rows(Matrix<W>& tensor, std::span<const ExpertId> group, std::span<const double> share,
                Index num_groups) {
  const bool is_vector = tensor.rows() == 1;
  if (!is_of_experts(tensor, std::ssize(group))) {
    return;
  }
  Matrix<W> merged(is_vector ? 1 : num_groups, is_vector ? num_groups : tensor.cols());
  for (Index g = 0; g < num_groups; ++g) {
    const auto mean = mean_of_group<W>(group, static_cast<ExpertId>(g), share, [&](std::size_t e) {
      const Index i = static_cast<Index>(e);
      return is_vector ? Matrix<W>(tensor.col(i)) : Matrix<W>(tensor.row(i));
    });
    if (is_vector) {
      merged(0, g) = mean(0, 0);
    } else {
      merged.row(g) = mean;
    }
  }
  tensor = std::move(merged);
}

}  // namespace detail

/// The layer whose expert g is the mean of the experts e with group[e] == g, by weight[e] (their
/// load, or ExpertSaliency::values()), and whose router has the same mean of their rows. Experts of
/// one origin, as upcycled copies, have means that go on from them; of others hidden units do not
/// correspond. Groups of one expert each give the same layer; a token that chose several experts of
/// a group chooses others in the place of all but one. Throws std::invalid_argument if the spans
/// have not one number an expert, a group is empty, there are fewer than top_k, the experts of one
/// differ in width or kind, or the router selects as keep_experts() does not take it.
template <Real T>
MoELayer<T> merge_experts(const MoELayer<T>& layer, std::span<const ExpertId> group,
                          std::span<const double> weight) {
  layer.check_params({});
  const Index num_experts = layer.num_experts();
  const Router<T>& router = layer.router();
  detail::check_selects_by_scores(router, "merge_experts");
  detail::throw_unless(std::ssize(group) == num_experts && std::ssize(weight) == num_experts,
                       "merge_experts: there are ", group.size(), " groups and ", weight.size(),
                       " weights, expected one for each of ", num_experts, " experts");
  for (const ExpertId g : group) {
    detail::throw_unless(g >= 0 && g < num_experts, "merge_experts: group ", g,
                         ", expected in [0, ", num_experts, ")");
  }
  const Index num_groups = *std::max_element(group.begin(), group.end()) + 1;
  detail::throw_unless(num_groups >= router.top_k(), "merge_experts: there are ", num_groups,
                       " groups, expected at least top_k = ", router.top_k());
  const std::vector<double> share = detail::shares_in_groups(group, weight, num_groups);
  RouterParams<Wide<T>> params = router.params();
  RouterParams<Wide<T>>::for_each(
      [&](std::string_view, auto& tensor) { detail::merge_rows(tensor, group, share, num_groups); },
      params);
  std::vector<Expert<T>> experts;
  for (ExpertId g = 0; g < num_groups; ++g) {
    const auto first =
        static_cast<std::size_t>(std::find(group.begin(), group.end(), g) - group.begin());
    for (std::size_t e = first; e < group.size(); ++e) {
      const Index d_ff = layer.experts()[e].d_ff(), expected = layer.experts()[first].d_ff();
      detail::throw_unless(group[e] != g || d_ff == expected, "merge_experts: expert ", e,
                           " has width ", d_ff, ", expected that of its group, ", expected);
      detail::throw_unless(
          group[e] != g || layer.experts()[e].config() == layer.experts()[first].config(),
          "merge_experts: expert ", e, " is of another kind than expert ", first, " of its group");
    }
    ExpertParams<T> merged = layer.experts()[first].params();
    const auto merge = [&](Matrix<T> ExpertParams<T>::*tensor) {
      if ((merged.*tensor).size() > 0) {
        merged.*tensor = detail::mean_of_group<T>(
            group, g, share,
            [&](std::size_t e) -> const Matrix<T>& { return layer.experts()[e].params().*tensor; });
      }
    };
    using P = ExpertParams<T>;
    for (const auto tensor :
         {&P::gate, &P::up, &P::down, &P::gate_bias, &P::up_bias, &P::down_bias, &P::output_gate}) {
      merge(tensor);
    }
    experts.emplace_back(std::move(merged), layer.experts()[first].config());
  }
  return MoELayer<T>(Router<T>(std::move(params), router.top_k(), router.config()),
                     std::move(experts), layer.options(), layer.shared(), layer.extras());
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
