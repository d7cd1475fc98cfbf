// SPDX-License-Identifier: Apache-2.0
// LinearGate: from tokens to logits and back, by a projection with an optional bias, jitter on its
// input, a cap and noise on its result. The one step of routing that is a matrix product, so most
// of the threads' work on routing is shared out here.
//
// Looks at one token, and is causal. Jitter and noise go by the seed of the call and the place of
// the token in the batch.
#pragma once

#include <algorithm>
#include <iterator>
#include <vector>

#include "../call_options.hpp"
#include "../detail/parallel.hpp"
#include "../detail/part.hpp"
#include "../flops.hpp"
#include "../kernels/gemm.hpp"
#include "../kernels/row_sums.hpp"
#include "gate_params.hpp"
#include "gated_table.hpp"
#include "noise.hpp"
#include "softcap.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// logits = x W^T + bias, in Wide<T>.
template <Real T>
class LinearGate {
 public:
  using W = Wide<T>;
  using Params = LinearGateParams<W>;

  struct Table : GatedTable<W> {
    GrowingMatrix<W> input;  ///< (N, D) what was projected, where it was not x itself
    std::vector<kernels::GemmMemory<W>> packing;  ///< of each thread
    bool projects_input = false;  ///< x is narrow, has jitter, or padding, which is 0 in input
  };

  /// Throws std::invalid_argument if a size or the config is out of its range.
  LinearGate(Index d_model, Index num_experts, const LogitsConfig& config)
      : d_model_(d_model), num_experts_(num_experts), config_(config) {
    config.validate();
    detail::throw_unless(d_model > 0 && num_experts > 0, "Router: d_model = ", d_model,
                         " and num_experts = ", num_experts, ", expected at least 1 of each");
  }

  Index d_model() const { return d_model_; }
  Index num_experts() const { return num_experts_; }
  const LogitsConfig& config() const { return config_; }
  /// This gate for tokens in another scalar.
  template <Real U>
  LinearGate<U> cast() const {
    return {d_model_, num_experts_, config_};
  }
  double multiply_adds(Index rows) const {
    return static_cast<double>(rows * (config_.noisy ? 2 : 1)) *
           static_cast<double>(d_model_ * num_experts_);
  }
  /// Of so many tokens, without noise.
  Flops forward_flops(Index tokens) const {
    const Index biases = config_.bias ? num_experts_ : 0;
    return tokens * detail::flops_of_one(2 * d_model_ * num_experts_,
                                         biases + softcap_flops(config_, num_experts_));
  }
  Flops backward_flops(Index tokens) const {
    const Index biases = config_.bias ? num_experts_ : 0;
    return tokens * detail::flops_of_one(4 * d_model_ * num_experts_,
                                         biases + softcap_gradient_flops(config_, num_experts_));
  }

  /// Weights from N(0, 1 / d_model), bias and noise projection zero.
  Params initial_params(std::uint64_t seed) const { return random_gate<W>(shapes(), seed); }
  /// What each tensor has to be.
  LinearGateTensors<Shape> shapes() const { return gate_shapes(config_, d_model_, num_experts_); }

  /// Writes logits, and clean_logits and noise_scale if there is noise.
  void forward(const Params& params, ConstMatrixRef<T> x, const CallOptions&, Table& table) const;

  /// dx = from gradient.logits, to which the noise must have been added; of padding exactly 0. On
  /// return gradient.logits is that of the projection, before a cap, and gradient.noise_scale that
  /// of x W_noise.
  void backward_input(const Params& params, ConstMatrixRef<T> x, const Table& table,
                      RoutingGradient<W>& gradient, MatrixRef<T> dx) const;

  /// grads +=, after backward_input.
  void backward_params(const Params& params, ConstMatrixRef<T> x, const Table& table,
                       const RoutingGradient<W>& gradient, Params& grads) const;

 private:
  static constexpr Index block_size = 64;        // of tokens, columns or experts, in one work item
  static constexpr Index packing_bytes = 65536;  // of a thread, in the table of every layer

  RouterNoise<W> noise_of(const Table& table) const {
    return RouterNoise<W>(config_, table.noise_seed);
  }

