// SPDX-License-Identifier: Apache-2.0
// What a dense feed-forward costs, in the terms of a layer, and those that a layer is compared
// with. Its parameters and FLOPs are members of its shape (ffn_shape.hpp).
#pragma once

#include <algorithm>
#include <cmath>

#include "cost.hpp"
#include "tape_bytes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Bytes of one forward: weights read once, x read, y written.
inline LayerBytes forward_bytes(const FfnShape& dense, Index tokens, Index scalar_size) {
  const double size = static_cast<double>(scalar_size);
  return {size * static_cast<double>(dense.parameters()),
          size * static_cast<double>(tokens) * static_cast<double>(dense.d_in + dense.d_out)};
}

/// Bytes of the tape of a DenseFfn, as tape_bytes(config, ...) counts them: it has no routing.
inline TapeBytes tape_bytes(const FfnShape& dense, Index tokens, Index scalar_size) {
  return {0.0, static_cast<double>(scalar_size) * static_cast<double>(tokens) *
                   static_cast<double>(detail::tape_scalars(dense))};
}

namespace detail {

/// The dense feed-forward of a layer's ends and kind, and the least width at which amount(shape),
/// which grows by as much with each hidden unit, is at least `wanted`.
template <class Amount>
FfnShape narrowest_dense(const MoEConfig& c, double wanted, const Amount& amount) {
  const auto of_width = [&](Index d_ff) {
    return FfnShape{c.d_model, d_ff, c.output_width(), c.expert};
  };
  const double one = amount(of_width(1)), unit = amount(of_width(2)) - one;
  const double more = (std::max)(0.0, std::ceil((wanted - one) / unit));
  return of_width(1 + static_cast<Index>(more));
}

}  // namespace detail

/// The narrowest dense feed-forward that computes at least as much for a token as the layer does,
/// router and combining counted. Throws std::invalid_argument if the config breaks its rules.
inline FfnShape dense_of_equal_flops(const MoEConfig& c) {
  c.validate();
  return detail::narrowest_dense(
      c, forward_flops(c, predicted_work(c, 1)).total(),
      [](const FfnShape& shape) { return shape.forward_flops(1).total(); });
}

/// The narrowest one with at least as many parameters as all of the layer. Throws as above.
inline FfnShape dense_of_equal_parameters(const MoEConfig& c) {
  return detail::narrowest_dense(
      c, static_cast<double>(parameters(c).total),
      [](const FfnShape& shape) { return static_cast<double>(shape.parameters()); });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
