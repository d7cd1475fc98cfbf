// SPDX-License-Identifier: Apache-2.0
// MoELayer: the pipeline. Route, lay out, compute the experts tile by tile, combine; and the same
// line read right to left. The layer is const in use: what a call produces is the caller's.
#pragma once

#include <string>
#include <vector>

#include "../dispatch/combine.hpp"
#include "../experts/ffn_experts.hpp"
#include "../routing/router.hpp"
#include "layer_tape.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// How a layer uses its parts.
struct LayerOptions {
  Capacity capacity = {};
  WeightOn weight_on = WeightOn::output;
};

template <Real T, RouterLike<T> RouterT = Router<T>, ExpertLike<T> ExpertT = Expert<T>>
class MoELayer {
 public:
  using W = Wide<T>;

  using Scratch = LayerScratch<T, RouterT, ExpertT>;
  using Tape = LayerTape<T, RouterT, ExpertT>;
  using RecomputingTape = RecomputingLayerTape<T, RouterT, ExpertT>;

  struct Grads {
    typename RouterT::Params router;
    std::vector<typename ExpertT::Params> experts;
    typename DenseFfn<T>::Params shared;  ///< empty without a shared expert
  };

  /// Router, experts and shared expert of the config, with random weights from the seed.
  MoELayer(const MoEConfig& config, std::uint64_t seed) requires std::same_as<RouterT, Router<T>> &&
      std::same_as<ExpertT, Expert<T>>
      : MoELayer(make_router<T>(config, seed), make_experts<T>(config, seed),
                 {config.capacity, config.weight_on}, make_shared_expert<T>(config, seed)) {}

  /// Takes ready parts. Throws std::invalid_argument if their sizes disagree.
  MoELayer(RouterT router, std::vector<ExpertT> experts, const LayerOptions& options = {},
           std::optional<DenseFfn<T>> shared = std::nullopt);

  Index d_in() const { return experts_.front().d_in(); }
  Index d_out() const { return experts_.front().d_out(); }
  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  const LayerOptions& options() const { return options_; }
  RouterT& router() { return router_; }
  const RouterT& router() const { return router_; }
  std::vector<ExpertT>& experts() { return experts_; }
  const std::vector<ExpertT>& experts() const { return experts_; }
  std::optional<DenseFfn<T>>& shared() { return shared_; }
  const std::optional<DenseFfn<T>>& shared() const { return shared_; }

  /// Inference: y (N, d_out) = layer(x (N, d_in)); N may be 0. y may be x itself. Throws
  /// std::invalid_argument on other shapes or options that do not fit; an exception of a router or
  /// an expert comes out of here, and y is as before.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const;

