// SPDX-License-Identifier: Apache-2.0
// Router<T>: the first step of the flow. A gate projection, a score for each expert, the k best,
// their weights; in forward order in route_token(), and backwards in backward_token().
#pragma once

#include "../concepts.hpp"
#include "../detail/parallel.hpp"
#include "../detail/part.hpp"
#include "../kernels/gemm.hpp"
#include "../kernels/row_sums.hpp"
#include "../kernels/softmax.hpp"
#include "../kernels/topk.hpp"
#include "noise.hpp"
#include "router_params.hpp"
#include "weights.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// T is the scalar of the tokens. The router's own parameters, and everything it computes, are
/// Wide<T>: float at least.
template <Real T>
class Router {
 public:
  using W = Wide<T>;
  using Params = RouterParams<W>;

  struct Table : RoutingTable<W> {
    Matrix<W> input;  ///< (N, D) what the projection saw, where it is not x itself
    ExpertMask mask;  ///< as asked for by the call; empty: all allowed
    std::optional<std::uint64_t> noise_seed;
    int num_threads = 1;  ///< of the call, for its backward
  };

  /// Weights from N(0, 1 / d_model), bias and noise projection zero.
  Router(Index d_model, Index num_experts, Index top_k, const RouterConfig& config,
         std::uint64_t seed)
      : Router(Params::random(d_model, num_experts, config, seed), top_k, config) {}

  /// Takes ready weights. Throws std::invalid_argument if their shapes do not fit each other or
  /// the config.
  Router(Params params, Index top_k, const RouterConfig& config)
      : config_(config), top_k_(top_k), params_(std::move(params)) {
    config.validate();
    params_.check(config);
    detail::check(top_k >= 1 && top_k <= num_experts(), "Router: top_k = ", top_k,
                  ", expected in [1, num_experts = ", num_experts(), "]");
  }

