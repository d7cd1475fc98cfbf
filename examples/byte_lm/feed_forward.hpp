// SPDX-License-Identifier: Apache-2.0
// The feed-forward of a block, dense or a Mixture-of-Experts: where the library sits in a model.
// Each keeps its layer, its gradients and its tape; the losses of a router are added in backward.
#pragma once

#include <memory>
#include <moe/cost.hpp>
#include <moe/layers.hpp>
#include <moe/losses.hpp>
#include <moe/train.hpp>
#include <variant>

#include "parts.hpp"

namespace byte_lm {

struct FeedForwardConfig {
  Index d_model = 64, d_ff = 32;
  Index num_experts = 0;  ///< 0: dense
  Index top_k = 2;
  bool selection_bias = false;

  bool dense() const { return num_experts == 0; }
  moe::MoEConfig moe() const {
    return {.d_model = d_model,
            .d_ff = d_ff,
            .num_experts = num_experts,
            .top_k = top_k,
            .router = {.selection = {.bias = selection_bias}}};
  }
  moe::FfnShape shape() const { return {d_model, d_ff, d_model, {}}; }  ///< if it is dense
  /// Of one token, router and combining counted.
  double forward_flops() const {
    return dense() ? shape().forward_flops(1).total()
                   : moe::forward_flops(moe(), moe::predicted_work(moe(), 1)).total();
  }
  double backward_flops() const {
    return dense() ? shape().backward_flops(1).total()
                   : moe::backward_flops(moe(), moe::predicted_work(moe(), 1)).total();
  }
};

/// The narrowest dense one that computes at least as much for a token as the other, a MoE, does.
inline FeedForwardConfig dense_of_equal_flops(const FeedForwardConfig& other) {
  return {.d_model = other.d_model, .d_ff = moe::dense_of_equal_flops(other.moe()).d_ff};
}

/// What a step adds to the loss for each router.
struct RouterLosses {
  double balance = 0.0, z = 0.0;
};

template <class T>
class FeedForward {
  template <class Layer, class GradsT>
  struct Trained {
    Layer layer;
    GradsT grads;
    typename Layer::Tape tape = {};

    explicit Trained(Layer made) : layer(std::move(made)), grads(moe::zero_grads_of(layer)) {}
  };
  using Dense = Trained<moe::DenseFfn<T>, typename moe::DenseFfn<T>::Grads>;
  using Moe = Trained<moe::MoELayer<T>, typename moe::MoELayer<T>::Grads>;

 public:
  /// `down` is divided by sqrt(2 blocks), so that the residual stream does not grow with them.
  FeedForward(const FeedForwardConfig& config, Index blocks, std::uint64_t seed) {
    if (config.dense()) {
      part_ = std::make_unique<Dense>(moe::DenseFfn<T>(
          {config.d_model, config.d_ff, config.d_model}, moe::ExpertConfig{}, seed));
    } else {
      part_ = std::make_unique<Moe>(moe::MoELayer<T>(config.moe(), seed));
    }
    std::visit([&](auto& p) { moe::scale_init(p->layer, {.output = moe::residual_scale(blocks)}); },
               part_);
  }

  /// nullptr if it is dense.
  moe::MoELayer<T>* moe() {
    auto* const made = std::get_if<std::unique_ptr<Moe>>(&part_);
    return made == nullptr ? nullptr : &(*made)->layer;
  }
  /// Of the last forward; only of a MoE.
  const moe::RoutingTable<T>& routing() const {
    return std::get<std::unique_ptr<Moe>>(part_)->tape.routing;
  }

  void forward(const Rows<T>& x, Rows<T>& y, int threads) {
    y.resize(x.rows(), x.cols());
    std::visit([&](auto& p) { p->layer.forward(x, y, p->tape, {.num_threads = threads}); }, part_);
  }
  /// dx = and gradients +=, also of the losses, whose sum is returned.
  double backward(const Rows<T>& x, const Rows<T>& dy, Rows<T>& dx, const RouterLosses& weights,
                  int threads) {
    dx.resize(x.rows(), x.cols());
    if (auto* const dense = std::get_if<std::unique_ptr<Dense>>(&part_)) {
      (*dense)->layer.backward(x, dy, (*dense)->tape, dx, (*dense)->grads);
      return 0.0;
    }
    Moe& m = *std::get<std::unique_ptr<Moe>>(part_);
    losses_.clear();
    if (weights.balance > 0.0) {
      moe::load_balancing_loss(m.tape.routing, {}, losses_, threads);
      losses_ *= static_cast<T>(weights.balance);
    }
    if (weights.z > 0.0) {
      moe::z_loss(m.tape.routing, {}, z_loss_, threads);
      losses_ += z_loss_ *= static_cast<T>(weights.z);
    }
    m.layer.backward(x, dy, m.tape, dx, m.grads, losses_.gradient);
    return static_cast<double>(losses_.value);
  }

  /// visit(name, parameter, gradient) as an optimiser wants it, where name() is the text.
  template <class Visit>
  void walk(std::string_view prefix, Visit&& visit) {
    std::visit([&](auto& p) { moe::visit_trained(visit, p->layer, p->grads, prefix); }, part_);
  }

 private:
  std::variant<std::unique_ptr<Dense>, std::unique_ptr<Moe>> part_;
  moe::RoutingLoss<T> losses_, z_loss_;
};

}  // namespace byte_lm
