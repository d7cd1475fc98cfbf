// SPDX-License-Identifier: Apache-2.0
// What a training step keeps: the bytes of a layer's tape, from its config. Beside cost.hpp, which
// counts what is computed and moved.
#pragma once

#include "../config.hpp"
#include "cost.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Bytes of a tape, for a layer in float or double; without the padding of rows, masks and noise,
/// and without what products pack in: of each thread 64 KiB for the router, and 256 each for the
/// routed experts and the shared one. A Tape keeps both from its forward to its backward. A
/// RecomputingTape keeps its routing, and shares the memory of the rows with those of other layers.
struct TapeBytes {
  double routing = 0;  ///< routing table and plan
  double rows = 0;     ///< inputs, pre-activations and outputs of the experts, and all gradients

  double total() const { return routing + rows; }
};

namespace detail {

/// Of one row: gate, up and hidden, the first two with gradients; the output gate with both of its
/// sides.
inline Index tape_scalars(const FfnShape& s) {
  return (2 * s.up_projections() + 1) * s.d_ff + s.gate(2 * s.d_out + 2);
}

}  // namespace detail

inline TapeBytes tape_bytes(const MoEConfig& c, const Work& work, Index scalar_size) {
  const Index d = c.d_model, d_out = c.output_width();
  const Index row = detail::tape_scalars(detail::expert_shape(c)) +
                    2 * (c.expert_d_in() + c.expert_d_out()) +
                    (c.weight_on == WeightOn::hidden ? c.d_ff + 1 : 0);
  // What goes into the experts and comes out of them, with gradients; the norm's and its inverse.
  const Index latent =
      c.latent ? 4 * c.latent->width + (c.latent->norm ? c.latent->width + 1 : 0) : 0;
  const Index scaled = (detail::equals(c.routed_scale, 1.0) ? 0 : d_out) +  // dy times each scale
                       (detail::equals(c.options().shared_scale, 1.0) ? 0 : d_out);
  // The coefficients with gradients, and dy times each.
  const Index weighed = c.shared && c.shared->coefficients ? 4 + 2 * d_out : 0;
  const Index normed = c.output_norm ? 2 * d_out + 1 : 0;  // the sum with its gradient, the inverse
  const Index shared = (c.shared ? detail::tape_scalars(detail::shared_shape(c)) + d + d_out : 0) +
                       scaled + latent + weighed + normed;
  const double tokens = static_cast<double>(work.tokens), rows = static_cast<double>(work.rows);
  const double choices = tokens * static_cast<double>(c.top_k);
  const double scalar_bytes = static_cast<double>(scalar_size);
  // Probs, logits and the weights of the choices, of which there is also the gradient; the expert
  // of each choice; three integers of the plan for each row, and one for each token.
  const double table_scalars = choices + tokens * static_cast<double>(2 * c.num_experts);
  const double integer_bytes = choices * sizeof(ExpertId) + (3 * rows + tokens) * sizeof(Index);
  return {scalar_bytes * table_scalars + integer_bytes,
          scalar_bytes * (rows * static_cast<double>(row + 1) +
                          tokens * static_cast<double>(shared) + table_scalars)};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
