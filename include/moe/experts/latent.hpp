// SPDX-License-Identifier: Apache-2.0
// Latent<T>: what stands around the experts of a latent layer, whose router and shared expert see
// x itself (Nemotron-3 Super; Kimi-K3 with the norm). Once a token, not once a row:
//
//   the experts read          v = x down^T
//   the routed output is      rms_norm(sum of the experts' outputs) up^T
//   rms_norm(v) = v / sqrt(mean(v^2) + eps) * norm, if there is one
#pragma once

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "../config.hpp"
#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"
#include "../detail/part.hpp"
#include "../detail/random.hpp"
#include "../detail/reserve.hpp"
#include "../growing_matrix.hpp"
#include "../kernels/cast_params.hpp"
#include "../kernels/gemm.hpp"
#include "../kernels/rms_norm.hpp"
#include "../parameters.hpp"
#include "projection.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (L, D_in), (D_out, L) and (1, L), or their Shape; a norm that is not there is empty.
template <class Tensor>
struct LatentTensors {
  Tensor down = {}, up = {}, norm = {};

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("down"), p.down...);
    visit(std::string_view("up"), p.up...);
    visit(std::string_view("norm"), p.norm...);
  }
};
template <Real T>
using LatentParams = LatentTensors<Matrix<T>>;

/// What each tensor of a config has to be.
inline LatentTensors<Shape> latent_shapes(const LatentConfig& config, Index d_in, Index d_out) {
  return {.down = {config.width, d_in},
          .up = {d_out, config.width},
          .norm = {config.norm ? 1 : 0, config.width}};
}

template <Real T>
class Latent {
 public:
  using W = Wide<T>;
  using Params = LatentParams<T>;
  using Grads = LatentParams<W>;

  struct Scratch {
    GrowingMatrix<T> inside;    ///< (N, L) v
    GrowingMatrix<T> combined;  ///< (N, L) the sum of the experts' outputs
    GrowingMatrix<T> normed;    ///< (N, L) behind the norm, if there is one
    std::vector<W> inverse;     ///< (N) 1 / sqrt(mean + eps)
    std::vector<kernels::GemmMemory<T>> packing;
  };
  struct Tape : Scratch {
    GrowingMatrix<T> dcombined, dinside;  ///< (N, L)
    detail::Owner owner;                  ///< whose call it holds; whoever keeps it sets it
  };

  struct Sizes {
    Index d_in, d_out;
  };

  /// Weights from N(0, 1 / fan_in), the norm 1.
  Latent(Sizes sizes, const LatentConfig& config, std::uint64_t seed)
      : config_(config), sizes_(sizes) {
    config.validate();
    const LatentTensors<Shape> all = shapes();
    Params::for_each([](std::string_view, Matrix<T>& tensor,
                        const Shape& shape) { tensor.setOnes(shape.rows, shape.cols); },
                     params_, all);
    detail::fill_normal(params_.down, seed, 0);
    detail::fill_normal(params_.up, seed, 1);
  }
  /// Takes ready weights. Throws std::invalid_argument if their shapes do not fit each other or
  /// the config.
  Latent(Params params, const LatentConfig& config)
      : config_(config), sizes_{params.down.cols(), params.up.rows()}, params_(std::move(params)) {
    config.validate();
    check_params({"latent"});
  }

  Index d_in() const { return sizes_.d_in; }
  Index d_out() const { return sizes_.d_out; }
  Index width() const { return config_.width; }
  const LatentConfig& config() const { return config_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }
  /// The same with parameters in another scalar, each rounded once.
  template <Real To>
  Latent<To> cast() const {
    return Latent<To>(cast_params<LatentParams<To>>(params_), config_);
  }
  double multiply_adds(Index rows) const {
    return static_cast<double>(rows) * static_cast<double>(params_.down.size() + params_.up.size());
  }
  LatentTensors<Shape> shapes() const { return latent_shapes(config_, d_in(), d_out()); }
  void check_params(const ParameterName& name) const { check_shapes(params_, shapes(), name); }
  /// Makes a tape one of this very object, and whether it is.
  void own(Tape& tape) const { tape.owner.set(identity_); }
  bool owns(const Tape& tape) const { return tape.owner.is(identity_); }

  /// memory.inside = what the experts read of x (N, d_in). Memory is a Scratch or a Tape.
  void enter(ConstMatrixRef<T> x, Scratch& memory, int threads) const {
    memory.inside.resize(x.rows(), width());
    multiply(x, params_.down, memory.inside, memory, threads);
  }
  /// The norm of memory.combined, if there is one: what leave and leave_backward read.
  void normalise(Scratch& memory, int threads) const;
  /// y (N, d_out) = the routed output of memory.combined, behind normalise.
  void leave(Scratch& memory, MatrixRef<T> y, int threads) const {
    multiply(config_.norm ? memory.normed : memory.combined, params_.up, y, memory, threads);
  }
  /// tape.dcombined = and grads +=, from dy (N, d_out).
  void leave_backward(ConstMatrixRef<T> dy, Tape& tape, Grads& grads, int threads) const {
    const ConstMatrixRef<T> inner = config_.norm ? tape.normed : tape.combined;
    tape.dcombined.resize(dy.rows(), width());
    multiply_back(dy, params_.up, kernels::Update::assign, tape.dcombined, tape, threads);
    weight_back(inner, dy, grads.up, tape, threads);
    if (config_.norm) {
      normalise_backward(tape, grads.norm, threads);
    }
  }
  /// dx (N, d_in) += and grads +=, from tape.dinside.
  void enter_backward(ConstMatrixRef<T> x, Tape& tape, MatrixRef<T> dx, Grads& grads,
                      int threads) const {
    multiply_back(tape.dinside, params_.down, kernels::Update::add, dx, tape, threads);
    weight_back(x, tape.dinside, grads.down, tape, threads);
  }

