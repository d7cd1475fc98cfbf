// SPDX-License-Identifier: Apache-2.0
// What a layer costs: parameters, FLOPs and bytes, of a config (predicted) and of a plan
// (executed). Pure functions of sizes; nothing here reads a weight.
//
// FLOPs are counted by the rule of flops.hpp, exactly, without masks, noise and losses.
#pragma once

#include <cmath>

#include "../config.hpp"
#include "../dispatch/plan.hpp"
#include "../experts/ffn_shape.hpp"
#include "../experts/latent.hpp"
#include "../layers/coefficients.hpp"
#include "../routing/gate.hpp"
#include "../routing/top_k.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct ParameterCount {
  Index router = 0;
  Index expert = 0;  ///< one of them
  Index shared = 0;  ///< with the coefficients of both outputs
  Index latent = 0;
  Index output_norm = 0;
  Index total = 0;
  Index active = 0;  ///< used for one token: of the experts top_k, and all of the other parts
};

/// What a call has to do: given by a plan, or predicted from a config.
struct Work {
  Index tokens = 0;
  Index rows = 0;               ///< routed rows that are computed: dropped ones are not
  double distinct_experts = 0;  ///< experts with at least one row
};

struct LayerFlops {
  Flops router, experts, shared, combine;
  Flops latent = {};       ///< the projections around the experts, and their norm
  Flops output_norm = {};  ///< of the sum of the routed and the shared output

  Flops sum() const { return router + experts + shared + combine + latent + output_norm; }
  double total() const { return sum().total(); }
};

struct LayerBytes {
  double weights = 0;      ///< of the router, the shared and the distinct experts, read once
  double activations = 0;  ///< x, the experts' rows and y, each written and read once

  double total() const { return weights + activations; }
};

namespace detail {

inline FfnShape expert_shape(const MoEConfig& c) {
  return {c.expert_d_in(), c.d_ff, c.expert_d_out(), c.expert};
}

inline FfnShape shared_shape(const MoEConfig& c) {
  return {c.d_model, c.shared->d_ff, c.output_width(), c.shared_expert()};
}

}  // namespace detail

inline ParameterCount parameters(const MoEConfig& c) {
  c.validate();
  ParameterCount count;
  count.router = gate_parameters(c.router.logits, c.d_model, c.num_experts) +
                 top_k_parameters(c.router, c.num_experts);
  count.expert = detail::expert_shape(c).parameters();
  count.shared = c.shared ? detail::shared_shape(c).parameters() +
                                (c.shared->coefficients ? 2 * c.d_model + 2 : 0)
                          : 0;
  if (c.latent) {
    const Index width = c.latent->width;
    count.latent = width * (c.d_model + c.output_width() + (c.latent->norm ? 1 : 0));
  }
  count.output_norm = c.output_norm ? c.output_width() : 0;
  const Index always = count.router + count.shared + count.latent + count.output_norm;
  count.total = always + c.num_experts * count.expert;
  count.active = always + c.top_k * count.expert;
  return count;
}

/// Dropless work for so many tokens. Under uniform routing E (1 - (1 - K/E)^N) distinct experts.
inline Work predicted_work(const MoEConfig& c, Index tokens) {
  const double experts = static_cast<double>(c.num_experts);
  const double missed =
      std::pow(1.0 - static_cast<double>(c.top_k) / experts, static_cast<double>(tokens));
  return {tokens, tokens * c.top_k, experts * (1.0 - missed)};
}

/// The work of a plan as it is carried out.
inline Work executed_work(const DispatchPlan& plan) {
  return {plan.num_tokens(), plan.num_rows(), static_cast<double>(plan.num_active())};
}

