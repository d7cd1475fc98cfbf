// SPDX-License-Identifier: Apache-2.0
// FfnShape: what a feed-forward costs, by its sizes and its kind alone: no weight is needed.
#pragma once

#include "../flops.hpp"
#include "pair.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct FfnShape {
  Index d_in, d_ff, d_out;
  ExpertConfig kind;

  Index up_projections() const { return kind.gated ? 2 : 1; }
  Index bias(Index size) const { return kind.bias ? size : 0; }
  Index gate(Index size) const { return kind.output_gate ? size : 0; }

  Index parameters() const {
    return up_projections() * (d_ff * d_in + bias(d_ff)) + d_out * d_ff + bias(d_out) + gate(d_in);
  }

  /// Of so many rows.
  Flops forward_flops(Index rows) const {
    return rows * with_pair(kind, [&](auto pair) -> Flops {
             const Index up = up_projections();
             return detail::flops_of_one(2 * d_ff * (up * d_in + d_out),
                                         up * bias(d_ff) + bias(d_out) + d_ff * pair.value_flops +
                                             gate(2 * d_in + 3 + d_out));
           });
  }
  /// Each product of a forward comes back twice: for its input and for its weight.
  Flops backward_flops(Index rows) const {
    return rows * with_pair(kind, [&](auto pair) -> Flops {
             const Index up = up_projections();
             return detail::flops_of_one(4 * d_ff * (up * d_in + d_out),
                                         d_ff * pair.gradient_flops + up * bias(d_ff) +
                                             bias(d_out) + gate(3 * d_out + 3 + 4 * d_in));
           });
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
