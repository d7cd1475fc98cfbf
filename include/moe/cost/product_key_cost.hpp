// SPDX-License-Identifier: Apache-2.0
// What a layer of product keys costs, from its config. Routing grows with the square root of the
// number of experts, and not with it.
#pragma once

#include "../layers/product_key_tape.hpp"
#include "cost.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

inline FfnShape shared_shape(const ProductKeyLayerConfig& c) {
  return {c.d_model, c.shared_d_ff.value_or(0), c.output_width(), c.expert};
}
inline RankOneShape expert_shape(const ProductKeyLayerConfig& c) {
  return {c.d_model, c.output_width(), c.expert};
}

}  // namespace detail

inline ParameterCount parameters(const ProductKeyLayerConfig& c) {
  c.validate();
  ParameterCount count;
  count.router = gate_parameters({}, c.d_model, 2 * c.keys.num_keys);
  count.expert = detail::expert_shape(c).parameters();
  count.shared = c.shared_d_ff ? detail::shared_shape(c).parameters() : 0;
  count.total = count.router + count.shared + c.keys.num_experts() * count.expert;
  count.active = count.router + count.shared + c.keys.top_k * count.expert;
  return count;
}

/// Under uniform routing E (1 - (1 - K/E)^N) distinct experts. A choice is a row.
inline Work predicted_work(const ProductKeyLayerConfig& c, Index tokens) {
  return predicted_work(MoEConfig{.num_experts = c.keys.num_experts(), .top_k = c.keys.top_k},
                        tokens);
}

inline LayerFlops forward_flops(const ProductKeyLayerConfig& c, const Work& work) {
  LayerFlops flops;
  flops.router = product_key_forward_flops(c.d_model, c.keys, work.tokens);
  flops.experts = detail::expert_shape(c).forward_flops(work.rows);
  if (c.shared_d_ff) {
    flops.shared = detail::shared_shape(c).forward_flops(work.tokens);
    flops.combine = work.tokens * detail::flops_of_one(0, c.output_width());
  }
  return flops;
}

/// Gradients are added to those of the experts that have a token, and to those of x.
inline LayerFlops backward_flops(const ProductKeyLayerConfig& c, const Work& work) {
  LayerFlops flops;
  flops.router = product_key_backward_flops(c.d_model, c.keys, work.tokens);
  flops.experts = detail::expert_shape(c).backward_flops(work.rows);
  flops.experts.other += work.distinct_experts * static_cast<double>(c.d_model + c.output_width());
  flops.combine = work.rows * detail::flops_of_one(0, 1) +
                  work.tokens * detail::flops_of_one(0, c.shared_d_ff ? 2 * c.d_model : c.d_model);
  if (c.shared_d_ff) {
    flops.shared = detail::shared_shape(c).backward_flops(work.tokens);
  }
  return flops;
}

/// As that of a MoEConfig. Rows of experts are read where they lie, and none are written.
inline LayerBytes forward_bytes(const ProductKeyLayerConfig& c, const Work& work,
                                Index scalar_size) {
  const ParameterCount count = parameters(c);
  const double size = static_cast<double>(scalar_size);
  return {size * (static_cast<double>(count.router + count.shared) +
                  work.distinct_experts * static_cast<double>(count.expert)),
          size * static_cast<double>(work.tokens) *
              static_cast<double>(c.d_model + c.output_width() + 2 * c.keys.num_keys)};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
