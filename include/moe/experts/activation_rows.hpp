// SPDX-License-Identifier: Apache-2.0
// The hidden rows of a feed-forward from its pre-activations, and their gradients back: plain or
// gated, for any activation.
#pragma once

#include <algorithm>

#include "../kernels/register_tile.hpp"
#include "activation.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// hidden = act(gate) * up, or act(up) where there is no gate, which is then empty. hidden may be
/// up.
template <Real T>
void activate_rows(const ExpertConfig& config, ConstMatrixRef<T> gate, ConstMatrixRef<T> up,
                   MatrixRef<T> hidden) {
  with_activation(config.activation, [&](auto act) {
    for (Index row = 0; row < up.rows(); ++row) {
      const T* gate_row = config.gated ? &gate.coeffRef(row, 0) : nullptr;
      const T* up_row = &up.coeffRef(row, 0);
      T* hidden_row = &hidden.coeffRef(row, 0);
      kernels::for_lanes<Wide<T>>(up.cols(), [&](auto at) {
        const auto u = at.load(up_row);
        at.store(hidden_row, config.gated ? act.value(at.load(gate_row)) * u : act.value(u));
      });
    }
  });
}

/// dup holds the gradient of the hidden rows and becomes that of up; dgate = that of gate.
template <Real T>
void activate_rows_backward(const ExpertConfig& config, ConstMatrixRef<T> gate,
                            ConstMatrixRef<T> up, MatrixRef<T> dgate, MatrixRef<T> dup) {
  with_activation(config.activation, [&](auto act) {
    for (Index row = 0; row < up.rows(); ++row) {
      const T* up_row = &up.coeffRef(row, 0);
      const T* gate_row = config.gated ? &gate.coeffRef(row, 0) : nullptr;
      T* dgate_row = config.gated ? &dgate.coeffRef(row, 0) : nullptr;
      T* dup_row = &dup.coeffRef(row, 0);
      // The forward wrote them long ago: fetch a row from memory while others are computed.
      const Index later = (std::min)(row + 4, up.rows() - 1);
      kernels::prefetch_rows(&up.coeffRef(later, 0), 1, up.cols(), 0);
      if (config.gated) {
        kernels::prefetch_rows(&gate.coeffRef(later, 0), 1, up.cols(), 0);
      }
      kernels::for_lanes<Wide<T>>(up.cols(), [&](auto at) {
        const auto dhidden = at.load(dup_row), u = at.load(up_row);
        if (config.gated) {
          const auto g = at.load(gate_row);
          at.store(dgate_row, dhidden * u * act.derivative(g));
          at.store(dup_row, dhidden * act.value(g));
        } else {
          at.store(dup_row, dhidden * act.derivative(u));
        }
      });
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
