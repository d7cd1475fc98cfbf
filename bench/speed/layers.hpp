// SPDX-License-Identifier: Apache-2.0
// What is timed: Forward, a packed layer, and Train, a layer forward and backward. Both are checked
// once before: rows against the plain reference, in a batch against alone, and gradients.
#pragma once

#include <moe/reference.hpp>
#include <stdexcept>

#include "../own_memory.hpp"
#include "../timed_layer.hpp"
#include "cases.hpp"

namespace moe::bench {

/// The layer of a case. Its bias falls with the logarithm of the expert's number, or lifts the
/// first top_k experts above all others.
template <Real T>
MoELayer<T> layer_of(const Case& c) {
  auto layer = random_layer<T>(c.config);
  auto& bias = layer.router().params().bias;
  for (Index e = 0; e < c.config.num_experts; ++e) {
    const double value = c.routing == Routing::zipf  ? -std::log(static_cast<double>(e + 1))
                         : c.routing == Routing::one ? (e < c.config.top_k ? 30.0 : 0.0)
                                                     : 0.0;
    bias(0, e) = static_cast<Wide<T>>(value);
  }
  return layer;
}

inline void expect(bool holds, const Case& c, const char* claim) {
  if (!holds) {
    throw std::runtime_error("moe_speed: " + c.name() + ": " + claim);
  }
}

/// Rounding errors that a result in S may have, relative to its norm.
template <class S>
double tolerance() {
  return std::is_same_v<S, double>  ? 1e-12
         : std::is_same_v<S, float> ? 1e-5
         : std::is_same_v<S, bf16>  ? 1e-2
         : std::is_same_v<S, q8>    ? 3e-2
         : std::is_same_v<S, fp8>   ? 1e-1
                                    : 3e-1;
}

/// forward(x, y) of two tokens in X against the plain reference, computed with weights in S.
template <class S, class X, Real T, class Forward>
void check_against_reference(const Case& c, const MoELayer<T>& layer, Forward&& forward) {
  const Matrix<T> x = random_tokens(2, c.config.d_model, 5).template cast<T>();
  Matrix<X> y(2, c.config.d_model);
  forward(Matrix<X>(x.template cast<X>()), y);
  const Matrix<double> expected = reference::forward(layer, x);
  const double error = (y.template cast<double>() - expected).norm();
  expect(error <= tolerance<S>() * expected.norm(), c, "differs from the reference");
}

/// Inputs of a case. Few tokens rotate, so that they do not always meet the same experts.
template <Real W>
class Inputs {
 public:
  explicit Inputs(const Case& c) : tokens_(c.tokens), sets_(c.cold() ? 8 : 1) {
    x_ = random_tokens(tokens_ * sets_, c.config.d_model, 7).template cast<W>();
  }
  ConstMatrixRef<W> operator()(int repetition) const {
    return x_.middleRows(repetition % sets_ * tokens_, tokens_);
  }

 private:
  Index tokens_, sets_;
  Matrix<W> x_;
};

template <Storage S>
class Forward {
 public:
  using Scalar = S;
  using W = Wide<S>;

  /// Packs the layer, which may go afterwards.
  template <Real T>
  Forward(const Case& c, const MoELayer<T>& layer, int threads) : call_{.num_threads = threads} {
    layers_.push_back(pack<S>(layer));
    check_against_reference<S, W>(
        c, layer, [&](const auto& x, auto& y) { layers_.front().forward(x, y, scratch_, call_); });
  }

  /// Of another case of the same layer.
  void prepare(const Case& c) {
    inputs_.emplace(c);
    copy_layer(c);
    timed_.emplace(layers_.front());
    y_.resize(c.tokens, layers_.front().d_out());
    run(0);
    const Index few = std::min<Index>(c.tokens, 2);
    Matrix<W> alone(few, y_.cols());
    layers_.back().forward((*inputs_)(0).topRows(few), alone, scratch_, call_);
    expect(alone == y_.topRows(few), c, "a row alone differs from the same row in a batch");
  }

