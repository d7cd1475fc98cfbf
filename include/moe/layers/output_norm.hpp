// SPDX-License-Identifier: Apache-2.0
// OutputNorm<T>: an RMSNorm of what a layer gives (A.X-K1: of the routed and the shared output
// together), the last step of a forward and the first of a backward:
//
//   y = rms_norm(sum),    rms_norm(v) = v / sqrt(mean(v^2) + eps) * scale
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "../config.hpp"
#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"
#include "../detail/reserve.hpp"
#include "../growing_matrix.hpp"
#include "../kernels/cast_params.hpp"
#include "../kernels/rms_norm.hpp"
#include "../parameters.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (1, D_out), or its Shape.
template <class Tensor>
struct OutputNormTensors {
  Tensor scale = {};

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("scale"), p.scale...);
  }
};

inline OutputNormTensors<Shape> output_norm_shapes(Index d_out) { return {.scale = {1, d_out}}; }

/// As a router, in float at least whatever the tokens are.
template <Real T>
class OutputNorm {
 public:
  using W = Wide<T>;
  using Params = OutputNormTensors<Matrix<W>>;

  struct Scratch {
    GrowingMatrix<T> sum;    ///< (N, D_out) what is normed
    std::vector<W> inverse;  ///< (N) 1 / sqrt(mean + eps)
  };
  struct Tape : Scratch {
    GrowingMatrix<T> dsum;  ///< (N, D_out)
    detail::Owner owner;    ///< whose call it holds; whoever keeps it sets it
  };

  /// A scale of ones.
  OutputNorm(Index d_out, const OutputNormConfig& config)
      : OutputNorm(Params{Matrix<W>::Ones(1, d_out)}, config) {}
  /// Takes a ready scale. Throws std::invalid_argument if it is no row, or on values that break a
  /// rule of the config.
  OutputNorm(Params params, const OutputNormConfig& config)
      : config_(config), d_out_(params.scale.cols()), params_(std::move(params)) {
    config.validate();
    check_params({"output_norm"});
  }

  Index d_out() const { return d_out_; }
  const OutputNormConfig& config() const { return config_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }
  /// The same for tokens in another scalar, the scale rounded once.
  template <Real To>
  OutputNorm<To> cast() const {
    return {cast_params<typename OutputNorm<To>::Params>(params_), config_};
  }
  void check_params(const ParameterName& name) const {
    check_shapes(params_, output_norm_shapes(d_out_), name);
  }
  /// Makes a tape one of this very object, and whether it is.
  void own(Tape& tape) const { tape.owner.set(identity_); }
  bool owns(const Tape& tape) const { return tape.owner.is(identity_); }

  /// memory.inverse = that of each row of memory.sum: all that forward and backward need of it.
  void measure(Scratch& memory, int threads) const {
    detail::grow(memory.inverse, memory.sum.rows());
    detail::for_rows(memory.sum.rows(), threads, [&](Index row) {
      memory.inverse[static_cast<std::size_t>(row)] =
          kernels::inverse_rms(&memory.sum.coeffRef(row, 0), d_out_, config_.eps);
    });
  }
  /// y (N, D_out) =, behind measure.
  void forward(const Scratch& memory, MatrixRef<T> y, int threads) const {
    detail::for_rows(y.rows(), threads, [&](Index row) {
      kernels::scale_norm(&memory.sum.coeffRef(row, 0), d_out_,
                          memory.inverse[static_cast<std::size_t>(row)], params_.scale.data(),
                          &y.coeffRef(row, 0));
    });
  }
  /// tape.dsum = and grads +=, from dy (N, D_out), whose rows of padding, (N) or empty, have no
  /// part in grads.
  void backward(ConstMatrixRef<T> dy, const std::vector<std::uint8_t>& padding, Tape& tape,
                Params& grads, int threads) const {
    // Columns are shared out: each sum goes over the tokens in their order.
    detail::for_blocks(d_out_, 64, threads, [&](Index begin, Index cols) {
      kernels::add_norm_scale_gradient(
          tape.sum.middleCols(begin, cols), dy.middleCols(begin, cols), tape.inverse.data(),
          [&](Index row) {
            return !padding.empty() && padding[static_cast<std::size_t>(row)] != 0;
          },
          grads.scale.data() + begin);
    });
    tape.dsum.resize(dy.rows(), d_out_);
    detail::for_rows(dy.rows(), threads, [&](Index row) {
      kernels::rms_norm_backward(
          &tape.sum.coeffRef(row, 0), &dy.coeffRef(row, 0), params_.scale.data(), d_out_,
          tape.inverse[static_cast<std::size_t>(row)], &tape.dsum.coeffRef(row, 0));
    });
  }

 private:
  OutputNormConfig config_;
  Index d_out_;
  Params params_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
