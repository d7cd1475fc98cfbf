// SPDX-License-Identifier: Apache-2.0
// What a Soft MoE costs, from its config. Its experts compute slots, however many tokens there are;
// what grows with the tokens are the router and the two products that mix.
#pragma once

#include "../layers/soft_moe_tape.hpp"
#include "cost.hpp"
#include "part_cost.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

inline UnitGate<float> gate_of(const SoftMoEConfig& c) {
  return {c.d_model, c.num_experts * c.slots, c.gate};
}
/// Of a product that mixes, each way: tokens times slots times a row.
inline Flops mixing_flops(const SoftMoEConfig& c, Index tokens, Index width) {
  return tokens * flops_of_one(2 * c.num_experts * c.slots * width, 0);
}

}  // namespace detail

/// Every token uses all experts.
inline ParameterCount parameters(const SoftMoEConfig& c) {
  c.validate();
  ParameterCount count;
  count.router = parameters(detail::gate_of(c));
  count.expert = detail::expert_shape(c.experts()).parameters();
  count.total = count.active = count.router + c.num_experts * count.expert;
  return count;
}

/// So many tokens in so many sequences that have one.
inline Work predicted_work(const SoftMoEConfig& c, Index tokens, Index sequences = 1) {
  return {tokens, sequences * c.num_experts * c.slots,
          sequences > 0 ? static_cast<double>(c.num_experts) : 0.0};
}

/// `combine` is both products that mix.
inline LayerFlops forward_flops(const SoftMoEConfig& c, const Work& work) {
  const MoEConfig experts = c.experts();
  LayerFlops flops;
  flops.router = slot_router_forward_flops(detail::gate_of(c), work.tokens);
  flops.experts = detail::expert_shape(experts).forward_flops(work.rows);
  flops.combine = detail::mixing_flops(c, work.tokens, c.d_model + experts.output_width());
  return flops;
}

inline LayerFlops backward_flops(const SoftMoEConfig& c, const Work& work) {
  const MoEConfig experts = c.experts();
  LayerFlops flops;
  flops.router = slot_router_backward_flops(detail::gate_of(c), work.tokens);
  flops.experts = detail::expert_shape(experts).backward_flops(work.rows);
  flops.combine = 2 * detail::mixing_flops(c, work.tokens, c.d_model + experts.output_width());
  return flops;
}

/// As that of a MoEConfig; beside the rows, logits and both of their softmaxes are moved.
inline LayerBytes forward_bytes(const SoftMoEConfig& c, const Work& work, Index scalar_size) {
  const ParameterCount count = parameters(c);
  const Index d = c.d_model, d_out = c.experts().output_width();
  const double size = static_cast<double>(scalar_size);
  const double tokens = static_cast<double>(work.tokens), rows = static_cast<double>(work.rows);
  return {size * (static_cast<double>(count.router) +
                  work.distinct_experts * static_cast<double>(count.expert)),
          size * (tokens * static_cast<double>(d + d_out + 6 * c.num_experts * c.slots) +
                  rows * static_cast<double>(2 * (d + d_out)))};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
