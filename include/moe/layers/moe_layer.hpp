// SPDX-License-Identifier: Apache-2.0
// MoELayer: the pipeline. Route, keep, lay out, compute the experts, combine; and the same line
// read right to left. The layer is const in use: what a call produces is the caller's.
#pragma once

#include <optional>
#include <span>

#include "../dispatch/combine.hpp"
#include "layer_input.hpp"
#include "layer_tape.hpp"
#include "padding.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// T is the scalar of the tokens; E an expert, of which the layer has several, or a set of experts.
template <Real T, RouterLike<T> RouterT = Router<T>, class E = Expert<T>>
requires ExpertLike<ExpertIn<E, T>, T>
class MoELayer : public LayerParts<T, RouterT, E> {
  using Parts = LayerParts<T, RouterT, E>;

 public:
  using Parts::check_params, Parts::d_in, Parts::d_out, Parts::multiply_adds, Parts::num_experts;
  using typename Parts::Grads, typename Parts::Set, typename Parts::Shared, typename Parts::W;

  using Scratch = LayerScratch<T, RouterT, Set>;
  using Tape = LayerTape<T, RouterT, Set>;
  using RecomputingTape = RecomputingLayerTape<T, RouterT, Set>;

  /// Router, experts, shared expert and latent part of the config, with random weights from the
  /// seed.
  MoELayer(const MoEConfig& config, std::uint64_t seed) requires std::same_as<RouterT, Router<T>> &&
      std::same_as<Set, FfnExperts<T>>
      : MoELayer(make_router<T>(config, seed), Set(make_experts<T>(config, seed)), config.options(),
                 make_shared_expert<T>(config, seed), make_extras<T>(config, seed)) {}

  /// Takes ready parts. Throws std::invalid_argument as LayerParts says.
  MoELayer(RouterT router, std::vector<E> experts, const LayerOptions& options = {},
           std::optional<Shared> shared = std::nullopt,
           LayerExtras<T> extras = {}) requires ExpertLike<E, T>
      : MoELayer(std::move(router), Set(std::move(experts)), options, std::move(shared),
                 std::move(extras)) {}
  MoELayer(RouterT router, std::same_as<Set> auto experts, const LayerOptions& options = {},
           std::optional<Shared> shared = std::nullopt, LayerExtras<T> extras = {})
      : Parts(std::move(router), std::move(experts), options, std::move(shared),
              std::move(extras)) {}

  /// Inference: y (N, d_out) = layer(x (N, d_in)), or of {x, router_x}; N may be 0. y may be x
  /// itself. Throws std::invalid_argument on other shapes, also of parameters, or options that do
  /// not fit; an exception of a router or an expert comes out of here, and y is as before.
  void forward(const LayerInput<T>& input, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    check_input(input, y, call);
    run(input, y, scratch, scratch, call);
  }

  /// A call with other matrices does not compile: a sentence says which.
  template <class X, class Y, class Memory>
  requires detail::WrongMatrices<T, X, Y>
  void forward(const X&, Y&&, Memory&, const CallOptions& = {}) const {
    detail::refuse_matrices<T, X, Y>();
  }

  /// The first steps of forward alone, of what the router looks at: table, kept choices and plan,
  /// for whoever computes the experts elsewhere or only wants to see who goes where. A tape is no
  /// longer one for backward.
  void route(ConstMatrixRef<T> x, const CallOptions& call, Routed<T, RouterT>& routed) const {
    check_call(x, call);
    detail::num_threads(call.num_threads);  // throws what the router would, while there is a tape
    routed.owner.clear();
    write_routed(x, call, routed);
  }