  /// Training: the same y, and a tape for backward. y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const requires TrainableExpert<ExpertT, T>;
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, RecomputingTape& tape,
               const CallOptions& call = {}) const requires TrainableExpert<ExpertT, T>;

  /// dx (N, d_in) = and grads +=, from dy (N, d_out), the x and the tape of a forward, and the
  /// gradient of losses on tape.routing. The tape may be used again. Throws std::invalid_argument
  /// on other shapes, a tape of another layer (also of a copy), or if dx overlaps x or dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {}) const requires
      TrainableExpert<ExpertT, T> && TrainableRouter<RouterT, T>;
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, RecomputingTape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {}) const requires
      TrainableExpert<ExpertT, T> && TrainableRouter<RouterT, T>;

  /// Gradients of zero. The same struct serves as an optimiser's moments.
  Grads zero_grads() const requires TrainableExpert<ExpertT, T> && TrainableRouter<RouterT, T>;

  /// visit(name, parameter, grad...) for each tensor, with names like "experts.3.up".
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads);

 private:
  void check_input(const ConstMatrixRef<T>& x, const MatrixRef<T>& y) const {
    detail::check_shape(x, x.rows(), d_in(), "MoELayer: x");
    detail::check_shape(y, x.rows(), d_out(), "MoELayer: y");
  }
  void route(ConstMatrixRef<T> x, const CallOptions& call, Scratch& scratch) const;
  void gather(ConstMatrixRef<T> x, int threads, Scratch& scratch) const;
  ExpertRows<T, ExpertT> expert_rows(const Scratch& scratch, int threads) const {
    return {experts_, scratch.plan, threads};
  }
  void compute_taped(ConstMatrixRef<T> x, Tape& tape) const;
  /// y = what the shared expert wrote + the routed rows.
  void combine(Scratch& scratch, int threads, MatrixRef<T> y) const {
    MatrixRef<T> shared_out = scratch.shared_out;
    combine_rows<T>(scratch.rows, scratch.plan, weight_on(WeightOn::output, scratch),
                    shared_ ? &shared_out : nullptr, y, threads);
  }
  /// The weights if they act there, else null.
  const Matrix<W>* weight_on(WeightOn place, const Scratch& scratch) const {
    return options_.weight_on == place ? &scratch.routing.weight : nullptr;
  }
  void check_backward(const ConstMatrixRef<T>& x, const ConstMatrixRef<T>& dy, const Tape& tape,
                      const MatrixRef<T>& dx, const Grads& grads) const;
  void backward_taped(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                      Grads& grads) const;
  void backward_weights(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape) const;

  RouterT router_;
  std::vector<ExpertT> experts_;
  LayerOptions options_;
  std::optional<DenseFfn<T>> shared_;
  detail::Identity identity_;
};

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
MoELayer<T, RouterT, ExpertT>::MoELayer(RouterT router, std::vector<ExpertT> experts,
                                        const LayerOptions& options,
                                        std::optional<DenseFfn<T>> shared)
    : router_(std::move(router)),
      experts_(std::move(experts)),
      options_(options),
      shared_(std::move(shared)) {
  options.capacity.validate();
  detail::check(!experts_.empty(), "MoELayer: no experts, expected at least 1");
  detail::check(router_.num_experts() == num_experts(), "MoELayer: the router has ",
                router_.num_experts(), " experts, expected ", num_experts());
  for (const ExpertT& expert : experts_) {
    detail::check(expert.d_in() == d_in() && expert.d_out() == d_out(), "MoELayer: an expert is ",
                  expert.d_in(), " to ", expert.d_out(), " wide, expected ", d_in(), " to ",
                  d_out());
  }
  if constexpr (requires { router_.d_model(); }) {
    detail::check(router_.d_model() == d_in(), "MoELayer: the router is ", router_.d_model(),
                  " wide, expected ", d_in());
  }
  if (shared_) {
    detail::check(shared_->d_in() == d_in() && shared_->d_out() == d_out(),
                  "MoELayer: the shared expert is ", shared_->d_in(), " to ", shared_->d_out(),
                  " wide, expected ", d_in(), " to ", d_out());
  }
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
                                            const CallOptions& call) const {
  check_input(x, y);
  const int threads = detail::num_threads(call.num_threads);
  detail::in_one_region(threads, [&] {
    route(x, call, scratch);
    gather(x, threads, scratch);
    expert_rows(scratch, threads).forward(scratch.x_rows, scratch.rows, scratch.experts);
    if (shared_) {
      scratch.shared_out.resize(x.rows(), d_out());
      shared_->forward(x, scratch.shared_out, scratch.shared, call);
    }
    combine(scratch, threads, y);
  });
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
                                            const CallOptions& call) const requires
    TrainableExpert<ExpertT, T> {
  check_input(x, y);
  detail::check(!detail::overlap(x, y), "MoELayer: y overlaps x, which backward needs again");
  tape.owner = 0;
  const int threads = tape.num_threads = detail::num_threads(call.num_threads);
  detail::in_one_region(threads, [&] {
    route(x, call, tape);
    compute_taped(x, tape);
    combine(tape, threads, y);
  });
  tape.owner = identity_.number();
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::forward(
    ConstMatrixRef<T> x, MatrixRef<T> y, RecomputingTape& tape,
    const CallOptions& call) const requires TrainableExpert<ExpertT, T> {
  typename RecomputingTape::Loan loan(tape);
  forward(x, y, loan.memory(), call);
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::route(ConstMatrixRef<T> x, const CallOptions& call,
                                          Scratch& scratch) const {
  router_.route(x, call, scratch.routing);
  detail::check(scratch.routing.num_tokens() == x.rows(), "MoELayer: the router wrote ",
                scratch.routing.num_tokens(), " tokens, expected ", x.rows());
  scratch.plan.build(scratch.routing, num_experts(), options_.capacity,
                     call.tokens.sequence_length);
}

/// The experts' inputs, and room for their outputs.
template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::gather(ConstMatrixRef<T> x, int threads,
                                           Scratch& scratch) const {
  const Index choices = scratch.plan.slot().size();
  detail::grow(scratch.rows, choices, d_out());
  detail::grow(scratch.x_rows, choices, detail::spread_width<T>(d_in()));
  gather_rows<T>(x, scratch.plan, weight_on(WeightOn::input, scratch), scratch.x_rows, threads);
}

/// The outputs of the routed and the shared experts, and all that backward needs of them.
template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::compute_taped(ConstMatrixRef<T> x, Tape& tape) const {
  const int threads = tape.num_threads;
  gather(x, threads, tape);
  expert_rows(tape, threads).forward_taped(tape.x_rows, tape.rows, tape.expert_tapes);
  if (shared_) {
    tape.shared_out.resize(x.rows(), d_out());
    shared_->forward(x, tape.shared_out, tape.shared_tape, {.num_threads = threads});
  }
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape,
                                             MatrixRef<T> dx, Grads& grads,
                                             const RoutingGradient<W>& losses) const requires
    TrainableExpert<ExpertT, T> && TrainableRouter<RouterT, T> {
  check_backward(x, dy, tape, dx, grads);
  tape.gradient.assign(losses, tape.routing);
  detail::in_one_region(tape.num_threads, [&] { backward_taped(x, dy, tape, dx, grads); });
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                                             RecomputingTape& tape, MatrixRef<T> dx, Grads& grads,
                                             const RoutingGradient<W>& losses) const requires
    TrainableExpert<ExpertT, T> && TrainableRouter<RouterT, T> {
  typename RecomputingTape::Loan loan(tape);
  Tape& memory = loan.memory();
  check_backward(x, dy, memory, dx, grads);
  memory.gradient.assign(losses, memory.routing);
  detail::in_one_region(memory.num_threads, [&] {
    compute_taped(x, memory);
    backward_taped(x, dy, memory, dx, grads);
  });
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::backward_taped(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                                                   Tape& tape, MatrixRef<T> dx,
                                                   Grads& grads) const {
  const int threads = tape.num_threads;
  detail::grow(tape.dx_rows, tape.plan.slot().size(), d_in());
  detail::grow(tape.dy_rows, tape.plan.slot().size(), detail::spread_width<T>(d_out()));
  gather_rows<T>(dy, tape.plan, weight_on(WeightOn::output, tape), tape.dy_rows, threads);
  const auto rows = expert_rows(tape, threads);
  rows.backward(tape.x_rows, tape.dy_rows, tape.dx_rows, tape.expert_tapes);
  rows.backward_params(tape.x_rows, tape.dy_rows, tape.expert_tapes, grads.experts);
  backward_weights(x, dy, tape);
  router_.backward(x, tape.routing, tape.gradient, dx, grads.router);
  if (shared_) {
    tape.shared_dx.resize(x.rows(), d_in());
    shared_->backward(x, dy, tape.shared_tape, tape.shared_dx, grads.shared);
    detail::for_blocks(x.rows(), threads,
                       [&](Index row) { dx.row(row) += tape.shared_dx.row(row); });
  }
  combine_rows<T>(tape.dx_rows, tape.plan, nullptr, &dx, dx, threads);
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::check_backward(const ConstMatrixRef<T>& x,
                                                   const ConstMatrixRef<T>& dy, const Tape& tape,
                                                   const MatrixRef<T>& dx,
                                                   const Grads& grads) const {
  detail::check(tape.owner == identity_.number(),
                "MoELayer: the tape is of another layer, expected this one's");
  detail::check_shape(x, tape.routing.num_tokens(), d_in(), "MoELayer: x");
  detail::check_shape(dy, x.rows(), d_out(), "MoELayer: dy");
  detail::check_shape(dx, x.rows(), d_in(), "MoELayer: dx");
  detail::check(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                "MoELayer: dx overlaps x or dy, expected memory of its own");
  detail::check(static_cast<Index>(grads.experts.size()) == num_experts(), "MoELayer: grads has ",
                grads.experts.size(), " experts, expected ", num_experts());
  check_like(router_.params(), grads.router, "MoELayer: grads.router");
  for (std::size_t e = 0; e < experts_.size(); ++e) {
    check_like(experts_[e].params(), grads.experts[e], "MoELayer: grads.experts");
  }
  if (shared_) {
    check_like(shared_->params(), grads.shared, "MoELayer: grads.shared");
  }
}

/// The gradients of the router's weights; where those act on the inputs, dx_rows takes them in.
template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
void MoELayer<T, RouterT, ExpertT>::backward_weights(ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
                                                     Tape& tape) const {
  const bool on_input = options_.weight_on == WeightOn::input;
  detail::for_blocks(tape.plan.num_rows(), tape.num_threads, [&](Index row) {
    const Index token = tape.plan.token()[static_cast<std::size_t>(row)];
    const Index choice = tape.plan.choice()[static_cast<std::size_t>(row)];
    T* dx_row = &tape.dx_rows.coeffRef(row, 0);
    tape.gradient.weight(token, choice) +=
        on_input ? kernels::dot(&x.coeffRef(token, 0), dx_row, d_in())
                 : kernels::dot(&dy.coeffRef(token, 0), &tape.rows.coeffRef(row, 0), d_out());
    if (on_input) {
      kernels::scale_row(tape.routing.weight(token, choice), d_in(), dx_row);
    }
  });
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
auto MoELayer<T, RouterT, ExpertT>::zero_grads() const
    -> Grads requires TrainableExpert<ExpertT, T> && TrainableRouter<RouterT, T> {
  Grads grads{.router = zeros_like(router_.params()), .experts = {}, .shared = {}};
  grads.experts.reserve(experts_.size());
  for (const ExpertT& expert : experts_) {
    grads.experts.push_back(zeros_like(expert.params()));
  }
  if (shared_) {
    grads.shared = zeros_like(shared_->params());
  }
  return grads;
}

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
template <class Visit, class... G>
void MoELayer<T, RouterT, ExpertT>::for_each_parameter(Visit&& visit, G&... grads) {
  const auto named = [&](const std::string& prefix) {
    return [&visit, prefix](std::string_view name, auto& parameter, auto&... others) {
      if (parameter.size() > 0) {
        visit(prefix + std::string(name), parameter, others...);
      }
    };
  };
  RouterT::Params::for_each(named("router."), router_.params(), grads.router...);
  for (std::size_t e = 0; e < experts_.size(); ++e) {
    ExpertT::Params::for_each(named("experts." + std::to_string(e) + "."), experts_[e].params(),
                              grads.experts[e]...);
  }
  if (shared_) {
    DenseFfn<T>::Params::for_each(named("shared."), shared_->params(), grads.shared...);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