 private:
  static constexpr Index panel = kernels::RegisterTile<W>::cols;
  static constexpr Index block_rows = 1024;

  static auto& packing_of(Scratch& memory, int worker) {
    return memory.packing[static_cast<std::size_t>(worker)];
  }
  static void reserve(Scratch& memory, int threads) {
    detail::grow(memory.packing, threads);
    for (auto& packing : memory.packing) {
      packing.reserve();
    }
  }

  /// body(first, count, part, worker) for each part of the columns of each block of rows.
  template <class Body>
  static void for_blocks(Index rows, int threads, Body&& body) {
    const Index blocks = (rows + block_rows - 1) / block_rows;
    detail::for_parts(blocks, threads, [&](Index block, detail::Part part, int worker) {
      const Index first = rows * block / blocks;
      body(first, rows * (block + 1) / blocks - first, part, worker);
    });
  }

  /// y = x weight^T
  static void multiply(ConstMatrixRef<T> x, const Matrix<T>& weight, MatrixRef<T> y,
                       Scratch& memory, int threads) {
    reserve(memory, threads);
    const Matrix<T> no_bias;
    for_blocks(x.rows(), threads, [&](Index first, Index rows, detail::Part part, int worker) {
      const Index begin = part.begin(y.cols(), panel), cols = part.end(y.cols(), panel) - begin;
      detail::project<T, T>(x.middleRows(first, rows), {weight, no_bias}, begin,
                            y.block(first, begin, rows, cols), packing_of(memory, worker));
    });
  }
  /// dx = or += dy weight
  static void multiply_back(ConstMatrixRef<T> dy, const Matrix<T>& weight, kernels::Update update,
                            MatrixRef<T> dx, Scratch& memory, int threads) {
    for_blocks(dy.rows(), threads, [&](Index first, Index rows, detail::Part part, int worker) {
      const Index begin = part.begin(dx.cols(), panel), cols = part.end(dx.cols(), panel) - begin;
      kernels::gemm<T>(kernels::view(dy.middleRows(first, rows)),
                       kernels::view(weight.middleCols(begin, cols)),
                       dx.block(first, begin, rows, cols), update, packing_of(memory, worker));
    });
  }
  /// grad += dy^T x, each row of it over all tokens.
  static void weight_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Matrix<W>& grad,
                          Scratch& memory, int threads) {
    Matrix<W> no_bias;
    detail::for_parts(x.rows() > 0 ? 1 : 0, threads, [&](Index, detail::Part part, int worker) {
      detail::project_backward<T>(x, dy, part, {grad, no_bias}, packing_of(memory, worker));
    });
  }

  void normalise_backward(Tape& tape, Matrix<W>& grad, int threads) const;

  LatentConfig config_;
  Sizes sizes_;
  Params params_;
  detail::Identity identity_;
};

template <Real T>
void Latent<T>::normalise(Scratch& memory, int threads) const {
  if (!config_.norm) {
    return;
  }
  const Index rows = memory.combined.rows();
  memory.normed.resize(rows, width());
  detail::grow(memory.inverse, rows);
  detail::for_rows(rows, threads, [&](Index row) {
    const T* v = &memory.combined.coeffRef(row, 0);
    const W inverse = kernels::inverse_rms(v, width(), config_.eps);
    memory.inverse[static_cast<std::size_t>(row)] = inverse;
    kernels::scale_norm(v, width(), inverse, params_.norm.data(), &memory.normed.coeffRef(row, 0));
  });
}

/// tape.dcombined, that of the norm's output, becomes that of its input.
template <Real T>
void Latent<T>::normalise_backward(Tape& tape, Matrix<W>& grad, int threads) const {
  detail::for_blocks(width(), panel, threads, [&](Index begin, Index cols) {
    kernels::add_norm_scale_gradient(
        tape.combined.middleCols(begin, cols), tape.dcombined.middleCols(begin, cols),
        tape.inverse.data(), [](Index) { return false; }, grad.data() + begin);
  });
  detail::for_rows(tape.dcombined.rows(), threads, [&](Index row) {
    T* const d = &tape.dcombined.coeffRef(row, 0);
    kernels::rms_norm_backward(&tape.combined.coeffRef(row, 0), d, params_.norm.data(), width(),
                               tape.inverse[static_cast<std::size_t>(row)], d);
  });
}

/// The latent part of a config, if it has one, with random weights from the seed.
template <Real T>
std::optional<Latent<T>> make_latent(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  if (!config.latent) {
    return std::nullopt;
  }
  return Latent<T>({config.d_model, config.output_width()}, *config.latent,
                   detail::seed_of(seed, ~std::uint64_t{0}));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
