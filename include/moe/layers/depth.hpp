// SPDX-License-Identifier: Apache-2.0
// DepthLayer: a block of a model that only some tokens of each sequence go through, Mixture-of-
// Depths (Raposo et al. 2024):
//
//   y = x + r f(x)    of the tokens with the largest r of their sequence, where r is a logit
//   y = x             of all others
//
// forward() looks across the batch, and is not causal. forward_causal() looks at one token: it
// takes those whose logit is above the threshold, by the predictor if there is one, else by the
// router. For that the paper trains either with selection_loss: of tape.predicted, whose gradient
// ends in the predictor, or of tape.routing, whose gradient goes on through the router into x.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "../experts/dense_ffn.hpp"
#include "../kernels/finite.hpp"
#include "../routing/linear_router.hpp"
#include "../routing/top_tokens.hpp"
#include "../routing/two_layer_gate.hpp"
#include "depth_tape.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The router of a DepthLayer is linear_router<T>(d_model, 1, TopTokens<Wide<T>>(config), seed);
/// this is its predictor, random, with biases.
template <Real T>
GatedRouter<T, TwoLayerGate<T>, TopTokens<Wide<T>>> depth_predictor(Index d_model, Index d_hidden,
                                                                    const TopTokensConfig& config,
                                                                    std::uint64_t seed) {
  const TwoLayerGate<T> gate(d_model, d_hidden, 1, {.bias = true});
  return {gate, TopTokens<Wide<T>>(config), {gate.initial_params(seed), {}}};
}

/// The block is anything that computes rows (ExpertLike), a layer as well, without its residual. If
/// its forward takes CallOptions, it gets the tokens that it sees as their sequences, with their
/// ids and positions, so that it may mix them; y and gradients are only as deterministic as the
/// block is. A block with a router of its own has its routing in the tape, for losses, also where
/// no token is taken. The layer is const in use.
template <Real T, ExpertLike<T> Block = DenseFfn<T>, GateLike<T> Gate = LinearGate<T>,
          GateLike<T> PredictorGate = TwoLayerGate<T>>
class DepthLayer {
 public:
  using W = Wide<T>;
  using RouterT = GatedRouter<T, Gate, TopTokens<W>>;
  using Predictor = GatedRouter<T, PredictorGate, TopTokens<W>>;
  using Grads = DepthGrads<RouterT, Predictor, Block>;
  using Scratch = DepthScratch<T, RouterT, Predictor, Block>;
  using Tape = DepthTape<T, RouterT, Predictor, Block>;

  /// Throws std::invalid_argument if the parts' sizes disagree.
  DepthLayer(RouterT router, Block block, std::optional<Predictor> predictor = std::nullopt)
      : router_(std::move(router)), block_(std::move(block)), predictor_(std::move(predictor)) {
    check_params({});
  }

  Index d_in() const { return block_.d_in(); }
  Index d_out() const { return block_.d_out(); }
  RouterT& router() { return router_; }
  const RouterT& router() const { return router_; }
  Block& block() { return block_; }
  const Block& block() const { return block_; }
  std::optional<Predictor>& predictor() { return predictor_; }
  const std::optional<Predictor>& predictor() const { return predictor_; }
  /// Those of a forward of one sequence; infinite where the block states none.
  double multiply_adds(Index rows) const {
    return router_.multiply_adds(rows) + (predictor_ ? predictor_->multiply_adds(rows) : 0.0) +
           detail::multiply_adds(block_, router_.rule().count(rows));
  }

  /// Of so many tokens, so many of which are taken, where gate and block state their own: of a
  /// forward without the predictor, which adds its own where it is asked.
  template <StatesFlops R = RouterT, StatesFlops B = Block>
  Flops forward_flops(Index tokens, Index taken) const {
    return router_.forward_flops(tokens) + block_.forward_flops(taken) +
           taken * detail::flops_of_one(0, 3 * d_out());
  }
  /// With the predictor, if there is one.
  template <StatesBackwardFlops G = Gate, StatesBackwardFlops P = PredictorGate,
            StatesBackwardFlops B = Block>
  Flops backward_flops(Index tokens, Index taken) const {
    const auto of_router = [&](const auto& router) {
      return router.gate().backward_flops(tokens) + router.rule().backward_flops(tokens, taken);
    };
    return of_router(router_) + (predictor_ ? of_router(*predictor_) : Flops{}) +
           block_.backward_flops(taken) + taken * detail::flops_of_one(0, 4 * d_out() + 1) +
           tokens * detail::flops_of_one(0, 2 * d_out());
  }

