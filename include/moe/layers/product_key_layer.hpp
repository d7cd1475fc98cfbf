// SPDX-License-Identifier: Apache-2.0
// ProductKeyLayer: experts of rank one, found by product keys, and perhaps a shared expert beside
// them (He 2024, Mixture of A Million Experts; the CDMoE of Doge). Of MoELayer it differs in that
// rows are never laid out by expert: there are many choices, and each has little work.
#pragma once

#include <optional>
#include <utility>

#include "padding.hpp"
#include "product_key_tape.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// T is the scalar of the tokens. The layer is const in use.
template <Real T>
class ProductKeyLayer {
 public:
  using W = Wide<T>;
  using RouterT = ProductKeyRouter<T>;
  using Set = RankOneExperts<T>;
  using Shared = DenseFfn<T>;
  using Scratch = ProductKeyScratch<T>;
  using Tape = ProductKeyTape<T>;
  using Grads = ProductKeyGrads<T>;

  /// With random weights from the seed.
  ProductKeyLayer(const ProductKeyLayerConfig& config, std::uint64_t seed)
      : ProductKeyLayer(make_router(config, seed), make_experts(config, seed),
                        make_shared(config, seed)) {}
  /// Takes ready parts. Throws std::invalid_argument if their sizes disagree.
  ProductKeyLayer(RouterT router, Set experts, std::optional<Shared> shared = std::nullopt)
      : router_(std::move(router)), experts_(std::move(experts)), shared_(std::move(shared)) {
    check_params({});
  }

  Index d_in() const { return experts_.d_in(); }
  Index d_out() const { return experts_.d_out(); }
  Index num_experts() const { return experts_.num_experts(); }
  RouterT& router() { return router_; }
  const RouterT& router() const { return router_; }
  Set& experts() { return experts_; }
  const Set& experts() const { return experts_; }
  std::optional<Shared>& shared() { return shared_; }
  const std::optional<Shared>& shared() const { return shared_; }
  /// Those of a forward.
  double multiply_adds(Index rows) const {
    return router_.multiply_adds(rows) + experts_.multiply_adds(rows * router_.top_k()) +
           (shared_ ? shared_->multiply_adds(rows) : 0.0);
  }

  /// Throws std::invalid_argument unless the parts fit each other and their parameters have their
  /// shapes. `name` is the layer's.
  void check_params(const ParameterName& name) const {
    check_parts();
    router_.check_params({.word = "router", .part = &name});
    experts_.check_params({.word = "experts", .part = &name});
    if (shared_) {
      shared_->check_params({.word = "shared", .part = &name});
    }
  }

