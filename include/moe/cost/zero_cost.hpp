// SPDX-License-Identifier: Apache-2.0
// What a layer with zero-computation experts costs, by the share of the rows that they get: the
// actual one of a plan, or that which is expected where all experts are chosen as often.
#pragma once

#include "../experts/zero.hpp"
#include "cost.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The rows of a call, by who gets them. Expected ones need not be whole.
struct ZeroWork {
  Index tokens = 0, rows = 0;
  double set = 0, constants = 0, copies = 0, zeros = 0;  ///< sum up to rows
  double distinct_experts = 0;                           ///< of the set, with at least one row
};

namespace detail {

inline Flops scaled(double n, const Flops& f) { return {n * f.matmul, n * f.other}; }

/// The config of the layer as its router sees it: `c` counts the experts of the set alone.
inline MoEConfig with_zeros(const MoEConfig& c, const ZeroComputation& zero) {
  MoEConfig all = c;
  all.num_experts += zero.num_experts();
  return all;
}

}  // namespace detail

/// c.num_experts are those of the set, without the others; c.top_k is of all.
inline ZeroWork predicted_work(const MoEConfig& c, const ZeroComputation& zero, Index tokens) {
  const MoEConfig all = detail::with_zeros(c, zero);
  const double rows = static_cast<double>(tokens * c.top_k);
  const double each = rows / static_cast<double>(all.num_experts);
  const auto of = [&](Index experts) { return each * static_cast<double>(experts); };
  const double touched = predicted_work(all, tokens).distinct_experts;
  return {tokens,
          tokens * c.top_k,
          of(c.num_experts),
          of(zero.constants),
          of(zero.copies),
          of(zero.zeros),
          touched * static_cast<double>(c.num_experts) / static_cast<double>(all.num_experts)};
}

inline ZeroWork executed_work(const DispatchPlan& plan, const ZeroComputation& zero) {
  ZeroWork work{.tokens = plan.num_tokens(), .rows = plan.num_rows()};
  const Index set = plan.num_experts() - zero.num_experts();
  for (Index e = 0; e < plan.num_experts(); ++e) {
    const Index behind = e - set;
    double& rows = behind < 0                              ? work.set
                   : behind < zero.constants               ? work.constants
                   : behind < zero.constants + zero.copies ? work.copies
                                                           : work.zeros;
    rows += static_cast<double>(plan.kept(e));
    work.distinct_experts += behind < 0 && plan.kept(e) > 0 ? 1.0 : 0.0;
  }
  return work;
}

/// `active` is what a token uses at most: top_k experts of the set.
inline ParameterCount parameters(const MoEConfig& c, const ZeroComputation& zero) {
  ParameterCount count = parameters(detail::with_zeros(c, zero));
  count.total += zero.constants * constant_expert_parameters(c.expert_d_in()) -
                 zero.num_experts() * count.expert;
  return count;
}

/// What a token uses on average in such a call, that has tokens.
inline double active_parameters(const MoEConfig& c, const ZeroComputation& zero,
                                const ZeroWork& work) {
  const ParameterCount count = parameters(c, zero);
  const double used =
      work.set * static_cast<double>(count.expert) +
      work.constants * static_cast<double>(constant_expert_parameters(c.expert_d_in()));
  return static_cast<double>(count.router + count.shared + count.latent + count.output_norm) +
         used / static_cast<double>(work.tokens);
}

inline LayerFlops forward_flops(const MoEConfig& c, const ZeroComputation& zero,
                                const ZeroWork& work) {
  LayerFlops flops = forward_flops(detail::with_zeros(c, zero), Work{work.tokens, work.rows, 0.0});
  const Index width = c.expert_d_in();
  flops.experts =
      detail::scaled(work.set, detail::expert_shape(c).forward_flops(1)) +
      detail::scaled(work.constants, detail::flops_of_one(0, constant_expert_flops(width)));
  if (c.weight_on == WeightOn::input) {  // there is no input to weigh for a zero
    flops.combine += detail::scaled(-work.zeros, detail::flops_of_one(0, width));
  }
  return flops;
}

inline LayerFlops backward_flops(const MoEConfig& c, const ZeroComputation& zero,
                                 const ZeroWork& work) {
  LayerFlops flops = backward_flops(detail::with_zeros(c, zero), Work{work.tokens, work.rows, 0.0});
  const Index width = c.expert_d_in();
  // A constant weighs its input once more.
  const Index weighed = c.weight_on == WeightOn::input ? width + 1 : 0;
  flops.experts =
      detail::scaled(work.set, detail::expert_shape(c).backward_flops(1)) +
      detail::scaled(work.constants,
                     detail::flops_of_one(0, constant_expert_backward_flops(width) + weighed));
  return flops;
}

/// As that of a layer without zero-computation experts, of which only constants have weights.
inline LayerBytes forward_bytes(const MoEConfig& c, const ZeroComputation& zero,
                                const ZeroWork& work, Index scalar_size) {
  LayerBytes bytes =
      forward_bytes(detail::with_zeros(c, zero),
                    Work{work.tokens, work.rows, work.distinct_experts}, scalar_size);
  const Index constants = zero.constants * constant_expert_parameters(c.expert_d_in());
  bytes.weights += static_cast<double>(scalar_size * (work.constants > 0.0 ? constants : 0));
  return bytes;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