  void run(int repetition) {
    const auto number = static_cast<std::size_t>(repetition) % layers_.size();
    layers_[number].forward((*inputs_)(repetition), y_, scratch_, call_);
  }

  /// The steps of a run.
  Stages stages(int repetition) { return timed_->forward((*inputs_)(repetition), y_, call_); }

  Work work() const { return executed_work(scratch_.plan); }
  static Flops flops(const MoEConfig& c, const Work& work) { return forward_flops(c, work).sum(); }

 private:
  /// Cold weights are those of a model of some layers: far more than caches hold.
  void copy_layer(const Case& c) {
    constexpr std::size_t model_bytes = std::size_t{1} << 30, most = 8;
    const std::size_t bytes = packed_bytes<S>(layers_.front());
    const std::size_t copies = c.cold() ? (model_bytes + bytes - 1) / bytes : 1;
    while (layers_.size() > std::min(copies, most)) {
      layers_.pop_back();
    }
    while (layers_.size() < std::min(copies, most)) {
      layers_.push_back(in_own_memory<S>(layers_.front()));
    }
  }

  CallOptions call_;
  std::vector<PackedLayer<S>> layers_;  // the same, each in memory of its own
  typename PackedLayer<S>::Scratch scratch_;
  std::optional<TimedLayer<W, Router<W>, PackedExperts<S>>> timed_;
  std::optional<Inputs<W>> inputs_;
  Matrix<W> y_;
};

template <Real T>
class Train {
 public:
  using Scalar = T;

  Train(const Case& c, MoELayer<T> layer, int threads)
      : call_{.num_threads = threads}, layer_(std::move(layer)), grads_(layer_.zero_grads()) {
    check_against_reference<T, T>(
        c, layer_, [&](const auto& x, auto& y) { layer_.forward(x, y, tape_, call_); });
  }

  void prepare(const Case& c) {
    inputs_.emplace(c);
    dy_ = random_tokens(c.tokens, layer_.d_out(), 8).template cast<T>();
    y_.resize(c.tokens, layer_.d_out());
    dx_.resize(c.tokens, layer_.d_in());
    layer_.for_each_parameter([](const std::string&, auto&, auto& grad) { grad.setZero(); },
                              grads_);
    run(0);
    check_gradients(c);
  }

  void run(int repetition) {
    layer_.forward((*inputs_)(repetition), y_, tape_, call_);
    layer_.backward((*inputs_)(repetition), dy_, tape_, dx_, grads_);
  }

  Work work() const { return executed_work(tape_.plan); }
  static Flops flops(const MoEConfig& c, const Work& work) {
    return forward_flops(c, work).sum() + backward_flops(c, work).sum();
  }

 private:
  template <class A, class B>
  static double product(const A& a, const B& b) {
    return a.template cast<double>().cwiseProduct(b.template cast<double>()).sum();
  }

  /// y is linear in all down projections together, and in all up projections (with ReLU, too):
  /// by Euler's theorem the sum of weight times gradient is <y, dy> for both.
  void check_gradients(const Case& c) {
    double up = 0, down = 0;
    for (std::size_t e = 0; e < grads_.experts.size(); ++e) {
      const auto& weights = layer_.experts()[e].params();
      const auto& gradients = grads_.experts[e];
      up += product(weights.up, gradients.up);
      down += product(weights.down, gradients.down);
    }
    const double expected = product(y_, dy_);
    const double most = tolerance<T>() * static_cast<double>(y_.norm() * dy_.norm());
    expect(std::abs(up - expected) <= most && std::abs(down - expected) <= most, c,
           "the gradients of the weights are wrong");
  }

  CallOptions call_;
  MoELayer<T> layer_;
  typename MoELayer<T>::Grads grads_;
  typename MoELayer<T>::Tape tape_;
  std::optional<Inputs<T>> inputs_;
  Matrix<T> dy_, y_, dx_;
};

}  // namespace moe::bench
