// SPDX-License-Identifier: Apache-2.0
// PackedExpert<S>: the inference form of an Expert. Its weights lie as the register tile reads
// them, in storage S; the activation is applied to finished sums, so a hidden row is written once.
#pragma once

#include <concepts>
#include <span>

#include "expert.hpp"
#include "kernels/lanes.hpp"
#include "kernels/packed_matrix.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// What packed weights may be stored as. bf16 rounds to nearest even and keeps NaN.
template <class S>
concept Storage = kernels::Vectorised<S> || std::same_as<S, bf16>;

/// An expert with packed weights in storage S. Sums, biases and activations are Wide<S>.
template <Storage S>
struct PackedExpert {
  using W = Wide<S>;

  ExpertConfig config;
  kernels::PackedMatrix<S> up;  ///< gate and up interleaved, or up alone
  kernels::PackedMatrix<S> down;
  Matrix<W> gate_bias, up_bias, down_bias, output_gate;

  template <Real T>
  explicit PackedExpert(const Expert<T>& expert)
      : config(expert.config()),
        gate_bias(expert.params().gate_bias.template cast<W>()),
        up_bias(expert.params().up_bias.template cast<W>()),
        down_bias(expert.params().down_bias.template cast<W>()),
        output_gate(expert.params().output_gate.template cast<W>()) {
    const ExpertParams<T>& p = expert.params();
    up = config.gated ? kernels::PackedMatrix<S>({&p.gate, &p.up})
                      : kernels::PackedMatrix<S>({&p.up});
    down = kernels::PackedMatrix<S>({&p.down});
  }

  /// The expert again, its weights as they are stored.
  Expert<W> unpack() const {
    ExpertParams<W> p{.gate = Matrix<W>(0, up.width()),
                      .up = up.unpack(config.gated ? 1 : 0),
                      .down = down.unpack(0),
                      .gate_bias = gate_bias,
                      .up_bias = up_bias,
                      .down_bias = down_bias,
                      .output_gate = output_gate};
    if (config.gated) {
      p.gate = up.unpack(0);
    }
    return Expert<W>(std::move(p), config);
  }

  /// hidden = act(x up^T) for a part of the panels; sums has room for (rows, tile cols).
  void multiply_up(std::span<const S* const> x, Part part, W* sums, S* hidden) const {
    const Index panels = up.num_panels();
    kernels::multiply_panels<S>(x, up, part.begin(panels), part.end(panels), sums,
                                [&](Index row, Index count, Index panel, W* done) {
                                  finish_up(panel, count, done, hidden + row * down.depth());
                                });
  }

  /// out (rows, D_out) = hidden down^T for a part of the panels; x is for the output gate.
  void multiply_down(std::span<const S* const> x, std::span<const S* const> hidden, Part part,
                     W* sums, W* out) const {
    const Index panels = down.num_panels();
    kernels::multiply_panels<S>(hidden, down, part.begin(panels), part.end(panels), sums,
                                [&](Index row, Index count, Index panel, W* done) {
                                  finish_down(x.subspan(static_cast<std::size_t>(row)), panel,
                                              count, done, out + row * down.num_outputs());
                                });
  }

 private:
  void finish_up(Index panel, Index count, const W* sums, S* hidden) const;
  void finish_down(std::span<const S* const> x, Index panel, Index count, const W* sums,
                   W* out) const;
};

template <Storage S>
void PackedExpert<S>::finish_up(Index panel, Index count, const W* sums, S* hidden) const {
  const Index share = up.share(), begin = panel * share;
  const Index size = std::min(share, up.num_outputs() - begin);
  with_activation(config.activation, [&](auto act) {
    for (Index row = 0; row < count; ++row, sums += up.cols, hidden += down.depth()) {
      const W* up_sums = config.gated ? sums + share : sums;
      kernels::for_lanes<W>(size, [&](auto at) {
        auto u = at.load(up_sums);
        if (config.bias) {
          u = u + at.load(up_bias.data() + begin);
        }
        if (config.gated) {
          auto gate = at.load(sums);
          if (config.bias) {
            gate = gate + at.load(gate_bias.data() + begin);
          }
          at.store(hidden + begin, act.value(gate) * u);
        } else {
          at.store(hidden + begin, act.value(u));
        }
      });
      if (begin + size == up.num_outputs()) {
        std::fill(hidden + up.num_outputs(), hidden + down.depth(), S(0));
      }
    }
  });
}

template <Storage S>
void PackedExpert<S>::finish_down(std::span<const S* const> x, Index panel, Index count,
                                  const W* sums, W* out) const {
  const Index begin = panel * down.cols;
  const Index size = std::min(down.cols, down.num_outputs() - begin);
  for (Index row = 0; row < count; ++row, sums += down.cols, out += down.num_outputs()) {
    W factor(1);
    if (config.output_gate) {
      W sum(0);
      for (Index k = 0; k < output_gate.cols(); ++k) {
        sum += static_cast<W>(x[static_cast<std::size_t>(row)][k]) * output_gate(0, k);
      }
      factor = kernels::sigmoid(sum);
    }
    for (Index i = 0; i < size; ++i) {
      out[begin + i] = config.bias ? sums[i] + down_bias(0, begin + i) : sums[i];
      if (config.output_gate) {
        out[begin + i] *= factor;
      }
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
