// SPDX-License-Identifier: Apache-2.0
// From a layer of experts to a dense feed-forward, as the start of a distillation: the mean of the
// experts, or all of them side by side. What is left to learn, the outputs of the layer on real
// tokens, is losses/distillation.hpp in a loop of the user's. Fewer experts are merge.hpp's.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "merge.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (E) the mean over the tokens of a table of the weight that each expert has, 0 where it is not
/// chosen; padding is no token.
template <Real T>
std::vector<double> mean_weights(const RoutingTable<T>& table) {
  check_table(table, table.probs.cols());
  std::vector<double> mean(static_cast<std::size_t>(table.probs.cols()), 0.0);
  Index tokens = 0;
  for (Index t = 0; t < table.num_tokens(); ++t) {
    tokens += table.is_padding(t) ? 0 : 1;
    for (Index k = 0; k < table.top_k() && !table.is_padding(t); ++k) {
      if (const ExpertId e = table.expert(t, k); e != none) {
        mean[static_cast<std::size_t>(e)] += static_cast<double>(table.weight(t, k));
      }
    }
  }
  for (double& weight : mean) {
    weight /= static_cast<double>((std::max)(tokens, Index{1}));
  }
  return mean;
}

namespace detail {

/// Throws std::invalid_argument unless a layer's routed output is a sum of its experts' outputs.
template <class Layer>
void check_sums_experts(const Layer& layer, std::span<const double> weight, const char* what) {
  layer.check_params({});
  throw_unless(
      !layer.latent() && !layer.coefficients() && !layer.output_norm() &&
          layer.options().weight_on != WeightOn::input,
      what,
      ": the layer has a latent part, coefficients, a norm of its output or weights on inputs, "
      "expected a weighted sum of its experts' outputs");
  throw_unless(std::ssize(weight) == layer.num_experts(), what, ": there are ", weight.size(),
               " weights, expected one for each of ", layer.num_experts(), " experts");
}

/// Puts a feed-forward's hidden units behind those that are there, its outputs times a factor.
template <Real T>
void put_beside(const ExpertParams<T>& from, double factor, Index first, ExpertParams<T>& to) {
  const auto scaled = [&](const Matrix<T>& tensor) {
    return tensor.unaryExpr(
        [&](const T& v) { return kernels::convert<T>(factor * kernels::convert<double>(v)); });
  };
  const Index width = from.up.rows();
  to.up.middleRows(first, width) = from.up;
  to.down.middleCols(first, width) = scaled(from.down);
  if (from.gate.size() > 0) {
    to.gate.middleRows(first, width) = from.gate;
  }
  for (auto tensor : {&ExpertParams<T>::gate_bias, &ExpertParams<T>::up_bias}) {
    if ((from.*tensor).size() > 0) {
      (to.*tensor).middleCols(first, width) = from.*tensor;
    }
  }
  if (from.down_bias.size() > 0) {
    const Matrix<T> bias = scaled(from.down_bias);
    to.down_bias += bias;
  }
}

}  // namespace detail

/// The dense feed-forward that is the mean of the routed experts, by weight (their load, or
/// mean_weights()), times the layer's scale of them: of copies of one feed-forward, whose weights
/// sum to 1 in each token, it is the routed part of the layer. A shared expert is not in it. Throws
/// std::invalid_argument if the routed output is no sum of experts of one width and kind, or as
/// merge_experts() does on weights.
template <Real T>
DenseFfn<T> dense_of_mean(const MoELayer<T>& layer, std::span<const double> weight) {
  detail::check_sums_experts(layer, weight, "dense_of_mean");
  const std::vector<ExpertId> group(weight.size(), 0);
  const std::vector<double> share = detail::shares_in_groups(group, weight, 1);
  ExpertParams<T> mean = layer.experts()[0].params();
  for (Index e = 0; e < layer.num_experts(); ++e) {
    const Expert<T>& expert = layer.experts()[static_cast<std::size_t>(e)];
    detail::throw_unless(expert.d_ff() == mean.up.rows(), "dense_of_mean: expert ", e,
                         " has width ", expert.d_ff(), ", expected ", mean.up.rows(),
                         " as the first");
    detail::throw_unless(expert.config() == layer.experts()[0].config(), "dense_of_mean: expert ",
                         e, " is of another kind than the first");
  }
  using P = ExpertParams<T>;
  for (const auto tensor :
       {&P::gate, &P::up, &P::down, &P::gate_bias, &P::up_bias, &P::down_bias, &P::output_gate}) {
    if ((mean.*tensor).size() > 0) {
      mean.*tensor = detail::mean_of_group<T>(
          group, 0, share,
          [&](std::size_t e) -> const Matrix<T>& { return layer.experts()[e].params().*tensor; });
    }
  }
  for (Matrix<T>* const out : {&mean.down, &mean.down_bias}) {
    *out = Matrix<T>(out->unaryExpr([&](const T& v) {
      return kernels::convert<T>(layer.options().routed_scale * kernels::convert<double>(v));
    }));
  }
  return DenseFfn<T>(Expert<T>(std::move(mean), layer.experts()[0].config()));
}

/// The dense feed-forward whose hidden units are those of all experts with a weight that is not 0,
/// and of the shared expert behind them: with mean_weights() it gives what the layer does if every
/// token had them. Leave out experts by a weight of 0 for a narrower one. Throws
/// std::invalid_argument if the routed output is no sum of experts, these or the shared one differ
/// in kind or have gates of their outputs, or no weight is left or one is not finite.
template <Real T>
DenseFfn<T> dense_of_all(const MoELayer<T>& layer, std::span<const double> weight) {
  detail::check_sums_experts(layer, weight, "dense_of_all");
  struct Part {
    const Expert<T>* expert;
    double factor;
  };
  std::vector<Part> parts;
  for (std::size_t e = 0; e < weight.size(); ++e) {
    detail::throw_unless(std::isfinite(weight[e]), "dense_of_all: weight ", e, " is ", weight[e],
                         ", expected finite");
    if (weight[e] < 0.0 || weight[e] > 0.0) {
      parts.push_back({&layer.experts()[e], layer.options().routed_scale * weight[e]});
    }
  }
  if (layer.shared()) {
    parts.push_back({&layer.shared()->expert(), layer.options().shared_scale});
  }
  detail::throw_unless(!parts.empty(), "dense_of_all: no expert has a weight, expected one");
  const ExpertConfig& kind = parts.front().expert->config();
  Index d_ff = 0;
  for (const Part& part : parts) {
    detail::throw_unless(part.expert->config() == kind && !kind.output_gate,
                         "dense_of_all: experts are of several kinds or have an output gate, "
                         "expected one kind without");
    d_ff += part.expert->d_ff();
  }
  Expert<T> dense({layer.d_in(), d_ff, layer.d_out()}, kind, 0);
  ExpertParams<T> params = zeros_like(dense.params());
  Index first = 0;
  for (const Part& part : parts) {
    detail::put_beside(part.expert->params(), part.factor, first, params);
    first += part.expert->d_ff();
  }
  return DenseFfn<T>(Expert<T>(std::move(params), kind));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
