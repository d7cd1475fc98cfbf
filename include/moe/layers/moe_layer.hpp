// SPDX-License-Identifier: Apache-2.0
// MoELayer: the pipeline. Route, keep, lay out, compute the experts, combine; and the same line
// read right to left. The layer is const in use: what a call produces is the caller's.
#pragma once

#include <optional>
#include <span>

#include "../dispatch/combine.hpp"
#include "../routing/router.hpp"
#include "layer_tape.hpp"
#include "padding.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// T is the scalar of the tokens; E an expert, of which the layer has several, or a set of experts.
template <Real T, RouterLike<T> RouterT = Router<T>, class E = Expert<T>>
requires ExpertLike<ExpertIn<E, T>, T>
class MoELayer {
 public:
  using W = Wide<T>;
  using Set = typename SetOf<T, E>::type;
  using Shared = typename SharedOf<T, Set>::type;

  using Scratch = LayerScratch<T, RouterT, Set>;
  using Tape = LayerTape<T, RouterT, Set>;
  using RecomputingTape = RecomputingLayerTape<T, RouterT, Set>;
  using Grads = LayerGrads<RouterT, Set, Shared, Latent<T>>;

  /// Router, experts and shared expert of the config, with random weights from the seed.
  MoELayer(const MoEConfig& config, std::uint64_t seed) requires std::same_as<RouterT, Router<T>> &&
      std::same_as<Set, FfnExperts<T>>
      : MoELayer(make_router<T>(config, seed), Set(make_experts<T>(config, seed)), config.options(),
                 make_shared_expert<T>(config, seed), make_latent<T>(config, seed)) {}

  /// Takes ready parts. Throws std::invalid_argument if their sizes disagree.
  MoELayer(RouterT router, std::vector<E> experts, const LayerOptions& options = {},
           std::optional<Shared> shared = std::nullopt,
           std::optional<Latent<T>> latent = std::nullopt) requires ExpertLike<E, T>
      : MoELayer(std::move(router), Set(std::move(experts)), options, std::move(shared),
                 std::move(latent)) {}
  MoELayer(RouterT router, std::same_as<Set> auto experts, const LayerOptions& options = {},
           std::optional<Shared> shared = std::nullopt,
           std::optional<Latent<T>> latent = std::nullopt)
      : router_(std::move(router)),
        experts_(std::move(experts)),
        options_(options),
        shared_(std::move(shared)),
        latent_(std::move(latent)) {
    options_.validate();
    detail::throw_unless(WeighsHidden<Set> || options_.weight_on != WeightOn::hidden,
                         "MoELayer: weight_on is hidden, expected input or output with experts "
                         "whose hidden rows the layer does not see");
    check_params({});
  }

  /// Throws std::invalid_argument unless the parts fit each other and their parameters have their
  /// shapes: what stands in a layer may have been replaced. `name` is the layer's.
  void check_params(const ParameterName& name) const {
    check_parts();
    moe::check_params(router_, {.word = "router", .part = &name});
    moe::check_params(experts_, {.word = "experts", .part = &name});
    if (shared_) {
      moe::check_params(*shared_, {.word = "shared", .part = &name});
    }
    if (latent_) {
      latent_->check_params({.word = "latent", .part = &name});
    }
  }

  Index d_in() const { return latent_ ? latent_->d_in() : experts_.d_in(); }
  Index d_out() const { return latent_ ? latent_->d_out() : experts_.d_out(); }
  Index num_experts() const { return experts_.num_experts(); }
  const LayerOptions& options() const { return options_; }
  /// Of a forward, if all rows go to the largest experts; infinite where a part does not state it.
  double multiply_adds(Index rows) const {
    Index choices = 1;
    if constexpr (requires { router_.top_k(); }) {
      choices = router_.top_k();
    }
    return detail::multiply_adds(router_, rows) + detail::multiply_adds(experts_, rows * choices) +
           (shared_ ? detail::multiply_adds(*shared_, rows) : 0.0) +
           (latent_ ? latent_->multiply_adds(rows) : 0.0);
  }
  RouterT& router() { return router_; }
  const RouterT& router() const { return router_; }
  Set& experts() { return experts_; }
  const Set& experts() const { return experts_; }
  std::optional<Shared>& shared() { return shared_; }
  const std::optional<Shared>& shared() const { return shared_; }
  std::optional<Latent<T>>& latent() { return latent_; }
  const std::optional<Latent<T>>& latent() const { return latent_; }

