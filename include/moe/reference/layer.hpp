// SPDX-License-Identifier: Apache-2.0
// The whole layer in plain loops, in double: the specification of every fast path and the oracle
// of the tests. One token at a time; slow, and meant to be read.
#pragma once

#include <vector>

#include "../layers/moe_layer.hpp"
#include "capacity.hpp"
#include "coefficients.hpp"
#include "latent.hpp"
#include "output_norm.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// What the kept choices of one token add up to.
template <Real T>
Row routed_output(const MoELayer<T>& layer, const Row& x, const std::vector<Choice>& choices) {
  const bool on_input = layer.options().weight_on == WeightOn::input;
  Row sum(static_cast<std::size_t>(layer.experts().d_out()), 0.0);
  for (const Choice& choice : choices) {
    if (!choice.kept) {
      continue;
    }
    Row input = layer.latent() ? enter_latent(*layer.latent(), x) : x;
    for (double& value : input) {
      value *= on_input ? choice.weight : 1.0;
    }
    const Expert<T>& e = layer.experts()[static_cast<std::size_t>(choice.expert)];
    const Row output = expert(e.params(), e.config(), input);
    for (std::size_t col = 0; col < sum.size(); ++col) {
      sum[col] += (on_input ? 1.0 : choice.weight) * output[col];
    }
  }
  return layer.latent() ? leave_latent(*layer.latent(), sum) : sum;
}

/// y (N, D_out) of a layer with our own router and experts, without noise. The router looks at
/// router_x, or at x if that is null.
template <Real T>
Matrix<double> forward(const MoELayer<T>& layer, const Matrix<T>& x, const CallOptions& call = {},
                       const Matrix<T>* router_x = nullptr) {
  const Index top_k =
      call.experts != nullptr ? call.experts->cols() : call.top_k.value_or(layer.router().top_k());
  Routing routing;
  std::vector<Row> probs(static_cast<std::size_t>(x.rows()));
  for (Index t = 0; t < x.rows(); ++t) {
    Asked asked{.top_k = top_k};
    for (Index e = 0; call.expert_mask != nullptr && e < layer.num_experts(); ++e) {
      asked.allowed.push_back((*call.expert_mask)(call.expert_mask->rows() == 1 ? 0 : t, e));
    }
    for (Index k = 0; call.experts != nullptr && k < top_k; ++k) {
      asked.experts.push_back((*call.experts)(t, k));
    }
    const ExpertTable& table = layer.router().rule().table();
    const bool by_table = table.size() > 0 && call.experts == nullptr;
    for (Index k = 0; by_table && !call.tokens.is_padding(t) && k < top_k; ++k) {
      const ExpertId e = table(call.tokens.ids[static_cast<std::size_t>(t)], k);
      const bool allowed = asked.allowed.empty() || asked.allowed[static_cast<std::size_t>(e)] != 0;
      asked.experts.push_back(allowed ? e : none);
    }
    if (call.tokens.is_padding(t)) {
      asked.allowed.assign(static_cast<std::size_t>(layer.num_experts()), 0);
    }
    routing.push_back(route(layer.router().params(), layer.router().config(), asked,
                            row_of(router_x == nullptr ? x : *router_x, t),
                            probs[static_cast<std::size_t>(t)]));
  }
  drop(call.capacity.value_or(layer.options().capacity), call.tokens, layer.num_experts(), top_k,
       probs, routing);

  Matrix<double> y = Matrix<double>::Zero(x.rows(), layer.d_out());
  for (Index t = 0; t < x.rows(); ++t) {
    const auto add = [&](double scale, const Row& row) {
      for (Index col = 0; col < y.cols(); ++col) {
        y(t, col) += scale * row[static_cast<std::size_t>(col)];
      }
    };
    const Row x_row = row_of(x, t);
    const Row c = layer.coefficients() ? coefficients(*layer.coefficients(), x_row) : Row{1.0, 1.0};
    add(c[0] * layer.options().routed_scale,
        routed_output(layer, x_row, routing[static_cast<std::size_t>(t)]));
    if (layer.shared() && !call.tokens.is_padding(t)) {
      const Expert<T>& e = layer.shared()->expert();
      add(c[1] * layer.options().shared_scale, expert(e.params(), e.config(), x_row));
    }
    if (layer.output_norm()) {
      const Row normed = output_norm(*layer.output_norm(), row_of(y, t));
      y.row(t).setZero();
      add(1.0, normed);
    }
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
