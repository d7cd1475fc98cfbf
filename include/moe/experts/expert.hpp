// SPDX-License-Identifier: Apache-2.0
// Expert<T>: a feed-forward, gated or not. It computes the rows it is given and knows nothing of
// routing.
//
//   h = act(x W_up^T + b_up)                            plain
//   h = pair(x W_gate^T + b_gate, x W_up^T + b_up)      gated: act(gate) * up, or see pair.hpp
//   y = h W_down^T + b_down, times sigmoid(x . output_gate) where there is one
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"
#include "../detail/part.hpp"
#include "../detail/random.hpp"
#include "../detail/reserve.hpp"
#include "../kernels/gemm.hpp"
#include "../kernels/lanes.hpp"
#include "../kernels/row_sums.hpp"
#include "../parameters.hpp"
#include "activation_rows.hpp"
#include "expert_params.hpp"
#include "ffn_shape.hpp"
#include "projection.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
class Expert {
 public:
  using W = Wide<T>;
  using Params = ExpertParams<T>;
  using Grads = ExpertParams<W>;

  /// Memory of the rows of one or many experts. Grows to the most it has seen; wider than F.
  struct Scratch {
    Matrix<T> gate, up;  // (n, F): pre-activations; without a tape `up` becomes the hidden row
    Matrix<W> factor;    // (n, 1) sigmoid(x . output_gate), if there is one
    std::vector<kernels::GemmMemory<T>> packing;  // of each thread
    std::vector<detail::RoundedSums<T>> sums;     // of each thread
    std::span<const W> hidden_weight;             // (n) of whose set the rows are; empty: none
  };

  /// What backward needs of the rows, and its own intermediate results.
  struct Tape : Scratch {
    Matrix<T> hidden;             // (n, F)
    Matrix<T> dgate, dup;         // (n, F) written by backward_hidden
    Matrix<T> ungated, dungated;  // (n, D_out) before the output gate, and its gradient
    Matrix<W> dfactor;            // (n, 1) the gradient of x . output_gate
    Matrix<T> weighted;           // (n, F) hidden rows times their weights, if they have any
    std::vector<W> dweight;       // (n) the gradients of those
    detail::Owner owner;          // the expert whose forward it holds; nobody: of a set
    Index num_rows = 0;           // of that forward
  };

  struct Sizes {
    Index d_in, d_ff, d_out;
  };

  /// Weights from N(0, 1 / fan_in), biases zero.
  Expert(Sizes sizes, const ExpertConfig& config, std::uint64_t seed)
      : config_(config), sizes_(sizes) {
    detail::throw_unless(sizes.d_in > 0 && has_width(sizes.d_ff) && sizes.d_out > 0,
                         "Expert: sizes (", sizes.d_in, ", ", sizes.d_ff, ", ", sizes.d_out,
                         "), expected at least 1");
    config.validate();
    const ExpertTensors<Shape> all = shapes();
    Params::for_each([](std::string_view, Matrix<T>& tensor,
                        const Shape& shape) { tensor.setZero(shape.rows, shape.cols); },
                     params_, all);
    std::uint64_t stream = 0;
    for (Matrix<T>* weight : {&params_.gate, &params_.up, &params_.down, &params_.output_gate}) {
      detail::fill_normal(*weight, seed, stream++);
    }
  }

  /// Takes ready weights. Throws std::invalid_argument if their shapes do not fit each other or
  /// the config.
  Expert(Params params, const ExpertConfig& config)
      : config_(config),
        sizes_{params.up.cols(), params.up.rows(), params.down.rows()},
        params_(std::move(params)) {
    detail::throw_unless(d_in() > 0 && has_width(d_ff()) && d_out() > 0, "Expert: up is (", d_ff(),
                         ", ", d_in(), ") and down has ", d_out(),
                         " rows, expected at least 1 of each");
    config.validate();
    check_params({"Expert"});
  }

