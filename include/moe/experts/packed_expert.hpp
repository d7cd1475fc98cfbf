// SPDX-License-Identifier: Apache-2.0
// PackedExpert<S>: the inference form of an Expert. Its weights lie as the register tile reads
// them, in storage S; the activation is applied to finished sums, so a hidden row is written once.
#pragma once

#include <span>
#include <utility>

#include "../kernels/lanes.hpp"
#include "../kernels/multiply_panels.hpp"
#include "../kernels/row_sums.hpp"
#include "../storage/bfloat16.hpp"
#include "../storage/float.hpp"
#include "../storage/fp8.hpp"
#include "../storage/mxfp4.hpp"
#include "../storage/q4.hpp"
#include "../storage/q4_k.hpp"
#include "../storage/q8.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// An expert whose weights are codes and scales in a format F, as a storage keeps them. Those that
/// are not have no rows.
template <class F>
struct CodedExpert {
  ExpertTensors<Matrix<float>, CodedMatrix<F>> params;
  ExpertConfig config;

  bool has_up() const { return params.up.rows() > 0 && (!config.gated || params.gate.rows() > 0); }
  bool has_down() const { return params.down.rows() > 0; }
};

/// An expert with packed weights in storage S. Sums, biases and activations are Wide<S>.
template <Storage S>
struct PackedExpert {
  using W = Wide<S>;
  using Input = typename PackedMatrix<S>::Input;
  using Precision = typename PackedMatrix<S>::Precision;
  using Memory = kernels::PanelMemory<PackedMatrix<S>>;  ///< sums for the rows of a part

  ExpertConfig config;
  PackedMatrix<S> up;  ///< gate and up interleaved, or up alone
  PackedMatrix<S> down;
  Matrix<W> gate_bias, up_bias, down_bias, output_gate;

  /// Throws std::invalid_argument unless the parameters have their shapes.
  template <Real T>
  explicit PackedExpert(const Expert<T>& expert) : PackedExpert(expert, WithoutWeights()) {
    pack_up(expert.params());
    pack_down(expert.params());
  }

  /// The same, but with what `coded` has of it, gate and up together or down, as it is there.
  template <Real T, class F, class P = PackedMatrix<S>>
  requires std::same_as<typename P::Format, F> PackedExpert(const Expert<T>& expert,
                                                            const CodedExpert<F>& coded)
      : PackedExpert(expert, WithoutWeights()) {
    coded.has_up() ? pack_up(coded.params) : pack_up(expert.params());
    coded.has_down() ? pack_down(coded.params) : pack_down(expert.params());
  }

  /// Of codes and scales in the format of S, as they are. Throws likewise.
  template <class F, class P = PackedMatrix<S>>
  requires std::same_as<typename P::Format, F>
  explicit PackedExpert(const CodedExpert<F>& expert)
      : config(expert.config),
        gate_bias(expert.params.gate_bias),
        up_bias(expert.params.up_bias),
        down_bias(expert.params.down_bias),
        output_gate(expert.params.output_gate) {
    const auto& p = expert.params;
    config.validate();
    check_shapes(p, expert_shapes(config, p.up.cols(), p.up.rows(), p.down.rows()), {"Expert"});
    pack_up(p);
    pack_down(p);
  }

