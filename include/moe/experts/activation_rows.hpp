// SPDX-License-Identifier: Apache-2.0
// The hidden rows of a feed-forward from its pre-activations, and their gradients back: plain or
// gated, for any activation.
#pragma once

#include <algorithm>

#include "../kernels/register_tile.hpp"
#include "pair.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// hidden = the pair of gate and up, or act(up) where there is no gate, which is then empty. hidden
/// may be up.
template <Real T>
void activate_rows(const ExpertConfig& config, ConstMatrixRef<T> gate, ConstMatrixRef<T> up,
                   MatrixRef<T> hidden) {
  with_pair(config, [&](auto pair) {
    constexpr bool gated = decltype(pair)::gated;
    for (Index row = 0; row < up.rows(); ++row) {
      const T* gate_row = gated ? &gate.coeffRef(row, 0) : nullptr;
      const T* up_row = &up.coeffRef(row, 0);
      T* hidden_row = &hidden.coeffRef(row, 0);
      kernels::for_lanes<Wide<T>>(up.cols(), [&](auto at) {
        const auto u = at.load(up_row);
        if constexpr (gated) {
          at.store(hidden_row, pair.value(at.load(gate_row), u));
        } else {
          at.store(hidden_row, pair.value(u));
        }
      });
    }
  });
}

/// dup holds the gradient of the hidden rows and becomes that of up; dgate = that of gate.
template <Real T>
void activate_rows_backward(const ExpertConfig& config, ConstMatrixRef<T> gate,
                            ConstMatrixRef<T> up, MatrixRef<T> dgate, MatrixRef<T> dup) {
  with_pair(config, [&](auto pair) {
    constexpr bool gated = decltype(pair)::gated;
    for (Index row = 0; row < up.rows(); ++row) {
      const T* up_row = &up.coeffRef(row, 0);
      const T* gate_row = gated ? &gate.coeffRef(row, 0) : nullptr;
      T* dgate_row = gated ? &dgate.coeffRef(row, 0) : nullptr;
      T* dup_row = &dup.coeffRef(row, 0);
      // The forward wrote them long ago: fetch a row from memory while others are computed.
      const Index later = (std::min)(row + 4, up.rows() - 1);
      kernels::prefetch_rows(&up.coeffRef(later, 0), 1, up.cols(), 0);
      if (gated) {
        kernels::prefetch_rows(&gate.coeffRef(later, 0), 1, up.cols(), 0);
      }
      kernels::for_lanes<Wide<T>>(up.cols(), [&](auto at) {
        const auto dhidden = at.load(dup_row), u = at.load(up_row);
        if constexpr (gated) {
          const auto d = pair.gradient(at.load(gate_row), u, dhidden);
          at.store(dgate_row, d.gate);
          at.store(dup_row, d.up);
        } else {
          at.store(dup_row, pair.gradient(u, dhidden));
        }
      });
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