  /// Inference: y (N, d_out) = layer(x (N, d_in)); N may be 0. y may be x itself. Padding is 0 in
  /// y. Throws std::invalid_argument on other shapes, also of parameters, and if the call asks for
  /// masks, experts, a top_k, a capacity or dropout, which there are none of here; y is as before
  /// then.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    check_call(x, y, call);
    run(x, y, scratch, call);
  }

  /// Training: the same y, and a tape for backward. y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const {
    check_call(x, y, call);
    detail::throw_unless(!detail::overlap(x, y),
                         "ProductKeyLayer: y overlaps x, which backward needs again");
    tape.owner.clear();
    tape.experts.owner.clear();
    tape.shared.owner.clear();
    run(x, y, tape, call);
    experts_.own(tape.experts);
    tape.owner.set(identity_);
  }

  /// dx (N, d_in) = and grads +=, from dy (N, d_out), the x and the tape of a forward, and the
  /// gradient of losses on tape.routing. Throws std::invalid_argument on other shapes, a tape of
  /// another layer (also of a copy) or of other parts than stand in it now, or if dx overlaps x or
  /// dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {}) const {
    check_backward(x, dy, tape, dx, grads);
    losses.validate(tape.routing);
    detail::with_team(tape.routing.num_threads, [&] {
      tape.gradient.assign(losses, tape.routing, tape.routing.num_threads);
      run_back(x, dy, tape, dx, grads);
    });
  }

  /// Throws std::invalid_argument unless the tape is of a forward of this very layer, and of the
  /// parts that stand in it.
  void check_tape(const Tape& tape, const ParameterName& name) const {
    detail::check_own(tape.owner.is(identity_), name,
                      "the tape is of another layer, expected this one's");
    router_.check_tape(tape.routing, {.word = "router", .part = &name});
    experts_.check_tape(tape.experts, {.word = "experts", .part = &name});
    detail::check_own(shared_ ? shared_->owns(tape.shared) : tape.shared.owner.is_nobody(), name,
                      "the tape is of another shared expert, expected this layer's");
    if (shared_) {
      shared_->check_tape(tape.shared, {.word = "shared", .part = &name});
    }
  }

  /// Gradients of zero, in W. The same struct serves as an optimiser's moments.
  Grads zero_grads() const {
    Grads grads{zero_grads_of(router_), zero_grads_of(experts_), {}};
    if (shared_) {
      grads.shared = zero_grads_of(*shared_);
    }
    return grads;
  }
  /// visit(name, parameter, grad...) for each tensor: router.weight, experts.down, experts.up and
  /// those of the shared expert.
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) const {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  /// What WalksParams asks for: all tensors, also those that a part does not have.
  template <class Layer, class Visit, class... G>
  static void walk(Layer& layer, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(layer.router(), {.word = "router", .part = &name}, visit, grads.router...);
    walk_params(layer.experts(), {.word = "experts", .part = &name}, visit, grads.experts...);
    if (layer.shared()) {
      walk_params(*layer.shared(), {.word = "shared", .part = &name}, visit, grads.shared...);
    }
  }

 private:
  // Each validates, as C++ says of none that it comes first.
  static RouterT make_router(const ProductKeyLayerConfig& config, std::uint64_t seed) {
    config.validate();
    return {config.d_model, config.keys, detail::seed_of(seed, 0)};
  }
  static Set make_experts(const ProductKeyLayerConfig& config, std::uint64_t seed) {
    config.validate();
    return {{config.d_model, config.keys.num_experts(), config.output_width()},
            config.expert,
            detail::seed_of(seed, 2)};
  }
  static std::optional<Shared> make_shared(const ProductKeyLayerConfig& config,
                                           std::uint64_t seed) {
    config.validate();
    if (!config.shared_d_ff) {
      return std::nullopt;
    }
    return Shared({config.d_model, *config.shared_d_ff, config.output_width()}, config.expert,
                  detail::seed_of(seed, 1));
  }

  void check_parts() const {
    detail::throw_unless(router_.num_experts() == num_experts(), "ProductKeyLayer: the router has ",
                         router_.num_experts(), " experts, expected ", num_experts());
    detail::throw_unless(router_.d_model() == d_in(), "ProductKeyLayer: the router is ",
                         router_.d_model(), " wide, expected ", d_in());
    if (shared_) {
      detail::throw_unless(shared_->d_in() == d_in() && shared_->d_out() == d_out(),
                           "ProductKeyLayer: the shared expert is ", shared_->d_in(), " to ",
                           shared_->d_out(), " wide, expected ", d_in(), " to ", d_out());
    }
  }

  void check_call(const ConstMatrixRef<T>& x, const MatrixRef<T>& y,
                  const CallOptions& call) const {
    check_params({});
    detail::check_shape(x, x.rows(), d_in(), "ProductKeyLayer: x");
    detail::check_shape(y, x.rows(), d_out(), "ProductKeyLayer: y");
    call.validate(x.rows(), num_experts());
    router_.check_call(call, x.rows());
    detail::num_threads(call.num_threads);  // throws what run() would, while there is a tape
    detail::throw_unless(
        !call.capacity && call.expert_dropout <= 0.0,
        "ProductKeyLayer: the call sets capacity or expert_dropout, expected neither");
  }

  void check_backward(const ConstMatrixRef<T>& x, const ConstMatrixRef<T>& dy, const Tape& tape,
                      const MatrixRef<T>& dx, const Grads& grads) const {
    check_tape(tape, {"ProductKeyLayer"});
    detail::check_shape(x, tape.routing.num_tokens(), d_in(), "ProductKeyLayer: x");
    detail::check_shape(dy, x.rows(), d_out(), "ProductKeyLayer: dy");
    detail::check_shape(dx, x.rows(), d_in(), "ProductKeyLayer: dx");
    detail::throw_unless(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                         "ProductKeyLayer: dx overlaps x or dy, expected memory of its own");
    check_params({});
    check_grads(*this, {}, grads);
  }

  /// Memory is a Scratch or a Tape.
  template <class Memory>
  void run(ConstMatrixRef<T> x, MatrixRef<T> y, Memory& memory, const CallOptions& call) const {
    const int threads = detail::num_threads(call.num_threads, multiply_adds(x.rows()));
    detail::with_team(threads, [&] {
      router_.route(x, call, memory.routing);
      const RankOneInput<T> input{x, memory.routing, threads};
      experts_.activate(input, memory.experts);
      if (shared_) {
        memory.shared_out.resize(x.rows(), d_out());
        shared_->forward(x, memory.shared_out, memory.shared,
                         {.num_threads = threads, .tokens = {.padding = call.tokens.padding}});
      }
      const MatrixRef<T> shared_out = memory.shared_out;
      experts_.combine(input, memory.experts, shared_ ? &shared_out : nullptr, y);
      detail::clear_rows<T>(y, memory.routing.padding);
    });
  }

  void run_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads) const {
    const RankOneInput<T> input{x, tape.routing, tape.routing.num_threads};
    tape.kept.select(tape.routing, num_experts(), {}, {});
    tape.plan.build(tape.routing, tape.kept, num_experts());
    experts_.backward(input, dy, tape.plan, tape.experts, grads.experts);
    detail::for_rows(x.rows(), input.threads,
                     [&](Index t) { tape.gradient.weight.row(t) += tape.experts.dweight.row(t); });
    router_.backward(x, tape.routing, tape.gradient, dx, grads.router);
    if (shared_) {
      tape.shared_dx.resize(x.rows(), d_in());
      shared_->backward(x, dy, tape.shared, tape.shared_dx, grads.shared);
    }
    const MatrixRef<T> shared_dx = tape.shared_dx;
    experts_.input_backward(input, tape.experts, shared_ ? &shared_dx : nullptr, dx);
    detail::clear_rows<T>(dx, tape.routing.padding);
  }

  RouterT router_;
  Set experts_;
  std::optional<Shared> shared_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