  /// Inference: y (N, d_out) = layer(x (N, d_in)); N may be 0. y may be x itself. Throws
  /// std::invalid_argument on other shapes, also of parameters, or options that do not fit; an
  /// exception of a router or an expert comes out of here, and y is as before.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    check_call(x, call);
    check_output(x, y);
    run(x, y, scratch, scratch, call);
  }

  /// The first steps of forward alone: table, kept choices and plan, for whoever computes the
  /// experts elsewhere or only wants to see who goes where. A tape is no longer one for backward.
  void route(ConstMatrixRef<T> x, const CallOptions& call, Routed<T, RouterT>& routed) const {
    check_call(x, call);
    routed.owner.clear();
    write_routed(x, call, routed);
  }

  /// Training: the same y, and a tape for backward. y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const requires TrainableInLayer<E, T> {
    run_taped(x, y, tape, tape.work, call);
  }
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, RecomputingTape& tape,
               const CallOptions& call = {}) const requires TrainableInLayer<E, T> {
    run_taped(x, y, tape, tape.work(), call);
    tape.work().owner.clear();
  }

  /// dx (N, d_in) = and grads +=, from dy (N, d_out), the x and the tape of a forward, and the
  /// gradient of losses on tape.routing. The tape may be used again. Throws std::invalid_argument
  /// on other shapes, a tape of another layer (also of a copy), or if dx overlaps x or dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {}) const requires
      TrainableInLayer<E, T> && TrainableRouter<RouterT, T> {
    check_backward(x, dy, tape, dx, grads);
    detail::throw_unless(
        tape.work.owner.is(identity_),
        "MoELayer: other calls used the memory of the tape, expected its forward last");
    losses.validate(tape.routing);
    detail::with_team(tape.num_threads, [&] {
      tape.work.gradient.assign(losses, tape.routing, tape.num_threads);
      run_back(x, dy, tape, tape.work, dx, grads);
    });
  }
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, RecomputingTape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {}) const requires
      TrainableInLayer<E, T> && TrainableRouter<RouterT, T> {
    check_backward(x, dy, tape, dx, grads);
    losses.validate(tape.routing);
    tape.work().owner.clear();
    detail::with_team(tape.num_threads, [&] {
      tape.work().gradient.assign(losses, tape.routing, tape.num_threads);
      compute(x, tape, tape.work(), tape.num_threads);
      run_back(x, dy, tape, tape.work(), dx, grads);
    });
  }

  /// Gradients of zero, of our own experts in W. The same struct serves as an optimiser's moments.
  Grads zero_grads() const requires TrainableInLayer<E, T> && TrainableRouter<RouterT, T> {
    Grads grads{.router = zero_grads_of(router_),
                .experts = zero_grads_of(experts_),
                .shared = {},
                .latent = {}};
    if (shared_) {
      grads.shared = zero_grads_of(*shared_);
    }
    if (latent_) {
      grads.latent = zero_grads_of(*latent_);
    }
    return grads;
  }

  /// visit(name, parameter, grad...) for each tensor. A name is a ParameterName, and also taken as
  /// a string like "experts.3.up".
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit,
                          G&... grads) requires Parametrised<RouterT> && Parametrised<Set> {
    walk(*this, {}, existing(visit), grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit,
                          G&... grads) const requires Parametrised<RouterT> && Parametrised<Set> {
    walk(*this, {}, existing(visit), grads...);
  }

  /// What WalksParams asks for: all tensors, also those that a part does not have.
  template <class Layer, class Visit, class... G>
  static void walk(Layer& layer, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(layer.router_, {.word = "router", .part = &name}, visit, grads.router...);
    walk_params(layer.experts_, {.word = "experts", .part = &name}, visit, grads.experts...);
    if (layer.shared_) {
      walk_params(*layer.shared_, {.word = "shared", .part = &name}, visit, grads.shared...);
    }
    if (layer.latent_) {
      walk_params(*layer.latent_, {.word = "latent", .part = &name}, visit, grads.latent...);
    }
  }

 private:
  static constexpr bool trains = TrainableInLayer<E, T> && TrainableRouter<RouterT, T>;

  template <class Visit>
  static auto existing(Visit& visit) {
    return [&visit](const ParameterName& name, auto& parameter, auto&... grads) {
      if (parameter.size() > 0) {
        visit(name, parameter, grads...);
      }
    };
  }

  void check_parts() const {
    detail::throw_unless(router_.num_experts() == num_experts(), "MoELayer: the router has ",
                         router_.num_experts(), " experts, expected ", num_experts());
    if constexpr (requires { router_.d_model(); }) {
      detail::throw_unless(router_.d_model() == d_in(), "MoELayer: the router is ",
                           router_.d_model(), " wide, expected ", d_in());
    }
    if (latent_) {
      detail::throw_unless(
          experts_.d_in() == latent_->width() && experts_.d_out() == latent_->width(),
          "MoELayer: the experts are ", experts_.d_in(), " to ", experts_.d_out(),
          " wide, expected the latent width ", latent_->width());
    }
    if (shared_) {
      detail::throw_unless(shared_->d_in() == d_in() && shared_->d_out() == d_out(),
                           "MoELayer: the shared expert is ", shared_->d_in(), " to ",
                           shared_->d_out(), " wide, expected ", d_in(), " to ", d_out());
    }
  }

  void check_call(const ConstMatrixRef<T>& x, const CallOptions& call) const {
    check_parts();
    moe::check_params(router_, {"router"});
    if (shared_) {
      moe::check_params(*shared_, {"shared"});
    }
    if (latent_) {
      latent_->check_params({"latent"});
    }
    detail::check_shape(x, x.rows(), d_in(), "MoELayer: x");
    call.validate(x.rows(), num_experts());
    if constexpr (requires { router_.check_call(call); }) {
      router_.check_call(call);
    }
  }
  void check_output(const ConstMatrixRef<T>& x, const MatrixRef<T>& y) const {
    detail::check_shape(y, x.rows(), d_out(), "MoELayer: y");
  }

  void write_routed(ConstMatrixRef<T> x, const CallOptions& call,
                    Routed<T, RouterT>& routed) const {
    router_.route(x, call, routed.routing);
    detail::throw_unless(routed.routing.num_tokens() == x.rows(), "MoELayer: the router wrote ",
                         routed.routing.num_tokens(), " tokens, expected ", x.rows());
    routed.routing.padding.assign(call.tokens.padding.begin(), call.tokens.padding.end());
    if constexpr (!LeavesOutPadding<RouterT>) {
      detail::clear_padding(routed.routing);
    }
    routed.kept.select(routed.routing, num_experts(), call.capacity.value_or(options_.capacity),
                       call.tokens);
    routed.plan.build(routed.routing, routed.kept, num_experts());
  }

  /// The pipeline. Memory is a LayerScratch or a LayerWork.
  template <class Memory>
  void run(ConstMatrixRef<T> x, MatrixRef<T> y, Routed<T, RouterT>& routed, Memory& memory,
           const CallOptions& call) const {
    const int threads = detail::num_threads(call.num_threads, multiply_adds(x.rows()));
    detail::with_team(threads, [&] {
      write_routed(x, call, routed);
      compute(x, routed, memory, threads);
      combine(routed, memory, y, threads);
    });
  }

  template <class Memory>
  void combine(const Routed<T, RouterT>& routed, Memory& memory, MatrixRef<T> y,
               int threads) const {
    MatrixRef<T> shared_out = memory.shared_out;
    const MatrixRef<T>* base = shared_ ? &shared_out : nullptr;
    const kernels::SumScales scales{options_.routed_scale, options_.shared_scale};
    const std::span<const W> weight = weight_on(WeightOn::output, memory);
    if (!latent_) {
      return combine_rows<T>(memory.rows, routed.plan, weight, base, y, threads, scales);
    }
    memory.latent.combined.resize(y.rows(), latent_->width());
    combine_rows<T>(memory.rows, routed.plan, weight, nullptr, memory.latent.combined, threads);
    latent_->leave(memory.latent, y, threads);
    add_base<T>(base, y, threads, scales);
  }

  /// The outputs of the routed and the shared experts, and all that backward needs of them.
  template <class Memory>
  void compute(ConstMatrixRef<T> x, const Routed<T, RouterT>& routed, Memory& memory,
               int threads) const {
    const Index num_rows = routed.plan.num_rows();
    gather_weights(routed.routing.weight, routed.plan, memory.row_weight);
    memory.rows.resize(num_rows, experts_.d_out());
    if (latent_) {
      latent_->enter(x, memory.latent, threads);
    }
    experts_.forward(input(x, routed, memory), memory.rows, memory.experts, threads);
    if (shared_) {
      memory.shared_out.resize(x.rows(), d_out());
      shared_->forward(x, memory.shared_out, memory.shared,
                       {.num_threads = threads, .tokens = {.padding = routed.routing.padding}});
    }
  }

  template <class Memory>
  ExpertInput<T> input(ConstMatrixRef<T> x, const Routed<T, RouterT>& routed,
                       const Memory& memory) const {
    return {expert_x(x, memory), routed.plan.groups(), weight_on(WeightOn::input, memory),
            weight_on(WeightOn::hidden, memory)};
  }
  /// What the routed experts read.
  template <class Memory>
  ConstMatrixRef<T> expert_x(const ConstMatrixRef<T>& x, const Memory& memory) const {
    if (latent_) {
      return memory.latent.inside;
    }
    return x;
  }
  /// The weights of the rows (S) if they act there, else nothing.
  template <class Memory>
  std::span<const W> weight_on(WeightOn place, const Memory& memory) const {
    return options_.weight_on == place ? std::span<const W>(memory.row_weight)
                                       : std::span<const W>();
  }

  template <class Work>
  void run_taped(ConstMatrixRef<T> x, MatrixRef<T> y, TapedRouting<T, RouterT>& routed, Work& work,
                 const CallOptions& call) const {
    moe::check_params(experts_, {"experts"});  // an inference asks only those that have rows
    check_call(x, call);
    check_output(x, y);
    detail::throw_unless(!detail::overlap(x, y),
                         "MoELayer: y overlaps x, which backward needs again");
    routed.num_threads = detail::num_threads(call.num_threads, multiply_adds(x.rows()));
    routed.owner.clear();
    work.owner.clear();
    run(x, y, routed, work, call);
    routed.owner.set(identity_);
    work.owner.set(identity_);
  }

  void check_backward(const ConstMatrixRef<T>& x, const ConstMatrixRef<T>& dy,
                      const TapedRouting<T, RouterT>& routed, const MatrixRef<T>& dx,
                      const Grads& grads) const requires trains {
    detail::throw_unless(routed.owner.is(identity_),
                         "MoELayer: the tape is of another layer, expected this one's");
    detail::check_shape(routed.routing.weight, routed.plan.num_tokens(), routed.plan.top_k(),
                        "MoELayer: tape.routing.weight");
    detail::check_shape(x, routed.plan.num_tokens(), d_in(), "MoELayer: x");
    detail::check_shape(dy, x.rows(), d_out(), "MoELayer: dy");
    detail::check_shape(dx, x.rows(), d_in(), "MoELayer: dx");
    detail::throw_unless(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                         "MoELayer: dx overlaps x or dy, expected memory of its own");
    check_params({});
    check_grads(*this, {}, grads);
  }

  /// The pipeline from right to left: moe_layer_backward.hpp.
  template <class Work>
  void run_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, const TapedRouting<T, RouterT>& routed,
                Work& work, MatrixRef<T> dx, Grads& grads) const;
  template <class Work, class RouterGrads>  // a router that only infers has none
  void router_back(const ConstMatrixRef<T>& x, const TapedRouting<T, RouterT>& routed, Work& work,
                   MatrixRef<T> dx, RouterGrads& grads) const;
  template <class Work>
  void weights_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                    const TapedRouting<T, RouterT>& routed, Work& work) const;

  RouterT router_;
  Set experts_;
  LayerOptions options_;
  std::optional<Shared> shared_;
  std::optional<Latent<T>> latent_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET

#include "moe_layer_backward.hpp"