  Index d_in() const { return sizes_.d_in; }
  Index d_ff() const { return sizes_.d_ff; }
  Index d_out() const { return sizes_.d_out; }
  const ExpertConfig& config() const { return config_; }
  /// What it costs.
  FfnShape shape() const { return {d_in(), d_ff(), d_out(), config_}; }
  /// The products of a forward, for num_threads() of detail/parallel.hpp.
  double multiply_adds(Index rows) const {
    return static_cast<double>(rows) *
           static_cast<double>(params_.gate.size() + params_.up.size() + params_.down.size());
  }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  /// What each tensor has to be, by the config and the sizes with which the expert was made.
  ExpertTensors<Shape> shapes() const {
    return expert_shapes(config_, sizes_.d_in, sizes_.d_ff, sizes_.d_out);
  }
  /// Throws std::invalid_argument unless each tensor is that; `name` is the expert's.
  void check_params(const ParameterName& name) const { check_shapes(params_, shapes(), name); }
  /// Throws std::invalid_argument unless the tape is of a forward of this very object.
  void check_tape(const Tape& tape, const ParameterName& name) const {
    check_owner(tape.owner, name);
  }
  void check_owner(const detail::Owner& owner, const ParameterName& name) const {
    detail::check_own(owner.is(identity_), name,
                      "the tape is of another expert, expected this one's");
  }
  void own(detail::Owner& owner) const { owner.set(identity_); }

  /// Makes the scratch or tape large enough for so many rows and threads.
  void reserve(Scratch& scratch, Index rows, int threads = 1) const;
  void reserve(Tape& tape, Index rows, int threads = 1) const;

