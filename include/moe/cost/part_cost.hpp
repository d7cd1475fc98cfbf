// SPDX-License-Identifier: Apache-2.0
// Parameters and bytes of single parts, by the shapes that they state. Their FLOPs are members of
// theirs, forward_flops and backward_flops.
#pragma once

#include <string_view>

#include "../parameters.hpp"
#include "cost.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A gate or a rule, whose tensors are kept by its router.
template <class P>
concept StatesShapes = requires(const P& part) {
  typename P::Params;
  part.shapes();
};

/// How many parameters an expert, a router, a layer, a gate or a rule has. Of a layer of size,
/// which need not be made for that, parameters(config) says it.
template <class P>
requires Parametrised<P> || StatesShapes<P> Index parameters(const P& part) {
  Index count = 0;
  if constexpr (Parametrised<P>) {
    walk_params(part, {}, [&](const ParameterName&, const auto& t) { count += t.size(); });
  } else {
    const auto shapes = part.shapes();
    P::Params::for_each([&](std::string_view, const Shape& s) { count += s.rows * s.cols; },
                        shapes);
  }
  return count;
}

/// Bytes of one forward of a gate: its weights read once, tokens read, logits written, and what
/// stands between the two written and read.
template <StatesShapes Gate>
requires requires(const Gate& gate) { gate.d_model() + gate.num_experts(); }
LayerBytes forward_bytes(const Gate& gate, Index tokens, Index scalar_size) {
  Index inner = 0;
  if constexpr (requires { gate.inner_width(); }) {
    inner = gate.inner_width();
  }
  const double size = static_cast<double>(scalar_size);
  return {size * static_cast<double>(parameters(gate)),
          size * static_cast<double>(tokens) *
              static_cast<double>(gate.d_model() + gate.num_experts() + 2 * inner)};
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