inline LayerFlops forward_flops(const MoEConfig& c, const Work& work) {
  const Index e = c.num_experts, k = c.top_k, d_out = c.output_width();
  const bool on_input = c.weight_on == WeightOn::input;
  LayerFlops flops;
  flops.router = LinearGate<float>(c.d_model, e, c.router.logits).forward_flops(work.tokens) +
                 work.tokens * detail::flops_of_one(0, top_k_flops(c.router, e, k));
  flops.experts = detail::expert_shape(c).forward_flops(work.rows);
  const Index row_in = c.expert_d_in(), row_out = c.expert_d_out();
  const bool on_hidden = c.weight_on == WeightOn::hidden;
  const Index weights = on_input    ? row_in
                        : on_hidden ? c.d_ff + detail::expert_shape(c).bias(row_out)
                                    : row_out;
  flops.combine = work.rows * detail::flops_of_one(0, weights + row_out);
  if (c.latent) {
    const Index width = row_in;
    flops.latent = work.tokens *
                   detail::flops_of_one(2 * width * (c.d_model + d_out),
                                        c.latent->norm ? kernels::rms_norm_flops(width, true) : 0);
  }
  if (c.shared) {
    flops.shared = detail::shared_shape(c).forward_flops(work.tokens);
    flops.combine += work.tokens * detail::flops_of_one(0, d_out);
  }
  if (!detail::equals(c.routed_scale, 1.0) || !detail::equals(c.options().shared_scale, 1.0)) {
    flops.combine += work.tokens * detail::flops_of_one(0, c.shared ? 2 * d_out : d_out);
  }
  if (c.shared && c.shared->coefficients) {
    flops.combine +=
        work.tokens * detail::flops_of_one(0, coefficient_flops(c.d_model) + 2 * d_out);
  }
  if (c.latent &&
      (c.shared || !detail::equals(c.routed_scale, 1.0))) {  // the sum is read once more
    flops.combine += work.tokens * detail::flops_of_one(0, d_out);
  }
  if (c.output_norm) {
    flops.output_norm = work.tokens * detail::flops_of_one(0, kernels::rms_norm_flops(d_out, true));
  }
  return flops;
}

inline LayerFlops backward_flops(const MoEConfig& c, const Work& work) {
  const Index e = c.num_experts, k = c.top_k, d = c.d_model, d_out = c.output_width();
  const bool on_input = c.weight_on == WeightOn::input;
  LayerFlops flops;
  flops.router = LinearGate<float>(d, e, c.router.logits).backward_flops(work.tokens) +
                 work.tokens * detail::flops_of_one(0, top_k_gradient_flops(c.router, e, k));
  flops.experts = detail::expert_shape(c).backward_flops(work.rows);
  // The weight's gradient (a dot product), the weighted gradient, and the sum over the rows.
  const Index row_in = c.expert_d_in(), row_out = c.expert_d_out();
  const bool on_hidden = c.weight_on == WeightOn::hidden;
  const Index weights = on_input    ? 3 * row_in
                        : on_hidden ? 3 * c.d_ff + detail::expert_shape(c).bias(3 * row_out + 1)
                                    : 3 * row_out;
  flops.combine = work.rows * detail::flops_of_one(0, weights + 1 + row_in) +
                  work.tokens * detail::flops_of_one(0, c.latent ? 0 : d);
  if (c.latent) {
    flops.latent =
        work.tokens *
        detail::flops_of_one(4 * row_in * (d + d_out),
                             c.latent->norm ? kernels::rms_norm_backward_flops(row_in, true) : 0);
  }
  if (c.shared) {
    flops.shared = detail::shared_shape(c).backward_flops(work.tokens);
    flops.combine += work.tokens * detail::flops_of_one(0, d);
  }
  if (c.shared && c.shared->coefficients) {
    // Each part's product with dy, and dy times its coefficient.
    flops.combine +=
        work.rows * detail::flops_of_one(0, 2 * d_out + (c.weight_on == WeightOn::output ? 2 : 1)) +
        work.tokens *
            detail::flops_of_one(0, coefficient_backward_flops(d) + 2 * d_out + 2 * d_out);
  }
  if (c.output_norm) {
    flops.output_norm =
        work.tokens * detail::flops_of_one(0, kernels::rms_norm_backward_flops(d_out, true));
  }
  for (const double scale : {c.routed_scale, c.options().shared_scale}) {
    flops.combine += work.tokens * detail::flops_of_one(0, detail::equals(scale, 1.0) ? 0 : d_out);
  }
  return flops;
}

/// Bytes of one forward, every scalar `scalar_size` bytes wide. At few tokens the weights are all
/// that counts: their bytes over the memory bandwidth bound the time from below.
inline LayerBytes forward_bytes(const MoEConfig& c, const Work& work, Index scalar_size) {
  const ParameterCount count = parameters(c);
  const double size = static_cast<double>(scalar_size);
  LayerBytes bytes;
  const Index always = count.router + count.shared + count.latent + count.output_norm;
  bytes.weights = size * (static_cast<double>(always) +
                          work.distinct_experts * static_cast<double>(count.expert));
  const double tokens = static_cast<double>(work.tokens), rows = static_cast<double>(work.rows);
  bytes.activations =
      size *
      (tokens * static_cast<double>(c.d_model + c.output_width()) +
       rows * static_cast<double>(c.expert_d_in() + 2 * c.expert_d_out()) +
       tokens * static_cast<double>(c.latent ? (c.latent->norm ? 6 : 4) * c.latent->width : 0) +
       tokens * static_cast<double>(c.output_norm ? 2 * c.output_width() : 0));
  return bytes;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