  /// Training: the same y, and a tape for backward. y must not overlap the input.
  void forward(const LayerInput<T>& input, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const requires TrainableInLayer<E, T> {
    run_taped(input, y, tape, tape.work, call);
  }
  void forward(const LayerInput<T>& input, MatrixRef<T> y, RecomputingTape& tape,
               const CallOptions& call = {}) const requires TrainableInLayer<E, T> {
    run_taped(input, y, tape, tape.work(), call);
    tape.work().owner.clear();
  }

  /// dx (N, d_in) =, or {dx, router_dx} for an input of two, and grads +=, from dy (N, d_out), the
  /// input and the tape of a forward, and the gradient of losses on tape.routing. The tape may be
  /// used again. Throws std::invalid_argument on other shapes, a tape of another layer (also of a
  /// copy) or of other parts than stand in it now, or gradients that overlap the input, dy or each
  /// other. A RecomputingTape takes x through the experts of now, whichever they are.
  void backward(const LayerInput<T>& input, ConstMatrixRef<T> dy, Tape& tape,
                const LayerInputGrads<T>& dinput, Grads& grads,
                const RoutingGradient<W>& losses = {}) const requires TrainableInLayer<E, T> &&
      TrainableRouter<RouterT, T> {
    check_backward(input, dy, tape, dinput, grads);
    check_work(tape.work, {"MoELayer"});
    losses.validate(tape.routing);
    detail::with_team(tape.num_threads, [&] {
      tape.work.gradient.assign(losses, tape.routing, tape.num_threads);
      run_back(input, dy, tape, tape.work, dinput, grads);
    });
  }
  void backward(const LayerInput<T>& input, ConstMatrixRef<T> dy, RecomputingTape& tape,
                const LayerInputGrads<T>& dinput, Grads& grads,
                const RoutingGradient<W>& losses = {}) const requires TrainableInLayer<E, T> &&
      TrainableRouter<RouterT, T> {
    check_backward(input, dy, tape, dinput, grads);
    losses.validate(tape.routing);
    tape.work().owner.clear();
    detail::with_team(tape.num_threads, [&] {
      tape.work().gradient.assign(losses, tape.routing, tape.num_threads);
      compute(input.x, tape, tape.work(), tape.num_threads);
      run_back(input, dy, tape, tape.work(), dinput, grads);
    });
  }
  /// As for forward.
  template <class X, class Dy, class Memory, class Dx, class G>
  requires detail::WrongBackwardMatrices<T, X, Dy, Dx>
  void backward(const X&, const Dy&, Memory&, Dx&&, G&, const RoutingGradient<W>& = {}) const {
    detail::refuse_backward_matrices<T, X, Dy, Dx>();
  }

  /// Throws std::invalid_argument unless the tape is of a forward of this very layer, and of the
  /// parts that stand in it, as far as these have check_tape(tape, name).
  void check_tape(const Tape& tape,
                  const ParameterName& name) const requires TrainableInLayer<E, T> {
    check_routed(tape, name);
    check_work(tape.work, name);
  }

 private:
  using Parts::check_params_beside_experts, Parts::coefficients_, Parts::experts_, Parts::latent_,
      Parts::options_, Parts::output_norm_, Parts::router_, Parts::router_width, Parts::shared_;

  static constexpr bool trains = TrainableInLayer<E, T> && TrainableRouter<RouterT, T>;

  void check_router_call(const ConstMatrixRef<T>& x, Index num_tokens,
                         const CallOptions& call) const {
    detail::check_shape(x, num_tokens, router_width(), "MoELayer: router_x");
    call.validate(num_tokens, num_experts());
    detail::throw_unless(call.expert_dropout <= 0.0 || options_.weight_on != WeightOn::input,
                         "MoELayer: the call sets expert_dropout, expected none where weights act "
                         "on the inputs of experts");
    if constexpr (requires { router_.check_call(call, num_tokens); }) {
      router_.check_call(call, num_tokens);
    }
  }
  void check_call(const ConstMatrixRef<T>& router_x, const CallOptions& call) const {
    check_params_beside_experts({});
    check_router_call(router_x, router_x.rows(), call);
  }
  void check_input(const LayerInput<T>& input, const MatrixRef<T>& y,
                   const CallOptions& call) const {
    check_params_beside_experts({});
    detail::check_shape(input.x, input.x.rows(), d_in(), "MoELayer: x");
    check_router_call(input.router_x, input.x.rows(), call);
    detail::check_shape(y, input.x.rows(), d_out(), "MoELayer: y");
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
    call.check_obeyed(routed.routing.expert);
    routed.kept.select(routed.routing, num_experts(), call.capacity.value_or(options_.capacity),
                       call.tokens);
    routed.kept.drop_out(routed.routing.top_k(), call);
    routed.weight_factor = call.drops_experts() ? 1.0 / (1.0 - call.expert_dropout) : 1.0;
    routed.plan.build(routed.routing, routed.kept, num_experts());
  }

  /// The pipeline. Memory is a LayerScratch or a LayerWork.
  template <class Memory>
  void run(const LayerInput<T>& input, MatrixRef<T> y, Routed<T, RouterT>& routed, Memory& memory,
           const CallOptions& call) const {
    const int threads = detail::num_threads(call.num_threads, multiply_adds(input.x.rows()));
    detail::with_team(threads, [&] {
      write_routed(input.router_x, call, routed);
      compute(input.x, routed, memory, threads);
      if (output_norm_) {
        output_norm_->forward(memory.output_norm, y, threads);
        detail::clear_rows<T>(y, routed.routing.padding);  // 0 times NaN of a scale is NaN
      } else {
        combine(routed, memory, y, threads);
      }
    });
  }

  /// y = the layer's output, before a norm of it.
  template <class Memory>
  void combine(const Routed<T, RouterT>& routed, Memory& memory, MatrixRef<T> y,
               int threads) const {
    const MatrixRef<T> shared_out = memory.shared_out;
    const CombineBase<T> base =
        coefficients_ ? CombineBase<T>(&shared_out, memory.coefficients.value)
                      : CombineBase<T>(shared_ ? &shared_out : nullptr, nullptr,
                                       {W(options_.routed_scale), W(options_.shared_scale),
                                        options_.unscaled()});
    if (!latent_) {
      return combine_rows<T>(memory.rows, routed.plan, weight_on(WeightOn::output, memory), base, y,
                             threads);
    }
    latent_->leave(memory.latent, y, threads);
    detail::clear_rows<T>(y, routed.routing.padding);  // 0 times NaN of a weight is NaN
    add_base<T>(base, y, threads);
  }

  /// The outputs of the routed and the shared experts, and all that backward needs of them.
  template <class Memory>
  void compute(ConstMatrixRef<T> x, const Routed<T, RouterT>& routed, Memory& memory,
               int threads) const {
    const Index num_rows = routed.plan.num_rows();
    gather_weights(routed.routing.weight, routed.plan, memory.row_weight, routed.weight_factor);
    memory.rows.resize(num_rows, experts_.d_out());
    if (latent_) {
      latent_->enter(x, memory.latent, threads);
    }
    experts_.forward(expert_input(x, routed, memory), memory.rows, memory.experts, threads);
    if (latent_) {
      memory.latent.combined.resize(x.rows(), latent_->width());
      combine_rows<T>(memory.rows, routed.plan, weight_on(WeightOn::output, memory), nullptr,
                      memory.latent.combined, threads);
      latent_->normalise(memory.latent, threads);
    }
    if (shared_) {
      memory.shared_out.resize(x.rows(), d_out());
      shared_->forward(x, memory.shared_out, memory.shared,
                       {.num_threads = threads, .tokens = {.padding = routed.routing.padding}});
    }
    if (coefficients_) {
      coefficients_->forward(x, routed.routing.padding, memory.coefficients, threads);
    }
    if (output_norm_) {
      memory.output_norm.sum.resize(x.rows(), d_out());
      combine(routed, memory, memory.output_norm.sum, threads);
      output_norm_->measure(memory.output_norm, threads);
    }
  }

  template <class Memory>
  ExpertInput<T> expert_input(ConstMatrixRef<T> x, const Routed<T, RouterT>& routed,
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
  void run_taped(const LayerInput<T>& input, MatrixRef<T> y, TapedRouting<T, RouterT>& routed,
                 Work& work, const CallOptions& call) const {
    moe::check_params(experts_, {"experts"});  // an inference asks only those that have rows
    check_input(input, y, call);
    detail::throw_unless(!detail::overlap(input.x, y) && !detail::overlap(input.router_x, y),
                         "MoELayer: y overlaps x, which backward needs again");
    routed.num_threads = detail::num_threads(call.num_threads, multiply_adds(input.x.rows()));
    routed.owner.clear();
    work.owner.clear();
    work.shared.owner.clear();
    work.latent.owner.clear();
    work.coefficients.owner.clear();
    work.output_norm.owner.clear();
    run(input, y, routed, work, call);
    routed.owner.set(identity_);
    work.owner.set(identity_);
    if (latent_) {
      latent_->own(work.latent);
    }
    if (coefficients_) {
      coefficients_->own(work.coefficients);
    }
    if (output_norm_) {
      output_norm_->own(work.output_norm);
    }
  }

  void check_routed(const TapedRouting<T, RouterT>& routed, const ParameterName& name) const {
    detail::check_own(routed.owner.is(identity_), name,
                      "the tape is of another layer, expected this one's");
    moe::check_tape(router_, routed.routing, {.word = "router", .part = &name});
  }

  template <class Work>
  void check_work(const Work& work, const ParameterName& name) const {
    detail::check_own(work.owner.is(identity_), name,
                      "other calls used the memory of the tape, expected its forward last");
    detail::check_own(shared_ ? shared_->owns(work.shared) : work.shared.owner.is_nobody(), name,
                      "the tape is of another shared expert, expected this layer's");
    detail::check_own(latent_ ? latent_->owns(work.latent) : work.latent.owner.is_nobody(), name,
                      "the tape is of another latent part, expected this layer's");
    detail::check_own(coefficients_ ? coefficients_->owns(work.coefficients)
                                    : work.coefficients.owner.is_nobody(),
                      name, "the tape is of other coefficients, expected this layer's");
    detail::check_own(
        output_norm_ ? output_norm_->owns(work.output_norm) : work.output_norm.owner.is_nobody(),
        name, "the tape is of another norm of the output, expected this layer's");
    if (shared_) {
      moe::check_tape(*shared_, work.shared, {.word = "shared", .part = &name});
    }
    moe::check_tape(experts_, work.experts, {.word = "experts", .part = &name});
  }

  void check_backward(const LayerInput<T>& input, const ConstMatrixRef<T>& dy,
                      const TapedRouting<T, RouterT>& routed, const LayerInputGrads<T>& dinput,
                      const Grads& grads) const requires trains {
    check_routed(routed, {"MoELayer"});
    const Index num_tokens = routed.plan.num_tokens();
    detail::check_shape(routed.routing.weight, num_tokens, routed.plan.top_k(),
                        "MoELayer: tape.routing.weight");
    detail::check_shape(input.x, num_tokens, d_in(), "MoELayer: x");
    detail::check_shape(input.router_x, num_tokens, router_width(), "MoELayer: router_x");
    detail::check_shape(dy, num_tokens, d_out(), "MoELayer: dy");
    detail::check_shape(dinput.dx, num_tokens, d_in(), "MoELayer: dx");
    detail::check_shape(dinput.router_dx, num_tokens, router_width(), "MoELayer: router_dx");
    for (const MatrixRef<T>& dx : {dinput.dx, dinput.router_dx}) {
      detail::throw_unless(!detail::overlap(input.x, dx) && !detail::overlap(input.router_x, dx) &&
                               !detail::overlap(dy, dx),
                           "MoELayer: dx overlaps x or dy, expected memory of its own");
    }
    detail::throw_unless(dinput.apart || !input.apart(),
                         "MoELayer: there is one gradient of x and router_x, expected one of each");
    detail::throw_unless(!dinput.apart || !detail::overlap(dinput.dx, dinput.router_dx),
                         "MoELayer: dx overlaps router_dx, expected memory of its own");
    check_params({});
    check_grads(*this, {}, grads);
  }

  /// The pipeline from right to left: moe_layer_backward.hpp.
  template <class Work>
  void run_back(const LayerInput<T>& input, ConstMatrixRef<T> dy,
                const TapedRouting<T, RouterT>& routed, Work& work,
                const LayerInputGrads<T>& dinput, Grads& grads) const;
  /// dx = from the experts and, of an input of one, from the router, which has written it there.
  template <class Work>
  void input_back(ConstMatrixRef<T> x, const TapedRouting<T, RouterT>& routed, Work& work,
                  const LayerInputGrads<T>& dinput, Grads& grads) const;
  /// dx += and grads +=
  template <class Work>
  void coefficients_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                         const TapedRouting<T, RouterT>& routed, Work& work, MatrixRef<T> dx,
                         Grads& grads) const;
  template <class Work, class RouterGrads>  // a router that only infers has none
  void router_back(const ConstMatrixRef<T>& x, const TapedRouting<T, RouterT>& routed, Work& work,
                   MatrixRef<T> dx, RouterGrads& grads) const;
  template <class Work>
  void weights_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                    const TapedRouting<T, RouterT>& routed, Work& work) const;

  /// Whether weights of inputs meet the rows of dx where these are added up, and not before: in 16
  /// bits each would be rounded once more.
  static constexpr bool weighted_when_added = !std::same_as<T, W>;

  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET

#include "moe_layer_backward.hpp"
