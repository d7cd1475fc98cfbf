// SPDX-License-Identifier: Apache-2.0
// The whole layer in plain loops, in double: the specification of every fast path and the oracle
// of the tests. One token at a time; slow, and meant to be read.
#pragma once

#include <vector>

#include "../layers/moe_layer.hpp"
#include "capacity.hpp"
#include "latent.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::reference {

/// y (N, D_out) of a layer with our own router and experts, without noise.
template <Real T>
Matrix<double> forward(const MoELayer<T>& layer, const Matrix<T>& x, const CallOptions& call = {}) {
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
    if (call.tokens.is_padding(t)) {
      asked.allowed.assign(static_cast<std::size_t>(layer.num_experts()), 0);
    }
    routing.push_back(route(layer.router().params(), layer.router().config(), asked, row_of(x, t),
                            probs[static_cast<std::size_t>(t)]));
  }
  drop(call.capacity.value_or(layer.options().capacity), call.tokens, layer.num_experts(), top_k,
       probs, routing);

  Matrix<double> y = Matrix<double>::Zero(x.rows(), layer.d_out());
  for (Index t = 0; t < x.rows(); ++t) {
    const auto add = [](double weight, const Row& row, auto&& to) {
      for (Index col = 0; col < to.cols(); ++col) {
        to(0, col) += weight * row[static_cast<std::size_t>(col)];
      }
    };
    const double scale = layer.options().routed_scale;
    const Row x_row = row_of(x, t);
    const Row expert_x = layer.latent() ? enter_latent(*layer.latent(), x_row) : x_row;
    Matrix<double> routed = Matrix<double>::Zero(1, layer.experts().d_out());
    for (const Choice& choice : routing[static_cast<std::size_t>(t)]) {
      if (!choice.kept) {
        continue;
      }
      const Expert<T>& e = layer.experts()[static_cast<std::size_t>(choice.expert)];
      Row input = expert_x;
      const bool on_input = layer.options().weight_on == WeightOn::input;
      for (double& value : input) {
        value *= on_input ? choice.weight : 1.0;
      }
      add(on_input ? 1.0 : choice.weight, expert(e.params(), e.config(), input), routed);
    }
    const Row sum = row_of(routed, 0);
    add(scale, layer.latent() ? leave_latent(*layer.latent(), sum) : sum, y.row(t));
    if (layer.shared() && !call.tokens.is_padding(t)) {
      const Expert<T>& e = layer.shared()->expert();
      add(layer.options().shared_scale, expert(e.params(), e.config(), x_row), y.row(t));
    }
  }
  return y;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::reference