  void size_table(Index num_tokens, Table& table) const;
  void write_input(ConstMatrixRef<T> x, Table& table) const;
  static ConstMatrixRef<W> projected(const ConstMatrixRef<T>& x, const Table& table) {
    if constexpr (std::is_same_v<T, W>) {
      if (!table.projects_input) {
        return x;
      }
    }
    return table.input;
  }
  struct Share {
    detail::Part experts;
    int worker;
  };
  /// For the tokens of input, the first of which is `token`, and a share of the experts.
  void write_logits(const Params& params, ConstMatrixRef<W> input, Index token, const Share& share,
                    Table& table) const;

  /// Nothing for padding, whose gradient is 0 and whose logits are -inf.
  void uncap_gradient(Index token, const Table& table, RoutingGradient<W>& gradient) const {
    if (!table.is_padding(token)) {
      const auto& capped = table.clean_logits.size() > 0 ? table.clean_logits : table.logits;
      cap_logits_backward(W(config_.softcap), &capped.coeffRef(token, 0), table.allowed(token),
                          num_experts_, &gradient.logits.coeffRef(token, 0));
    }
  }

  /// For the tokens of dx, the first of which is `token`.
  void write_dx(const Params& params, Index token, const Table& table,
                const RoutingGradient<W>& gradient, MatrixRef<T> dx) const;

  /// A masked expert's gradient is 0 and stays 0, also against a NaN in its weights or in a token.
  static void multiply_back(const Table& table, kernels::View<W> dlogits, kernels::View<W> b,
                            MatrixRef<W> c, kernels::Update update) {
    if (table.mask.size() > 0) {
      kernels::gemm_skipping_zeros<W>(dlogits, b, c, update);
    } else {
      kernels::gemm_on_stack<W>(dlogits, b, c, update);
    }
  }

  Index d_model_, num_experts_;
  LogitsConfig config_;
};

template <Real T>
void LinearGate<T>::forward(const Params& params, ConstMatrixRef<T> x, const CallOptions&,
                            Table& table) const {
  const Index num_tokens = x.rows();
  size_table(num_tokens, table);
  if (table.projects_input) {
    write_input(x, table);
  }
  const ConstMatrixRef<W> input = projected(x, table);
  // Many tokens for each reading of the weights, but blocks for every thread.
  const Index size = std::clamp<Index>(num_tokens / (4 * table.num_threads), block_size, 256);
  detail::for_parts(
      (num_tokens + size - 1) / size, table.num_threads,
      [&](Index block, detail::Part part, int worker) {
        const Index begin = block * size, rows = (std::min)(size, num_tokens - begin);
        write_logits(params, input.middleRows(begin, rows), begin, {part, worker}, table);
      });
}

template <Real T>
void LinearGate<T>::size_table(Index num_tokens, Table& table) const {
  const RouterNoise<W> noise = noise_of(table);
  const Index noisy_tokens = noise.on_logits() ? num_tokens : 0;
  table.logits.resize(num_tokens, num_experts_);
  table.clean_logits.resize(noisy_tokens, num_experts_);
  table.noise_scale.resize(noisy_tokens, num_experts_);
  table.projects_input =
      !std::is_same_v<T, W> || noise.on_input() ||
      std::any_of(table.padding.begin(), table.padding.end(), [](auto pad) { return pad != 0; });
  if (table.projects_input) {
    table.input.resize(num_tokens, d_model_);
  }
  while (std::ssize(table.packing) < table.num_threads) {
    table.packing.emplace_back(packing_bytes).reserve();
  }
}

template <Real T>
void LinearGate<T>::write_input(ConstMatrixRef<T> x, Table& table) const {
  const RouterNoise<W> noise = noise_of(table);
  detail::for_rows(x.rows(), table.num_threads, [&](Index token) {
    if (table.is_padding(token)) {
      std::fill_n(&table.input.coeffRef(token, 0), d_model_, W(0));
      return;
    }
    for (Index col = 0; col < d_model_; ++col) {
      table.input(token, col) = static_cast<W>(x(token, col));
      if (noise.on_input()) {
        table.input(token, col) *= noise.factor(token, col, d_model_);
      }
    }
  });
}