  /// Throws std::invalid_argument unless the parts fit each other and their parameters have their
  /// shapes. `name` is the layer's.
  void check_params(const ParameterName& name) const {
    check_parts();
    moe::check_params(router_, {.word = "router", .part = &name});
    moe::check_params(block_, {.word = "block", .part = &name});
    if (predictor_) {
      moe::check_params(*predictor_, {.word = "predictor", .part = &name});
    }
  }

  /// Inference: y (N, d) = layer(x (N, d)); N may be 0. y may be x itself. Padding is 0 in y, and a
  /// mask (1 or N, 1) keeps tokens from the block. Throws std::invalid_argument on other shapes,
  /// also of parameters, and if the call asks for experts, a top_k or a capacity; an exception of
  /// the block comes out of here, and y is as before.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    check_call(x, y, call);
    run(x, y, scratch, call, [](int) {});
  }

  /// The same, but each token is taken or not by itself. One about which a NaN or an infinity is to
  /// decide has a y that is NaN.
  void forward_causal(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
                      const CallOptions& call = {}) const {
    check_call(x, y, call);
    run(x, y, scratch, call, [&](int threads) {
      if (predictor_) {
        predictor_->route(x, call, scratch.predicted);
      }
      auto& table = scratch.routing;
      detail::for_rows(x.rows(), threads, [&](Index token) {
        take_alone(predictor_ ? scratch.predicted.logits(token, 0) : table.logits(token, 0), token,
                   table);
      });
      if (predictor_) {
        scratch.predicted.expert = table.expert;
      }
    });
  }

  /// Training: as the first, and a tape for backward and losses. y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const requires TrainableExpert<Block, T> {
    moe::check_params(block_, {"block"});
    check_call(x, y, call);
    detail::throw_unless(!detail::overlap(x, y),
                         "DepthLayer: y overlaps x, which backward needs again");
    tape.owner.clear();
    run(x, y, tape, call, [&](int threads) {
      tape.num_threads = threads;
      if (predictor_) {
        predictor_->route(x, call, tape.predicted);
        tape.predicted.expert = tape.routing.expert;
      } else {
        tape.predicted.owner.clear();
      }
    });
    tape.owner.set(identity_);
  }

  /// dx (N, d) = and grads +=, from dy (N, d), the x and the tape of a forward, and the gradients
  /// of losses on tape.routing, on tape.predicted and, of a block that takes them, on
  /// tape.block.routing. Throws std::invalid_argument on other shapes, a tape of another layer
  /// (also of a copy) or of other parts than stand in it now, or if dx overlaps x or dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads, const RoutingGradient<W>& losses = {},
                const RoutingGradient<W>& predictor_losses = {},
                const RoutingGradient<W>& block_losses = {}) const requires
      TrainableExpert<Block, T> && TrainableGate<Gate, T> && TrainableGate<PredictorGate, T> {
    check_backward(x, dy, tape, dx, grads);
    losses.validate(tape.routing);
    if (predictor_) {
      predictor_losses.validate(tape.predicted);
    }
    check_block_losses(tape, block_losses);
    detail::with_team(tape.num_threads, [&] {
      tape.gradient.assign(losses, tape.routing, tape.num_threads);
      run_back(x, dy, tape, {block_losses, dx}, grads);
      if (predictor_) {
        tape.gradient.assign(predictor_losses, tape.predicted, tape.num_threads);
        tape.stopped.resize(x.rows(), d_in());
        predictor_->backward(x, tape.predicted, tape.gradient, tape.stopped, grads.predictor);
      }
    });
  }

  /// Throws std::invalid_argument unless the tape is of a forward of this very layer, and of the
  /// parts that stand in it, as far as these have check_tape(tape, name).
  void check_tape(const Tape& tape, const ParameterName& name) const {
    detail::check_own(tape.owner.is(identity_), name,
                      "the tape is of another layer, expected this one's");
    moe::check_tape(router_, tape.routing, {.word = "router", .part = &name});
    if (sees(tape)) {
      moe::check_tape(block_, tape.block, {.word = "block", .part = &name});
    }
    if (predictor_) {
      moe::check_tape(*predictor_, tape.predicted, {.word = "predictor", .part = &name});
    } else {
      detail::check_own(tape.predicted.owner.is_nobody(), name,
                        "the tape is of a predictor, expected none, as this layer has none");
    }
  }

  /// Gradients of zero, of our own parts in W. The same struct serves as an optimiser's moments.
  Grads zero_grads() const requires TrainableExpert<Block, T> {
    Grads grads{zero_grads_of(router_), zero_grads_of(block_), {}};
    if (predictor_) {
      grads.predictor = zero_grads_of(*predictor_);
    }
    return grads;
  }
  /// visit(name, parameter, grad...) for each tensor; names as "block.up".
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) requires Parametrised<Block> {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) const requires Parametrised<Block> {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  /// What WalksParams asks for: all tensors, also those that a part does not have.
  template <class Layer, class Visit, class... G>
  static void walk(Layer& layer, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(layer.router(), {.word = "router", .part = &name}, visit, grads.router...);
    walk_params(layer.block(), {.word = "block", .part = &name}, visit, grads.block...);
    if (layer.predictor()) {
      walk_params(*layer.predictor(), {.word = "predictor", .part = &name}, visit,
                  grads.predictor...);
    }
  }

 private:
  /// What a backward goes by beside x and dy, and where to.
  struct Back {
    const RoutingGradient<W>& block_losses;
    MatrixRef<T> dx;
  };

  /// Whether the block has seen, or is to see, the call of a memory. One with a router sees also
  /// that nobody was taken.
  template <class Memory>
  static bool sees(const Memory& memory) {
    return memory.taken.count() > 0 || requires { memory.block.routing; };
  }

  void check_block_losses(const Tape& tape, const RoutingGradient<W>& losses) const {
    if constexpr (TakesRoutingLosses<Block, T>) {
      losses.validate(tape.block.routing);
    } else {
      losses.validate({});  // all empty
    }
  }

  void check_parts() const {
    detail::throw_unless(d_in() == d_out(), "DepthLayer: the block is ", d_in(), " to ", d_out(),
                         " wide, expected one width: its output is added to its input");
    const auto check_router = [&](const auto& router, const char* name) {
      detail::throw_unless(router.num_experts() == 1 && router.d_model() == d_in(),
                           "DepthLayer: the ", name, " is (", router.num_experts(), ", ",
                           router.d_model(), "), expected (1, ", d_in(), ")");
    };
    check_router(router_, "router");
    if (predictor_) {
      check_router(*predictor_, "predictor");
    }
  }

  void check_call(const ConstMatrixRef<T>& x, const MatrixRef<T>& y,
                  const CallOptions& call) const {
    check_parts();
    moe::check_params(router_, {"router"});
    if (predictor_) {
      moe::check_params(*predictor_, {"predictor"});
    }
    detail::check_shape(x, x.rows(), d_in(), "DepthLayer: x");
    detail::check_shape(y, x.rows(), d_out(), "DepthLayer: y");
    call.validate(x.rows(), 1);
    detail::num_threads(call.num_threads);  // throws what run() would, while there is a tape
    detail::throw_unless(call.experts == nullptr && !call.top_k && !call.capacity,
                         "DepthLayer: the call sets experts, top_k or capacity, expected none: "
                         "how many tokens are taken is TopTokensConfig's");
  }

  void check_backward(const ConstMatrixRef<T>& x, const ConstMatrixRef<T>& dy, const Tape& tape,
                      const MatrixRef<T>& dx, const Grads& grads) const {
    check_tape(tape, {"DepthLayer"});
    detail::check_shape(x, tape.routing.num_tokens(), d_in(), "DepthLayer: x");
    detail::check_shape(dy, x.rows(), d_out(), "DepthLayer: dy");
    detail::check_shape(dx, x.rows(), d_in(), "DepthLayer: dx");
    detail::throw_unless(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                         "DepthLayer: dx overlaps x or dy, expected memory of its own");
    check_params({});
    check_grads(*this, {}, grads);
  }

  /// Whether a token is taken by the logit that decides, its own or the predictor's.
  void take_alone(const W& decides, Index token, GatedTable<W>& table) const {
    const W logit = kernels::finite_or_nan(decides);
    const bool taken = predictor_ ? predictor_->rule().takes(logit) : router_.rule().takes(logit);
    const bool may = table.may_have(token, 0);
    TopTokens<W>::take(taken && may, token, table);
    if (may && !kernels::is_finite(logit)) {
      table.weight(token, 0) = logit;
    }
  }

  /// Memory is a Scratch or a Tape; select(threads) may change who is taken.
  template <class Memory, class Select>
  void run(ConstMatrixRef<T> x, MatrixRef<T> y, Memory& memory, const CallOptions& call,
           const Select& select) const {
    const int threads = detail::num_threads(call.num_threads, multiply_adds(x.rows()));
    detail::with_team(threads, [&] {
      router_.route(x, call, memory.routing);
      select(threads);
      memory.taken.list(memory.routing, call.tokens);
      if (sees(memory)) {
        const ConstMatrixRef<T> tokens =
            gather_rows<T>({x, memory.taken.groups()}, memory.gathered, threads);
        memory.rows.resize(memory.taken.count(), d_out());
        compute(tokens, memory.rows, memory.block,
                {.num_threads = threads,
                 .tokens = memory.taken.tokens(),
                 .noise_seed = call.noise_seed,
                 .expert_dropout = call.expert_dropout});
      }
      detail::for_rows(x.rows(), threads, [&](Index token) { write_row(token, x, memory, y); });
    });
  }

  template <class Memory>
  static void write_row(Index token, const ConstMatrixRef<T>& x, const Memory& memory,
                        MatrixRef<T>& y) {
    const T* const from = &x.coeffRef(token, 0);
    T* const to = &y.coeffRef(token, 0);
    const std::span<const Index> rows = memory.taken.rows_of(token);
    if (memory.routing.is_padding(token)) {
      std::fill_n(to, y.cols(), T(0));
    } else if (!rows.empty()) {
      kernels::combine_row<T>(memory.rows, rows, memory.taken.weight().data(), {from}, to);
    } else if (from != to) {
      std::copy_n(from, y.cols(), to);
    }
  }

  template <class BlockMemory>
  void compute(ConstMatrixRef<T> tokens, MatrixRef<T> rows, BlockMemory& memory,
               const CallOptions& call) const {
    if constexpr (requires { block_.forward(tokens, rows, memory, call); }) {
      block_.forward(tokens, rows, memory, call);
    } else {
      block_.forward(tokens, rows, memory);
    }
  }

  void run_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, const Back& back,
                Grads& grads) const {
    const int threads = tape.num_threads;
    MatrixRef<T> dx = back.dx;
    const TakenTokens<W>& taken = tape.taken;
    tape.dx_rows.resize(taken.count(), d_in());
    if (sees(tape)) {
      const ConstMatrixRef<T> drows =
          gather_rows<T>({dy, taken.groups(), taken.weight()}, tape.drows, threads);
      block_back(tape.gathered.leftCols(d_in()), drows, tape, back.block_losses, grads);
    }
    detail::for_rows(taken.count(), threads, [&](Index row) {
      const Index token = taken.token()[static_cast<std::size_t>(row)];
      tape.gradient.weight(token, 0) +=
          kernels::dot(&dy.coeffRef(token, 0), &tape.rows.coeffRef(row, 0), d_out());
    });
    router_.backward(x, tape.routing, tape.gradient, dx, grads.router);
    detail::for_rows(x.rows(), threads, [&](Index token) {
      if (!tape.routing.is_padding(token)) {
        T* const to = &dx.coeffRef(token, 0);
        kernels::combine_row<T>(tape.dx_rows, taken.rows_of(token), nullptr,
                                {&dy.coeffRef(token, 0), to}, to);
      }
    });
  }

  void block_back(ConstMatrixRef<T> tokens, ConstMatrixRef<T> drows, Tape& tape,
                  const RoutingGradient<W>& losses, Grads& grads) const {
    if constexpr (TakesRoutingLosses<Block, T>) {
      block_.backward(tokens, drows, tape.block, tape.dx_rows, grads.block, losses);
    } else {
      block_.backward(tokens, drows, tape.block, tape.dx_rows, grads.block);
    }
  }

  RouterT router_;
  Block block_;
  std::optional<Predictor> predictor_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