  Index d_model() const { return params_.weight.cols(); }
  Index num_experts() const { return params_.weight.rows(); }
  Index top_k() const { return top_k_; }
  const RouterConfig& config() const { return config_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  /// Writes the whole table for x (N, D). Throws std::invalid_argument if x or the expert mask has
  /// another shape.
  void route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const;

  /// dx (N, D) = and grads +=, from the gradient of the table. On return gradient.logits is the
  /// whole gradient of the logits: exactly 0 where an expert was masked. dx must not overlap x.
  void backward(ConstMatrixRef<T> x, const Table& table, RoutingGradient<W>& gradient,
                MatrixRef<T> dx, Params& grads) const;

 private:
  static constexpr Index block_size = 64;  // of tokens, columns or experts, in one work item

  RouterNoise<W> noise_of(const std::optional<std::uint64_t>& seed) const {
    return RouterNoise<W>(config_.logits, seed);
  }

  void size_table(Index num_tokens, const CallOptions& call, Table& table) const;
  void write_input(ConstMatrixRef<T> x, Table& table) const;
  /// What the gate multiplies: x itself, or its copy in the table, wider or with jitter.
  static ConstMatrixRef<W> gate_input(const ConstMatrixRef<T>& x, const Table& table) {
    if constexpr (std::is_same_v<T, W>) {
      if (table.input.size() == 0) {
        return x;
      }
    }
    return table.input;
  }
  void write_logits(ConstMatrixRef<W> input, Table& table) const;
  /// For the tokens of input, from `token` on, and `count` experts from `first` on.
  void write_logits(ConstMatrixRef<W> input, Index token, Index first, Index count,
                    Table& table) const;
  void add_noise(Index token, Index first, Index count, Table& table) const;
  void route_token(Index token, Table& table) const;

  void backward_token(Index token, const Table& table, RoutingGradient<W>& gradient) const;
  void write_dx(Index begin, Index rows, const Table& table, const RoutingGradient<W>& gradient,
                MatrixRef<T> dx) const;
  void add_grads(ConstMatrixRef<T> x, const Table& table, const RoutingGradient<W>& gradient,
                 Params& grads) const;

  /// A masked expert's gradient is 0 and stays 0, also against a NaN in its weights or in a token.
  static void multiply_back(const Table& table, kernels::View<W> dlogits, kernels::View<W> b,
                            MatrixRef<W> c, kernels::Update update) {
    if (table.mask.size() > 0) {
      kernels::gemm_skipping_zeros<W>(dlogits, b, c, update);
    } else {
      kernels::gemm<W>(dlogits, b, c, update);
    }
  }

  static const std::uint8_t* allowed(Index token, const Table& table) {
    if (table.mask.size() == 0) {
      return nullptr;
    }
    return &table.mask.coeffRef(table.mask.rows() == 1 ? 0 : token, 0);
  }

  RouterConfig config_;
  Index top_k_;
  Params params_;
};

template <Real T>
void Router<T>::route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const {
  const Index num_tokens = x.rows();
  detail::check_shape(x, num_tokens, d_model(), "Router: x");
  if (call.expert_mask != nullptr) {
    const ExpertMask& mask = *call.expert_mask;
    detail::check((mask.rows() == 1 || mask.rows() == num_tokens) && mask.cols() == num_experts(),
                  "Router: expert_mask is (", mask.rows(), ", ", mask.cols(), "), expected (1 or ",
                  num_tokens, ", ", num_experts(), ")");
  }
  table.num_threads = detail::num_threads(call.num_threads);
  size_table(num_tokens, call, table);
  detail::in_one_region(table.num_threads, [&] {
    if (table.input.size() > 0) {
      write_input(x, table);
    }
    write_logits(gate_input(x, table), table);
    detail::for_blocks(num_tokens, table.num_threads,
                       [&](Index token) { route_token(token, table); });
  });
}

template <Real T>
void Router<T>::size_table(Index num_tokens, const CallOptions& call, Table& table) const {
  const RouterNoise<W> noise = noise_of(call.noise_seed);
  const Index noisy_tokens = noise.on_logits() ? num_tokens : 0;
  const bool projects_x = std::is_same_v<T, W> && !noise.on_input();
  table.expert.resize(num_tokens, top_k_);
  table.weight.resize(num_tokens, top_k_);
  table.probs.resize(num_tokens, num_experts());
  table.logits.resize(num_tokens, num_experts());
  table.clean_logits.resize(noisy_tokens, num_experts());
  table.noise_scale.resize(noisy_tokens, num_experts());
  table.input.resize(projects_x ? 0 : num_tokens, d_model());
  table.noise_seed = call.noise_seed;
  if (call.expert_mask != nullptr) {
    table.mask = *call.expert_mask;
  } else {
    table.mask.resize(0, 0);
  }
}

template <Real T>
void Router<T>::write_input(ConstMatrixRef<T> x, Table& table) const {
  const RouterNoise<W> noise = noise_of(table.noise_seed);
  detail::for_blocks(x.rows(), table.num_threads, [&](Index token) {
    for (Index col = 0; col < d_model(); ++col) {
      table.input(token, col) = static_cast<W>(x(token, col));
      if (noise.on_input()) {
        table.input(token, col) *= noise.factor(token, col, d_model());
      }
    }
  });
}

template <Real T>
void Router<T>::write_logits(ConstMatrixRef<W> input, Table& table) const {
  // Many tokens for each reading of the weights, but blocks for every thread.
  const Index num_tokens = input.rows();
  const Index size = std::clamp<Index>(num_tokens / (4 * table.num_threads), block_size, 256);
  detail::for_parts(
      (num_tokens + size - 1) / size, table.num_threads, [&](Index block, detail::Part part, int) {
        const Index begin = block * size, rows = std::min(size, num_tokens - begin);
        const Index step = kernels::columns_at_once<W>(rows);
        const Index first = part.begin(num_experts(), step), last = part.end(num_experts(), step);
        if (first < last) {
          write_logits(input.middleRows(begin, rows), begin, first, last - first, table);
        }
      });
}

template <Real T>
void Router<T>::write_logits(ConstMatrixRef<W> input, Index token, Index first, Index count,
                             Table& table) const {
  const auto project = [&](const Matrix<W>& weight, Matrix<W>& out) {
    kernels::gemm<W>(kernels::view(input),
                     kernels::view(weight.middleRows(first, count)).transpose(),
                     out.block(token, first, input.rows(), count), kernels::Update::assign);
  };
  project(params_.weight, table.logits);
  if (config_.logits.bias) {
    table.logits.block(token, first, input.rows(), count).rowwise() +=
        params_.bias.row(0).segment(first, count);
  }
  if (table.noise_scale.size() > 0) {
    project(params_.noise, table.noise_scale);
    for (Index row = 0; row < input.rows(); ++row) {
      add_noise(token + row, first, count, table);
    }
  }
}

template <Real T>
void Router<T>::add_noise(Index token, Index first, Index count, Table& table) const {
  using std::abs, std::exp, std::log1p;
  const RouterNoise<W> noise = noise_of(table.noise_seed);
  for (Index e = first; e < first + count; ++e) {
    W& scale = table.noise_scale(token, e);
    scale = (scale > W(0) ? scale : W(0)) + log1p(exp(-abs(scale)));  // softplus
    table.clean_logits(token, e) = table.logits(token, e);
    table.logits(token, e) += noise.normal(token, e, num_experts()) * scale;
  }
}

template <Real T>
void Router<T>::route_token(Index token, Table& table) const {
  const std::uint8_t* mask = allowed(token, table);
  const Index num_experts = this->num_experts();
  W* logits = &table.logits.coeffRef(token, 0);
  W* probs = &table.probs.coeffRef(token, 0);
  ExpertId* expert = &table.expert.coeffRef(token, 0);
  for (Index e = 0; mask != nullptr && e < num_experts; ++e) {
    if (mask[e] == 0) {
      logits[e] = kernels::minus_infinity<W>();
    }
  }
  const Index chosen = kernels::top_k(logits, mask, num_experts, top_k_, expert);

  if (config_.score == Score::softmax) {
    kernels::softmax(logits, num_experts, probs);
  } else {
    kernels::sigmoid(logits, num_experts, probs);
  }
  for (Index e = 0; mask != nullptr && e < num_experts; ++e) {
    if (mask[e] == 0) {
      probs[e] = W(0);  // also where the row is NaN
    }
  }

  write_weights<W>(config_.weight, token, chosen, table);
}

template <Real T>
void Router<T>::backward(ConstMatrixRef<T> x, const Table& table, RoutingGradient<W>& gradient,
                         MatrixRef<T> dx, Params& grads) const {
  const Index num_tokens = x.rows();
  detail::check_shape(x, table.num_tokens(), d_model(), "Router: x");
  detail::check_shape(dx, num_tokens, d_model(), "Router: dx");
  detail::check(!detail::overlap(x, dx), "Router: dx overlaps x, expected memory of its own");
  check_like(params_, grads, "Router: grads");
  gradient.assign(gradient, table);

  const Index blocks = (num_tokens + block_size - 1) / block_size;
  detail::parallel_for(blocks, table.num_threads, [&](Index block, int) {
    const Index begin = block * block_size, rows = std::min(block_size, num_tokens - begin);
    for (Index token = begin; token < begin + rows; ++token) {
      backward_token(token, table, gradient);
    }
    write_dx(begin, rows, table, gradient, dx);
  });
  add_grads(x, table, gradient, grads);
}

template <Real T>
void Router<T>::backward_token(Index token, const Table& table,
                               RoutingGradient<W>& gradient) const {
  const Index num_experts = this->num_experts();
  const W* probs = &table.probs.coeffRef(token, 0);
  W* dprobs = &gradient.probs.coeffRef(token, 0);
  W* dlogits = &gradient.logits.coeffRef(token, 0);
  add_weight_gradient<W>(config_.weight, token, table, gradient);
  if (config_.score == Score::softmax) {
    kernels::softmax_backward(probs, num_experts, dprobs);
  } else {
    kernels::sigmoid_backward(probs, num_experts, dprobs);
  }
  const std::uint8_t* mask = allowed(token, table);
  for (Index e = 0; e < num_experts; ++e) {
    dlogits[e] = mask != nullptr && mask[e] == 0 ? W(0) : W(dlogits[e] + dprobs[e]);
  }
  if (gradient.noise_scale.size() > 0) {
    // logits = clean + normal * scale, scale = softplus(n), and softplus'(n) = 1 - exp(-scale).
    using std::exp;
    const RouterNoise<W> noise = noise_of(table.noise_seed);
    for (Index e = 0; e < num_experts; ++e) {
      W& dscale = gradient.noise_scale(token, e);
      dscale += dlogits[e] * noise.normal(token, e, num_experts);
      if (dscale != W(0)) {  // of a masked expert it is 0, and its scale may be NaN
        dscale *= W(1) - exp(-table.noise_scale(token, e));
      }
    }
  }
}

template <Real T>
void Router<T>::write_dx(Index begin, Index rows, const Table& table,
                         const RoutingGradient<W>& gradient, MatrixRef<T> dx) const {
  const auto project_back = [&](Index col, MatrixRef<W> dinput) {
    const Index cols = dinput.cols();
    multiply_back(table, kernels::view(gradient.logits.middleRows(begin, rows)),
                  kernels::view(params_.weight.middleCols(col, cols)), dinput,
                  kernels::Update::assign);
    if (gradient.noise_scale.size() > 0) {
      multiply_back(table, kernels::view(gradient.noise_scale.middleRows(begin, rows)),
                    kernels::view(params_.noise.middleCols(col, cols)), dinput,
                    kernels::Update::add);
    }
  };
  auto dx_rows = dx.middleRows(begin, rows);
  if constexpr (std::is_same_v<T, W>) {
    project_back(0, dx_rows);
  } else {
    W wide[block_size * block_size];
    for (Index col = 0; col < d_model(); col += block_size) {
      Eigen::Map<Matrix<W>> columns(wide, rows, std::min(block_size, d_model() - col));
      project_back(col, columns);
      dx_rows.middleCols(col, columns.cols()) = columns.template cast<T>();
    }
  }
  const RouterNoise<W> noise = noise_of(table.noise_seed);
  for (Index row = 0; noise.on_input() && row < rows; ++row) {
    for (Index col = 0; col < d_model(); ++col) {
      dx_rows(row, col) = static_cast<T>(static_cast<W>(dx_rows(row, col)) *
                                         noise.factor(begin + row, col, d_model()));
    }
  }
}

template <Real T>
void Router<T>::add_grads(ConstMatrixRef<T> x, const Table& table,
                          const RoutingGradient<W>& gradient, Params& grads) const {
  const ConstMatrixRef<W> input = gate_input(x, table);
  const Index blocks = (d_model() + block_size - 1) / block_size;
  detail::parallel_for(blocks, table.num_threads, [&](Index block, int) {
    const Index begin = block * block_size, cols = std::min(block_size, d_model() - begin);
    const auto columns = kernels::view(input).block(0, begin, input.rows(), cols);
    multiply_back(table, kernels::view(gradient.logits).transpose(), columns,
                  grads.weight.middleCols(begin, cols), kernels::Update::add);
    if (gradient.noise_scale.size() > 0) {
      multiply_back(table, kernels::view(gradient.noise_scale).transpose(), columns,
                    grads.noise.middleCols(begin, cols), kernels::Update::add);
    }
  });
  const Index bias_blocks = (grads.bias.size() + block_size - 1) / block_size;
  detail::parallel_for(bias_blocks, table.num_threads, [&](Index block, int) {
    const Index begin = block * block_size, experts = std::min(block_size, num_experts() - begin);
    kernels::add_rows<W>(gradient.logits.middleCols(begin, experts), nullptr,
                         &grads.bias(0, begin));
  });
}

/// The router of a config, with random weights from the seed.
template <Real T>
Router<T> make_router(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  return Router<T>(config.d_model, config.num_experts, config.top_k, config.router,
                   detail::seed_of(seed, 0));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
