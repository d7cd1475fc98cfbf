// SPDX-License-Identifier: Apache-2.0
// Fewer experts: which of them matter, and the layer without the others.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "../kernels/topk.hpp"
#include "../layers/moe_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Saliency of experts: the mean, over the tokens that an expert had, of weight times the norm of
/// its output (Lasby et al. 2025, REAP), or of that norm where the weight is in the output already.
/// Counted over the calls of a calibration set.
class ExpertSaliency {
 public:
  /// `weight_on` is that of the layer's options().
  explicit ExpertSaliency(Index num_experts, WeightOn weight_on = WeightOn::output)
      : weighs_(weight_on == WeightOn::output) {
    detail::throw_unless(num_experts >= 1, "ExpertSaliency: num_experts = ", num_experts,
                         ", expected at least 1");
    sum_.assign(static_cast<std::size_t>(num_experts), 0.0);
    rows_.assign(sum_.size(), 0);
  }

  /// One more forward: what its scratch holds. Throws std::invalid_argument if that is of another
  /// number of experts.
  template <class Scratch>
  void add(const Scratch& scratch) {
    const RowGroups groups = scratch.plan.groups();
    detail::throw_unless(groups.num_experts() == std::ssize(sum_), "ExpertSaliency: a call of ",
                         groups.num_experts(), " experts, expected ", sum_.size());
    for (std::size_t e = 0; e < sum_.size(); ++e) {
      const Index expert = static_cast<Index>(e);
      for (Index row = groups.begin(expert); row < groups.end(expert); ++row) {
        const double weight =
            weighs_ ? static_cast<double>(scratch.row_weight[static_cast<std::size_t>(row)]) : 1.0;
        sum_[e] += weight * scratch.rows.row(row).template cast<double>().norm();
      }
      rows_[e] += groups.end(expert) - groups.begin(expert);
    }
  }

  /// Of each expert; 0 of one that had no token.
  std::vector<double> values() const {
    std::vector<double> mean(sum_.size());
    for (std::size_t e = 0; e < mean.size(); ++e) {
      mean[e] = rows_[e] > 0 ? sum_[e] / static_cast<double>(rows_[e]) : 0.0;
    }
    return mean;
  }
  /// The `count` experts of the largest saliency, by number. Ties: the lowest; NaN: the last.
  std::vector<ExpertId> best(Index count) const {
    detail::throw_unless(count >= 1 && count <= std::ssize(sum_), "ExpertSaliency: count = ", count,
                         ", expected in [1, ", sum_.size(), "]");
    const std::vector<double> value = values();
    std::vector<ExpertId> all(value.size());
    std::iota(all.begin(), all.end(), ExpertId{0});
    std::stable_sort(all.begin(), all.end(), [&](ExpertId a, ExpertId b) {
      return kernels::ranks_above(value[static_cast<std::size_t>(a)],
                                  value[static_cast<std::size_t>(b)]);
    });
    all.resize(static_cast<std::size_t>(count));
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  bool weighs_;
  std::vector<double> sum_;
  std::vector<Index> rows_;
};

namespace detail {

/// Throws std::invalid_argument unless every expert of a router is chosen by its score, so that it
/// has its own part of the router's tensors and nothing else.
template <class RouterT>
void check_selects_by_scores(const RouterT& router, const char* what) {
  const SelectionConfig& selection = router.config().selection;
  throw_unless(router.rule().table().size() == 0 && !selection.groups, what,
               ": the router selects by a table or by groups, expected neither");
  throw_unless(selection.always == 0, what, ": the router selects ", selection.always,
               " experts always, expected none");
}

/// Whether a router's tensor has a row, or of a vector a column, for each expert.
template <class W>
bool is_of_experts(const Matrix<W>& tensor, Index num_experts) {
  return num_experts > 1 && (tensor.rows() == 1 ? tensor.cols() : tensor.rows()) == num_experts;
}

/// The experts' part of a router's tensor: rows of a matrix, columns of a vector.
template <class W>
Matrix<W> part_of_experts(const Matrix<W>& tensor, Index num_experts,
                          std::span<const ExpertId> kept) {
  if (!is_of_experts(tensor, num_experts)) {
    return tensor;
  }
  const Index count = std::ssize(kept);
  const bool is_vector = tensor.rows() == 1;
  Matrix<W> part(is_vector ? 1 : count, is_vector ? count : tensor.cols());
  for (Index i = 0; i < count; ++i) {
    const ExpertId e = kept[static_cast<std::size_t>(i)];
    if (is_vector) {
      part(0, i) = tensor(0, e);
    } else {
      part.row(i) = tensor.row(e);
    }
  }
  return part;
}

}  // namespace detail

/// The layer with the experts `kept` alone, in their order, and what the router has for them. What
/// it computes is what it computed for tokens that chose none of the others, where weights do not
/// depend on the scores of experts that were not chosen (those that are renormalised do not).
/// Throws std::invalid_argument if they are not different experts of the layer, at least top_k, or
/// the router selects by a table, by groups, or some experts always.
template <Real T>
MoELayer<T> keep_experts(const MoELayer<T>& layer, std::span<const ExpertId> kept) {
  layer.check_params({});
  const Index num_experts = layer.num_experts();
  const Router<T>& router = layer.router();
  detail::throw_unless(std::ssize(kept) >= router.top_k(), "keep_experts: there are ", kept.size(),
                       ", expected at least top_k = ", router.top_k());
  detail::check_selects_by_scores(router, "keep_experts");
  std::vector<std::uint8_t> seen(static_cast<std::size_t>(num_experts), 0);
  for (const ExpertId e : kept) {
    detail::throw_unless(e >= 0 && e < num_experts, "keep_experts: expert ", e,
                         ", expected in [0, ", num_experts, ")");
    detail::throw_unless(seen[static_cast<std::size_t>(e)]++ == 0, "keep_experts: expert ", e,
                         " twice, expected once");
  }
  RouterParams<Wide<T>> params = router.params();
  RouterParams<Wide<T>>::for_each(
      [&](std::string_view, auto& tensor) {
        tensor = detail::part_of_experts(tensor, num_experts, kept);
      },
      params);
  std::vector<Expert<T>> experts;
  experts.reserve(kept.size());
  for (const ExpertId e : kept) {
    experts.push_back(layer.experts()[static_cast<std::size_t>(e)]);
  }
  return MoELayer<T>(Router<T>(std::move(params), router.top_k(), router.config()),
                     std::move(experts), layer.options(), layer.shared(), layer.extras());
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