template <Real T>
void LinearGate<T>::write_logits(const Params& params, ConstMatrixRef<W> input, Index token,
                                 const Share& share, Table& table) const {
  const Index rows = input.rows(), step = kernels::columns_at_once<W>(rows);
  const Index first = share.experts.begin(num_experts_, step);
  const Index count = share.experts.end(num_experts_, step) - first;
  if (count <= 0) {
    return;
  }
  const auto project = [&](const Matrix<W>& weight, GrowingMatrix<W>& out) {
    kernels::gemm<W>(kernels::view(input),
                     kernels::view(weight.middleRows(first, count)).transpose(),
                     out.block(token, first, rows, count), kernels::Update::assign,
                     table.packing[static_cast<std::size_t>(share.worker)]);
  };
  project(params.weight, table.logits);
  if (config_.bias) {
    table.logits.block(token, first, rows, count).rowwise() +=
        params.bias.row(0).segment(first, count);
  }
  for (Index row = 0; config_.softcap > 0.0 && row < rows; ++row) {
    cap_logits(W(config_.softcap), &table.logits.coeffRef(token + row, first), count);
  }
  if (table.noise_scale.size() > 0) {
    project(params.noise, table.noise_scale);
    const RouterNoise<W> noise = noise_of(table);
    for (Index row = 0; row < rows; ++row) {
      add_noise(noise, token + row, first, first + count, table);
    }
  }
}

template <Real T>
void LinearGate<T>::backward_input(const Params& params, ConstMatrixRef<T>, const Table& table,
                                   RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
  const RouterNoise<W> noise = noise_of(table);
  detail::for_blocks(dx.rows(), block_size, table.num_threads, [&](Index begin, Index rows) {
    for (Index row = 0; table.noise_scale.size() > 0 && row < rows; ++row) {
      add_noise_gradient(noise, begin + row, table, gradient);
    }
    for (Index row = 0; config_.softcap > 0.0 && row < rows; ++row) {
      uncap_gradient(begin + row, table, gradient);
    }
    write_dx(params, begin, table, gradient, dx.middleRows(begin, rows));
  });
}

template <Real T>
void LinearGate<T>::write_dx(const Params& params, Index token, const Table& table,
                             const RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
  const Index rows = dx.rows();
  const RouterNoise<W> noise = noise_of(table);
  const auto project_back = [&](Index col, MatrixRef<W> dinput) {
    const Index cols = dinput.cols();
    multiply_back(table, kernels::view(gradient.logits.middleRows(token, rows)),
                  kernels::view(params.weight.middleCols(col, cols)), dinput,
                  kernels::Update::assign);
    if (gradient.noise_scale.size() > 0) {
      multiply_back(table, kernels::view(gradient.noise_scale.middleRows(token, rows)),
                    kernels::view(params.noise.middleCols(col, cols)), dinput,
                    kernels::Update::add);
    }
    for (Index row = 0; noise.on_input() && row < rows; ++row) {
      for (Index c = 0; c < cols; ++c) {
        dinput(row, c) *= noise.factor(token + row, col + c, d_model_);
      }
    }
  };
  if constexpr (std::is_same_v<T, W>) {
    project_back(0, dx);
  } else {
    W wide[block_size * block_size];
    for (Index col = 0; col < d_model_; col += block_size) {
      Eigen::Map<Matrix<W>> columns(wide, rows, (std::min)(block_size, d_model_ - col));
      project_back(col, columns);
      dx.middleCols(col, columns.cols()) = columns.template cast<T>();
    }
  }
  for (Index row = 0; row < rows; ++row) {
    if (table.is_padding(token + row)) {
      dx.row(row).setZero();  // also where a weight is NaN
    }
  }
}

template <Real T>
void LinearGate<T>::backward_params(const Params&, ConstMatrixRef<T> x, const Table& table,
                                    const RoutingGradient<W>& gradient, Params& grads) const {
  const ConstMatrixRef<W> input = projected(x, table);
  detail::for_blocks(d_model_, block_size, table.num_threads, [&](Index begin, Index cols) {
    const auto columns = kernels::view(input).block(0, begin, input.rows(), cols);
    multiply_back(table, kernels::view(gradient.logits).transpose(), columns,
                  grads.weight.middleCols(begin, cols), kernels::Update::add);
    if (gradient.noise_scale.size() > 0) {
      multiply_back(table, kernels::view(gradient.noise_scale).transpose(), columns,
                    grads.noise.middleCols(begin, cols), kernels::Update::add);
    }
  });
  detail::for_blocks(grads.bias.size(), block_size, table.num_threads,
                     [&](Index begin, Index size) {
                       kernels::add_rows<W>(gradient.logits.middleCols(begin, size), nullptr,
                                            &grads.bias(0, begin));
                     });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
