// SPDX-License-Identifier: Apache-2.0
// Coefficients<T>: how much of a token's output is of the routed experts and how much of the shared
// one, learned (Rajbhandari et al. 2022, DeepSpeed-MoE: residual MoE; Klear):
//
//   y = c0 routed + c1 shared,    (c0, c1) = softmax(x weight^T + bias)
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"
#include "../detail/random.hpp"
#include "../growing_matrix.hpp"
#include "../kernels/cast_params.hpp"
#include "../kernels/row_sums.hpp"
#include "../kernels/softmax.hpp"
#include "../parameters.hpp"
#include "../routing/score.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (2, D) and (1, 2), or their Shape: the routed output's first.
template <class Tensor>
struct CoefficientTensors {
  Tensor weight = {}, bias = {};

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("weight"), p.weight...);
    visit(std::string_view("bias"), p.bias...);
  }
};

inline CoefficientTensors<Shape> coefficient_shapes(Index d_in) {
  return {.weight = {2, d_in}, .bias = {1, 2}};
}

/// FLOPs of one token, without what the two multiply.
constexpr Index coefficient_flops(Index d_in) {
  return 4 * d_in + 2 + score_flops(Score::softmax, 2);
}
constexpr Index coefficient_backward_flops(Index d_in) { return 8 * d_in + 2 + 3; }

/// As a router, in float at least whatever the tokens are.
template <Real T>
class Coefficients {
 public:
  using W = Wide<T>;
  using Params = CoefficientTensors<Matrix<W>>;

  struct Scratch {
    GrowingMatrix<W> value;  ///< (N, 2), of padding 0
  };
  struct Tape : Scratch {
    GrowingMatrix<W> gradient;  ///< (2, N) of the values, which backward turns into the logits'
    detail::Owner owner;        ///< whose call it holds; whoever keeps it sets it
  };

  /// Weights from N(0, 1 / D), the bias 0.
  Coefficients(Index d_in, std::uint64_t seed)
      : d_in_(d_in), params_{Matrix<W>(2, d_in), Matrix<W>::Zero(1, 2)} {
    detail::fill_normal(params_.weight, seed, 0);
  }
  /// Takes ready weights. Throws std::invalid_argument if their shapes do not fit each other.
  explicit Coefficients(Params params) : d_in_(params.weight.cols()), params_(std::move(params)) {
    check_params({"coefficients"});
  }

  Index d_in() const { return d_in_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }
  /// The same for tokens in another scalar, each parameter rounded once.
  template <Real To>
  Coefficients<To> cast() const {
    return Coefficients<To>(cast_params<typename Coefficients<To>::Params>(params_));
  }
  double multiply_adds(Index rows) const {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(d_in_);
  }
  void check_params(const ParameterName& name) const {
    check_shapes(params_, coefficient_shapes(d_in_), name);
  }
  /// Makes a tape one of this very object, and whether it is.
  void own(Tape& tape) const { tape.owner.set(identity_); }
  bool owns(const Tape& tape) const { return tape.owner.is(identity_); }

  /// memory.value = those of x (N, D); padding, (N) or empty, is not read.
  void forward(ConstMatrixRef<T> x, const std::vector<std::uint8_t>& padding, Scratch& memory,
               int threads) const {
    memory.value.resize(x.rows(), 2);
    detail::for_rows(x.rows(), threads, [&](Index token) {
      W* value = &memory.value.coeffRef(token, 0);
      if (!padding.empty() && padding[static_cast<std::size_t>(token)] != 0) {
        std::fill_n(value, 2, W(0));
        return;
      }
      for (Index i = 0; i < 2; ++i) {
        value[i] = kernels::dot(&x.coeffRef(token, 0), &params_.weight.coeffRef(i, 0), d_in_) +
                   params_.bias(0, i);
      }
      kernels::softmax(value, 2, value);
    });
  }

  /// dx (N, D) += and grads +=, from tape.gradient and x, both 0 for padding.
  void backward(ConstMatrixRef<T> x, Tape& tape, MatrixRef<T> dx, Params& grads,
                int threads) const {
    const Index num_tokens = x.rows();
    detail::for_rows(num_tokens, threads, [&](Index token) {
      const W slope = tape.value(token, 0) * tape.value(token, 1) *
                      (tape.gradient(0, token) - tape.gradient(1, token));
      const W of_token[2] = {slope, -slope};
      tape.gradient(0, token) = of_token[0];
      tape.gradient(1, token) = of_token[1];
      kernels::add_rows<W>(params_.weight, of_token, &dx.coeffRef(token, 0));
    });
    // Columns are shared out: each sum goes over the tokens in their order.
    detail::for_blocks(d_in_, 64, threads, [&](Index begin, Index cols) {
      for (Index i = 0; i < 2; ++i) {
        kernels::add_rows<T>(x.middleCols(begin, cols), tape.gradient.data() + i * num_tokens,
                             &grads.weight(i, begin));
      }
    });
    for (Index i = 0; i < 2; ++i) {
      for (Index token = 0; token < num_tokens; ++token) {
        grads.bias(0, i) += tape.gradient(i, token);
      }
    }
  }

 private:
  Index d_in_;
  Params params_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