  /// Of ready weights. Biases and output gate have their shapes, and are zeros.
  PackedExpert(const ExpertConfig& kind, PackedMatrix<S> ups, PackedMatrix<S> downs)
      : config(kind), up(std::move(ups)), down(std::move(downs)) {
    const auto shapes = expert_shapes(kind, up.width(), up.num_outputs(), down.num_outputs());
    const auto zeros = [](const Shape& shape) { return Matrix<W>::Zero(shape.rows, shape.cols); };
    gate_bias = zeros(shapes.gate_bias);
    up_bias = zeros(shapes.up_bias);
    down_bias = zeros(shapes.down_bias);
    output_gate = zeros(shapes.output_gate);
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

  double multiply_adds(Index rows) const {
    const double ups = static_cast<double>(up.width() * up.num_outputs() * (config.gated ? 2 : 1));
    const double downs = static_cast<double>(down.width() * down.num_outputs());
    return static_cast<double>(rows) * (ups + downs);
  }

  /// Input in a hidden row.
  Index hidden_size() const { return down.depth() / kernels::numbers_in<Input>; }

  /// The rows of a part: where they come from and go to.
  struct Rows {
    std::span<const Input* const> input;   ///< a row of x each
    std::span<const Input* const> hidden;  ///< a row of hidden each
    Input* first_hidden;                   ///< hidden rows follow each other, hidden_size() wide
    const W* weight;                       ///< of each hidden row, null if they have none
    W* factor;                             ///< sigmoid(x . output_gate) of each, if there is one
    W* first_out;                          ///< outputs follow each other, D_out wide,
    Index out_stride;                      ///< so far apart
  };

  /// hidden = act(x up^T) for a part of the panels.
  void multiply_up(const Rows& rows, detail::Part part, const Memory& memory) const {
    kernels::multiply_panels(rows.input, up, part, memory,
                             [&](const Finished& tile) { finish_up(tile, rows); });
    for (std::size_t row = 0; config.output_gate && part.number == 0 && row < rows.input.size();
         ++row) {
      rows.factor[row] =
          kernels::sigmoid(kernels::dot(rows.input[row], output_gate.data(), output_gate.cols()));
    }
  }

  /// out (rows, D_out) = hidden down^T for a part of the panels, after all parts of multiply_up.
  void multiply_down(const Rows& rows, detail::Part part, const Memory& memory) const {
    kernels::multiply_panels(rows.hidden, down, part, memory,
                             [&](const Finished& tile) { finish_down(tile, rows); });
  }

 private:
  using Finished = kernels::Finished<W>;

  struct WithoutWeights {};
  template <Real T>
  PackedExpert(const Expert<T>& expert, WithoutWeights)
      : config(expert.config()),
        gate_bias(expert.params().gate_bias.template cast<W>()),
        up_bias(expert.params().up_bias.template cast<W>()),
        down_bias(expert.params().down_bias.template cast<W>()),
        output_gate(expert.params().output_gate.template cast<W>()) {
    expert.check_params({"Expert"});
  }
  template <class Params>
  void pack_up(const Params& p) {
    up = config.gated ? PackedMatrix<S>({&p.gate, &p.up}) : PackedMatrix<S>({&p.up});
  }
  template <class Params>
  void pack_down(const Params& p) {
    down = PackedMatrix<S>({&p.down});
  }
  void finish_up(const Finished& tile, const Rows& rows) const;
  void finish_down(const Finished& tile, const Rows& rows) const;
};

template <Storage S>
void PackedExpert<S>::finish_up(const Finished& tile, const Rows& rows) const {
  const Index share = up.share(), begin = tile.panel * share;
  const Index size = (std::min)(share, up.num_outputs() - begin);
  const W* sums = tile.sums;
  const Index hidden_size = this->hidden_size();
  Input* hidden = rows.first_hidden + tile.row * hidden_size;
  kernels::prefetch_rows(hidden + tile.count * hidden_size + begin / kernels::numbers_in<Input>,
                         tile.next_count, size / kernels::numbers_in<Input>, hidden_size);
  with_pair(config, [&](auto pair) {
    constexpr bool gated = decltype(pair)::gated;
    for (Index row = 0; row < tile.count; ++row, sums += up.cols, hidden += hidden_size) {
      const W* up_sums = gated ? sums + share : sums;
      const auto weighted = [&](const auto& value) {
        return rows.weight == nullptr ? value
                                      : kernels::LanesOr<W>(rows.weight[tile.row + row]) * value;
      };
      const auto finish = [&](auto* to) {
        kernels::for_lanes<W>(size, [&](auto at) {
          auto u = at.load(up_sums);
          if (config.bias) {
            u = u + at.load(up_bias.data() + begin);
          }
          if constexpr (gated) {
            auto gate = at.load(sums);
            if (config.bias) {
              gate = gate + at.load(gate_bias.data() + begin);
            }
            at.store(to, kernels::rounded_to<Precision>(weighted(pair.value(gate, u))));
          } else {
            at.store(to, kernels::rounded_to<Precision>(weighted(pair.value(u))));
          }
        });
      };
      if constexpr (kernels::numbers_in < Input >> 1) {
        W finished[PackedMatrix<S>::cols];
        finish(finished);
        PackedMatrix<S>::store(finished, size, W(1), begin, hidden);
      } else {
        finish(hidden + begin);
        if (begin + size == up.num_outputs()) {
          std::fill(hidden + up.num_outputs(), hidden + down.depth(), Input(0));
        }
      }
    }
  });
}

template <Storage S>
void PackedExpert<S>::finish_down(const Finished& tile, const Rows& rows) const {
  const Index begin = tile.panel * down.cols;
  const Index size = (std::min)(down.cols, down.num_outputs() - begin);
  const W* sums = tile.sums;
  W* out = rows.first_out + tile.row * rows.out_stride;
  kernels::prefetch_rows(out + tile.count * rows.out_stride + begin, tile.next_count, size,
                         rows.out_stride);
  for (Index row = 0; row < tile.count; ++row, sums += down.cols, out += rows.out_stride) {
    kernels::for_lanes<W>(size, [&](auto at) {
      auto value = at.load(sums);
      if (config.bias && rows.weight == nullptr) {
        value = value + at.load(down_bias.data() + begin);
      } else if (config.bias) {
        const kernels::LanesOr<W> weight(rows.weight[tile.row + row]);
        value = kernels::madd(weight, at.load(down_bias.data() + begin), value);
      }
      if (config.output_gate) {
        value = value * kernels::Lanes<W>(rows.factor[tile.row + row]);
      }
      at.store(out + begin, value);
    });
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
