// SPDX-License-Identifier: Apache-2.0
// Layers of Mixture-of-Depths for their tests, with blocks of several kinds, and a step of one.
#pragma once

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/layers/depth.hpp"
#include "moe/losses/selection.hpp"
#include "sequences.hpp"

namespace moe::testing::depth {

using namespace sequences;
using testing::forward;

inline constexpr Index D = 5;

/// A block that mixes the tokens it gets of a sequence: each becomes their mean times a factor.
class Mean {
 public:
  struct Params {
    Matrix<double> factor = Matrix<double>::Constant(1, 1, 0.75);
    template <class Visit, class... P>
    static void for_each(Visit&& visit, P&... p) {
      visit(std::string_view("factor"), p.factor...);
    }
  };
  struct Scratch {
    std::vector<Index> offset;
    Matrix<double> mean;
  };
  struct Tape : Scratch {};

  Index d_in() const { return D; }
  Index d_out() const { return D; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  void forward(ConstMatrixRef<double> x, MatrixRef<double> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    scratch.offset.assign(call.tokens.sequence_offset.begin(), call.tokens.sequence_offset.end());
    scratch.mean = x;
    for_each_sequence(scratch, [&](Index begin, Index rows) {
      scratch.mean.middleRows(begin, rows).rowwise() = x.middleRows(begin, rows).colwise().mean();
    });
    y = params_.factor(0, 0) * scratch.mean;
  }
  void backward(ConstMatrixRef<double>, ConstMatrixRef<double> dy, Tape& tape, MatrixRef<double> dx,
                Params& grads) const {
    grads.factor(0, 0) += (dy.array() * tape.mean.array()).sum();
    for_each_sequence(tape, [&](Index begin, Index rows) {
      dx.middleRows(begin, rows).rowwise() =
          params_.factor(0, 0) * dy.middleRows(begin, rows).colwise().mean();
    });
  }

 private:
  template <class Body>
  static void for_each_sequence(const Scratch& scratch, Body&& body) {
    for (std::size_t b = 0; b + 1 < scratch.offset.size(); ++b) {
      if (scratch.offset[b + 1] > scratch.offset[b]) {
        body(scratch.offset[b], scratch.offset[b + 1] - scratch.offset[b]);
      }
    }
  }

  Params params_;
};
static_assert(TrainableExpert<Mean, double>);

template <Real T>
DenseFfn<T> make_ffn(Index width = D) {
  DenseFfn<T> ffn({width, 7, width}, {}, 2);
  randomise(ffn.params(), 3);
  return ffn;
}

template <Real T, class Block>
DepthLayer<T, Block> make_depth(Block block, const TopTokensConfig& config,
                                bool predicted = false) {
  const Index width = block.d_in();
  auto router =
      linear_router<T>(width, 1, TopTokens<Wide<T>>(config), 4, LogitsConfig{.bias = true});
  randomise(router.params(), 5, 0.9);
  std::optional<typename DepthLayer<T, Block>::Predictor> predictor;
  if (predicted) {
    predictor.emplace(depth_predictor<T>(width, 3, config, 6));
    randomise(predictor->params(), 7);
  }
  return {std::move(router), std::move(block), std::move(predictor)};
}

template <class Layer, class T>
Matrix<T> forward(const Layer& layer, const Matrix<T>& x, const CallOptions& call, bool causal) {
  typename Layer::Scratch scratch;
  Matrix<T> y(x.rows(), layer.d_out());
  if (causal) {
    layer.forward_causal(x, y, scratch, call);
  } else {
    layer.forward(x, y, scratch, call);
  }
  return y;
}

template <class Layer, class T>
Step<Layer, T> run_step(const Layer& layer, const Matrix<T>& x, const CallOptions& call = {}) {
  typename Layer::Tape tape;
  Step<Layer, T> step{random_matrix<T>(x.rows(), layer.d_out(), 42),
                      Matrix<T>(x.rows(), layer.d_out()), Matrix<T>(x.rows(), layer.d_in()),
                      layer.zero_grads()};
  detail::with_team(detail::num_threads(call.num_threads), [&] {
    layer.forward(x, step.y, tape, call);
    layer.backward(x, step.dy, tape, step.dx, step.grads, selection_loss(tape.routing).gradient);
  });
  return step;
}

}  // namespace moe::testing::depth