  /// y (n, d_out) = f(x (n, d_in)). Memory is a Scratch or a Tape. y must not overlap x. Throws
  /// std::invalid_argument on other shapes, also of parameters.
  template <class Memory>
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Memory& memory) const {
    check_params({"Expert"});
    detail::check_shape(x, x.rows(), d_in(), "Expert: x");
    detail::check_shape(y, x.rows(), d_out(), "Expert: y");
    if constexpr (std::same_as<Memory, Tape>) {
      memory.owner.clear();
      memory.num_rows = x.rows();
    }
    memory.hidden_weight = {};
    reserve(memory, x.rows());
    forward_hidden(x, memory, 0, {});
    forward_output(memory, 0, y, {});
    if constexpr (std::same_as<Memory, Tape>) {
      memory.owner.set(identity_);
    }
  }

  /// dx (n, d_in) = and grads +=, from dy (n, d_out) and the tape of forward(x). Throws
  /// std::invalid_argument on a tape of another expert (also of a copy) and on other shapes, also
  /// of parameters and grads.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads) const {
    check_tape(tape, {"Expert"});
    check_params({"Expert"});
    check_grads(*this, {"Expert"}, grads);
    detail::check_shape(x, x.rows(), d_in(), "Expert: x");
    detail::check_shape(dy, x.rows(), d_out(), "Expert: dy");
    detail::check_shape(dx, x.rows(), d_in(), "Expert: dx");
    detail::throw_unless(tape.num_rows == x.rows(), "Expert: the tape has ", tape.num_rows,
                         " rows, expected those of x = ", x.rows());
    backward_gate(dy, tape, 0);
    backward_hidden(dy, tape, 0, {});
    backward_input(tape, 0, dx, {});
    backward_params({x, dy, 0}, tape, grads, {});
  }

  // The stages of forward and backward, for threads that share an expert, after reserve(). The rows
  // are those from `first` on in the memory, which many experts may share. A stage computes the
  // columns of one part, on the worker of that number, and begins when all parts of the one before
  // it are there.
  template <class Memory>
  void forward_hidden(ConstMatrixRef<T> x, Memory& memory, Index first, detail::Part part,
                      int worker = 0) const;
  template <class Memory>
  void forward_output(Memory& memory, Index first, MatrixRef<T> y, detail::Part part,
                      int worker = 0) const;
  /// Has no parts.
  void backward_gate(ConstMatrixRef<T> dy, Tape& tape, Index first) const;
  void backward_hidden(ConstMatrixRef<T> dy, Tape& tape, Index first, detail::Part part,
                       int worker = 0) const;
  /// The rest of backward_hidden where hidden rows have weights. Has no parts.
  void backward_weight(ConstMatrixRef<T> dy, Tape& tape, Index first) const;
  void backward_input(Tape& tape, Index first, MatrixRef<T> dx, detail::Part part,
                      int worker = 0) const;

  /// Rows of x and dy (n), which are those from `first` on in the tape.
  struct TapedRows {
    ConstMatrixRef<T> x, dy;
    Index first;
  };
  void backward_params(const TapedRows& rows, Tape& tape, Grads& grads, detail::Part part,
                       int worker = 0) const;

 private:
  static constexpr Index panel = kernels::RegisterTile<W>::cols;

  /// With a bias a feed-forward may be this alone.
  bool has_width(Index d_ff) const { return d_ff > 0 || (d_ff == 0 && config_.bias); }

  using Packing = kernels::GemmMemory<T>;

  static Packing& packing_of(Scratch& memory, int worker) {
    return memory.packing[static_cast<std::size_t>(worker)];
  }
  static detail::RoundedSums<T>& sums_of(Scratch& memory, int worker) {
    return memory.sums[static_cast<std::size_t>(worker)];
  }
  static void reserve_sums(Scratch& memory, Index rows) {
    for (detail::RoundedSums<T>& sums : memory.sums) {
      sums.reserve(rows);
    }
  }

  /// body(begin, columns) for each panel of the part of `size` columns.
  template <class Body>
  static void for_panels(Index size, detail::Part part, Body&& body) {
    const Index end = part.end(size, panel);
    for (Index begin = part.begin(size, panel); begin < end; begin += panel) {
      body(begin, (std::min)(panel, end - begin));
    }
  }

  static Matrix<T>& hidden(Scratch& scratch) { return scratch.up; }
  static Matrix<T>& hidden(Tape& tape) { return tape.hidden; }
  /// What the projection down reads.
  static Matrix<T>& weighted(Scratch& scratch) { return scratch.up; }
  static Matrix<T>& weighted(Tape& tape) {
    return tape.hidden_weight.empty() ? tape.hidden : tape.weighted;
  }
  /// The weights of hidden rows from `first` on, null if they have none.
  static const W* weights_from(const Scratch& memory, Index first) {
    return memory.hidden_weight.empty() ? nullptr : memory.hidden_weight.data() + first;
  }

  /// The gradient behind the output gate: dy itself where there is none.
  ConstMatrixRef<T> ungated(ConstMatrixRef<T> dy, const Tape& tape, Index first) const {
    if (!config_.output_gate) {
      return dy;
    }
    return tape.dungated.block(first, 0, dy.rows(), d_out());
  }

  ExpertConfig config_;
  Sizes sizes_;
  Params params_;
  detail::Identity identity_;
};

template <Real T>
void Expert<T>::reserve(Scratch& scratch, Index rows, int threads) const {
  const Index width = detail::spread_width<T>(d_ff());
  detail::grow_both(scratch.up, rows, width);
  detail::grow_both(scratch.gate, config_.gated ? rows : 0, width);
  detail::grow_both(scratch.factor, config_.output_gate ? rows : 0, 1);
  detail::grow(scratch.packing, threads);
  for (Packing& packing : scratch.packing) {
    packing.reserve();
  }
  detail::grow(scratch.sums, threads);
  if (config_.output_gate || !scratch.hidden_weight.empty()) {
    reserve_sums(scratch, rows);
  }
}

template <Real T>
void Expert<T>::reserve(Tape& tape, Index rows, int threads) const {
  reserve(static_cast<Scratch&>(tape), rows, threads);
  reserve_sums(tape, rows);
  const Index width = detail::spread_width<T>(d_ff());
  detail::grow_both(tape.hidden, rows, width);
  detail::grow_both(tape.dup, rows, width);
  detail::grow_both(tape.dgate, config_.gated ? rows : 0, width);
  for (Matrix<T>* m : {&tape.ungated, &tape.dungated}) {
    detail::grow_both(*m, config_.output_gate ? rows : 0, d_out());
  }
  detail::grow_both(tape.dfactor, config_.output_gate ? rows : 0, 1);
  const Index weighted_rows = tape.hidden_weight.empty() ? 0 : rows;
  detail::grow_both(tape.weighted, weighted_rows, width);
  detail::grow(tape.dweight, weighted_rows);
}

template <Real T>
template <class Memory>
void Expert<T>::forward_hidden(ConstMatrixRef<T> x, Memory& memory, Index first, detail::Part part,
                               int worker) const {
  Packing& packing = packing_of(memory, worker);
  const Index rows = x.rows(), gate_rows = config_.gated ? rows : 0;
  for_panels(d_ff(), part, [&](Index begin, Index columns) {
    auto gate = memory.gate.block(config_.gated ? first : 0, begin, gate_rows, columns);
    auto up = memory.up.block(first, begin, rows, columns);
    if (config_.gated) {
      detail::project<T, T>(x, {params_.gate, params_.gate_bias}, begin, gate, packing);
    }
    detail::project<T, T>(x, {params_.up, params_.up_bias}, begin, up, packing);
    activate_rows<T>(config_, gate, up, hidden(memory).block(first, begin, rows, columns));
    const W* weight = weights_from(memory, first);
    for (Index row = 0; weight != nullptr && row < rows; ++row) {
      T* to = &weighted(memory).coeffRef(first + row, begin);
      if constexpr (std::same_as<Memory, Tape>) {
        std::copy_n(&hidden(memory).coeffRef(first + row, begin), columns, to);
      }
      kernels::scale_row(weight[row], columns, to);
    }
  });
  for (Index row = 0; config_.output_gate && part.number == 0 && row < rows; ++row) {
    const W dot = kernels::dot(&x.coeffRef(row, 0), params_.output_gate.data(), d_in());
    memory.factor(first + row, 0) = kernels::sigmoid(dot);
  }
}

template <Real T>
template <class Memory>
void Expert<T>::forward_output(Memory& memory, Index first, MatrixRef<T> y, detail::Part part,
                               int worker) const {
  const auto down_from = [&](Index row) -> detail::Projection<const Matrix<T>> {
    return {params_.down, params_.down_bias, weights_from(memory, first + row)};
  };
  const ConstMatrixRef<T> h = weighted(memory).block(first, 0, y.rows(), d_ff());
  Packing& packing = packing_of(memory, worker);
  for_panels(d_out(), part, [&](Index begin, Index columns) {
    if (!config_.output_gate && memory.hidden_weight.empty()) {
      return detail::project<T, T>(h, down_from(0), begin, y.middleCols(begin, columns), packing);
    }
    sums_of(memory, worker)
        .write(y.middleCols(begin, columns), [&](MatrixRef<W> sums, Index row, Index col) {
          detail::project<T, W>(h.middleRows(row, sums.rows()), down_from(row), begin + col, sums,
                                packing);
          if (!config_.output_gate) {
            return;
          }
          if constexpr (std::same_as<Memory, Tape>) {
            kernels::copy_rows(kernels::view(sums),
                               &memory.ungated.coeffRef(first + row, begin + col),
                               memory.ungated.outerStride());
          }
          for (Index r = 0; r < sums.rows(); ++r) {
            sums.row(r) *= memory.factor(first + row + r, 0);
          }
        });
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET

#include "expert_backward.hpp"
