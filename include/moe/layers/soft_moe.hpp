// SPDX-License-Identifier: Apache-2.0
// SoftMoELayer: experts compute slots, which are means of tokens, and tokens get means of slots
// (Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts). The pipeline and its way back;
// slot_router.hpp decides who is in what.
//
// Looks across the batch, and is not causal: y of a token depends on all tokens of its sequence,
// and a NaN in one of them reaches all. Padding takes no part. An expert computes its slots of each
// sequence, however many tokens there are.
#pragma once

#include <utility>
#include <vector>

#include "soft_moe_tape.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// T is the scalar of the tokens; E an expert, of which the layer has several, or a set of experts.
/// Each sequence of the call (CallOptions::tokens) has slots of its own. The layer is const in use.
template <Real T, GateLike<T> Gate = UnitGate<T>, class E = Expert<T>>
requires ExpertLike<ExpertIn<E, T>, T>
class SoftMoELayer {
 public:
  using W = Wide<T>;
  using RouterT = SlotRouter<T, Gate>;
  using Set = typename SetOf<T, E>::type;
  using Grads = SoftMoEGrads<RouterT, Set>;
  using Scratch = SoftMoEScratch<T, RouterT, Set>;
  using Tape = SoftMoETape<T, RouterT, Set>;

  /// Router and experts of the config, with random weights from the seed.
  SoftMoELayer(const SoftMoEConfig& config, std::uint64_t seed)  //
      requires std::same_as<Gate, UnitGate<T>> && std::same_as<Set, FfnExperts<T>>
      : SoftMoELayer(make_slot_router<T>(config, seed),
                     Set(make_experts<T>(config.experts(), seed))) {}

  /// Takes ready parts. Throws std::invalid_argument if their sizes disagree: the router has so
  /// many slots for each expert.
  SoftMoELayer(RouterT router, std::vector<E> experts) requires ExpertLike<E, T>
      : SoftMoELayer(std::move(router), Set(std::move(experts))) {}
  SoftMoELayer(RouterT router, std::same_as<Set> auto experts)
      : router_(std::move(router)), experts_(std::move(experts)) {
    check_params({});
  }

  Index d_in() const { return experts_.d_in(); }
  Index d_out() const { return experts_.d_out(); }
  Index num_experts() const { return experts_.num_experts(); }
  /// Of each expert, in each sequence.
  Index slots() const { return router_.num_slots() / num_experts(); }
  RouterT& router() { return router_; }
  const RouterT& router() const { return router_; }
  Set& experts() { return experts_; }
  const Set& experts() const { return experts_; }
  /// Those of a forward of so many tokens in so many sequences.
  double multiply_adds(Index rows, Index sequences = 1) const {
    return router_.multiply_adds(rows) +
           detail::multiply_adds(experts_, sequences * router_.num_slots()) +
           static_cast<double>(rows) * static_cast<double>(router_.num_slots()) *
               static_cast<double>(d_in() + d_out());
  }

  /// Throws std::invalid_argument unless the parts fit each other and their parameters have their
  /// shapes. `name` is the layer's.
  void check_params(const ParameterName& name) const {
    check_parts();
    moe::check_params(router_, {.word = "router", .part = &name});
    moe::check_params(experts_, {.word = "experts", .part = &name});
  }

  /// Inference: y (N, d_out) = layer(x (N, d_in)); N may be 0. y may be x itself. Padding is 0 in
  /// y. Throws std::invalid_argument on other shapes, also of parameters, and if the call asks for
  /// masks, experts, a top_k, a capacity or an expert_dropout, which there are none of here; y is
  /// as before then.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    check_call(x, y, call);
    run(x, y, scratch, call);
  }

  /// Training: the same y, and a tape for backward. y must not overlap x.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
               const CallOptions& call = {}) const requires TrainableInLayer<E, T> {
    moe::check_params(experts_, {"experts"});
    check_call(x, y, call);
    detail::throw_unless(!detail::overlap(x, y),
                         "SoftMoELayer: y overlaps x, which backward needs again");
    tape.owner.clear();
    run(x, y, tape, call);
    tape.num_rows = x.rows();
    tape.owner.set(identity_);
  }

  /// dx (N, d_in) = and grads +=, from dy (N, d_out), and the x and the tape of a forward. Throws
  /// std::invalid_argument on other shapes, a tape of another layer (also of a copy) or of other
  /// parts than stand in it now, or if dx overlaps x or dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads) const requires TrainableInLayer<E, T> && TrainableGate<Gate, T> {
    check_backward(x, dy, tape, dx, grads);
    detail::with_team(tape.routing.num_threads, [&] { run_back(x, dy, tape, dx, grads); });
  }

  /// Throws std::invalid_argument unless the tape is of a forward of this very layer, and of the
  /// parts that stand in it, as far as these have check_tape(tape, name).
  void check_tape(const Tape& tape, const ParameterName& name) const {
    detail::check_own(tape.owner.is(identity_), name,
                      "the tape is of another layer, expected this one's");
    moe::check_tape(router_, tape.routing, {.word = "router", .part = &name});
    moe::check_tape(experts_, tape.experts, {.word = "experts", .part = &name});
  }

  /// Gradients of zero, of our own experts in W. The same struct serves as an optimiser's moments.
  Grads zero_grads() const requires TrainableInLayer<E, T> {
    return {zero_grads_of(router_), zero_grads_of(experts_)};
  }
  /// visit(name, parameter, grad...) for each tensor; names as "experts.3.up".
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) requires Parametrised<Set> {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) const requires Parametrised<Set> {
    walk(*this, {}, detail::visit_existing(visit), grads...);
  }
  /// What WalksParams asks for: all tensors, also those that a part does not have.
  template <class Layer, class Visit, class... G>
  static void walk(Layer& layer, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(layer.router(), {.word = "router", .part = &name}, visit, grads.router...);
    walk_params(layer.experts(), {.word = "experts", .part = &name}, visit, grads.experts...);
  }

 private:
  void check_parts() const {
    const Index num_slots = router_.num_slots();
    detail::throw_unless(num_slots % num_experts() == 0, "SoftMoELayer: the router has ", num_slots,
                         " slots, expected a multiple of num_experts = ", num_experts());
    detail::throw_unless(router_.d_model() == d_in(), "SoftMoELayer: the router is ",
                         router_.d_model(), " wide, expected ", d_in());
  }

  void check_call(const ConstMatrixRef<T>& x, const MatrixRef<T>& y,
                  const CallOptions& call) const {
    check_parts();
    moe::check_params(router_, {"router"});
    detail::check_shape(x, x.rows(), d_in(), "SoftMoELayer: x");
    detail::check_shape(y, x.rows(), d_out(), "SoftMoELayer: y");
    call.validate(x.rows(), num_experts());
    detail::num_threads(call.num_threads);  // throws what run() would, while there is a tape
    detail::throw_unless(call.expert_mask == nullptr && call.experts == nullptr && !call.top_k &&
                             !call.capacity && call.expert_dropout <= 0.0,
                         "SoftMoELayer: the call sets expert_mask, experts, top_k, capacity or "
                         "expert_dropout, expected none: all tokens are in all slots");
  }

  void check_backward(const ConstMatrixRef<T>& x, const ConstMatrixRef<T>& dy, const Tape& tape,
                      const MatrixRef<T>& dx, const Grads& grads) const {
    check_tape(tape, {"SoftMoELayer"});
    detail::check_shape(x, tape.num_rows, d_in(), "SoftMoELayer: x");
    detail::check_shape(dy, x.rows(), d_out(), "SoftMoELayer: dy");
    detail::check_shape(dx, x.rows(), d_in(), "SoftMoELayer: dx");
    detail::throw_unless(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                         "SoftMoELayer: dx overlaps x or dy, expected memory of its own");
    check_params({});
    check_grads(*this, {}, grads);
  }

  /// Memory is a Scratch or a Tape.
  template <class Memory>
  void run(ConstMatrixRef<T> x, MatrixRef<T> y, Memory& memory, const CallOptions& call) const;
  void run_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads) const;

  /// Lists the tokens, and the sequences that have one.
  template <class Memory>
  void list_tokens(Index num_rows, const Tokens& tokens, Memory& memory) const {
    memory.tokens.list(num_rows, tokens);
    std::vector<Index>& begin = memory.routing.begin;
    begin.assign(1, 0);
    for (Index b = 0; b < tokens.num_sequences(num_rows); ++b) {
      const Sequence sequence = tokens.sequence(b, num_rows);
      Index end = begin.back();
      for (Index token = sequence.begin; token < sequence.end; ++token) {
        end += tokens.is_padding(token) ? 0 : 1;
      }
      if (end > begin.back()) {
        begin.push_back(end);
      }
    }
    memory.order.set(memory.routing.num_sequences(), num_experts(), slots());
  }

  /// The tokens (N, D) after run() has gathered them, and as what is mixed.
  template <class Memory>
  ConstMatrixRef<T> tokens_of(const ConstMatrixRef<T>& x, const Memory& memory) const {
    return memory.tokens.has_padding() ? ConstMatrixRef<T>(memory.gathered.leftCols(d_in())) : x;
  }

  /// to (rows of the batch) = from (tokens), as T, and 0 where there is padding.
  template <class Memory>
  static void spread(const GrowingMatrix<W>& from, const Memory& memory, MatrixRef<T> to) {
    const RowGroups groups = memory.tokens.groups();
    const int threads = memory.routing.num_threads;
    if (memory.tokens.has_padding()) {
      detail::for_rows(to.rows(), threads, [&](Index row) { to.row(row).setZero(); });
    }
    detail::for_rows(from.rows(), threads, [&](Index token) {
      to.row(groups.token_of(token)) = from.row(token).template cast<T>();
    });
  }

  /// Whether what is mixed is in matrices of the caller's, and not in copies.
  template <class Memory>
  static bool in_place(const Memory& memory) {
    return std::same_as<T, W> && !memory.tokens.has_padding();
  }
  /// The matrix itself if it is in place, else `instead`, with a row for each token.
  template <class Memory>
  static MatrixRef<W> mixed_rows(MatrixRef<T> matrix, const Memory& memory,
                                 GrowingMatrix<W>& instead) {
    if constexpr (std::same_as<T, W>) {
      if (in_place(memory)) {
        return matrix;
      }
    }
    instead.resize(memory.tokens.count(), matrix.cols());
    return instead;
  }

  /// product_of(block) = or += for each sequence.
  template <class Memory, class ProductOf>
  void mix(Memory& memory, kernels::Update update, ProductOf&& product_of) const {
    const Index slots = router_.num_slots();
    detail::multiply_each<W>(
        memory.routing.num_sequences(), update, memory.routing.num_threads, memory.packing,
        [&](Index b) {
          const Sequence s = memory.routing.sequence(b);
          return product_of(detail::SlotBlock{s.begin, s.end - s.begin, b * slots, slots});
        });
  }
  using Product = detail::Product<W>;
  using Block = detail::SlotBlock;

  RouterT router_;
  Set experts_;
  detail::Identity identity_;
};

template <Real T, GateLike<T> Gate, class E>
requires ExpertLike<ExpertIn<E, T>, T>
template <class Memory>
void SoftMoELayer<T, Gate, E>::run(ConstMatrixRef<T> x, MatrixRef<T> y, Memory& memory,
                                   const CallOptions& call) const {
  using kernels::view;
  auto& routing = memory.routing;
  const SlotOrder& order = memory.order;
  list_tokens(x.rows(), call.tokens, memory);
  const int threads = detail::num_threads(
      call.num_threads, multiply_adds(memory.tokens.count(), routing.num_sequences()));
  routing.num_threads = threads;
  detail::with_team(threads, [&] {
    const ConstMatrixRef<T> tokens =
        gather_rows<T>({x, memory.tokens.groups()}, memory.gathered, threads);
    const ConstMatrixRef<W> wide_x = detail::rows_as<W, T>(tokens, memory.wide_x, threads);
    router_.route(tokens, {.num_threads = threads, .noise_seed = call.noise_seed}, routing);
    memory.slots.resize(order.num_rows(), d_in());
    mix(memory, kernels::Update::assign, [&](const Block& of) {
      return Product{view(of.token_columns(routing.dispatch)), view(of.tokens(wide_x)),
                     of.slots(memory.slots)};
    });
    const ConstMatrixRef<T> slot_x = detail::rows_as<T, W>(memory.slots, memory.slot_x, threads);
    memory.rows.resize(order.num_rows(), d_out());
    experts_.forward({slot_x, order.groups()}, memory.rows, memory.experts, threads);
    const ConstMatrixRef<W> slot_y =
        detail::rows_as<W, T>(memory.rows, order.in_order(), memory.slot_y, threads,
                              [&](Index slot) { return order.row_of(slot); });
    MatrixRef<W> token_y = mixed_rows(y, memory, memory.token_y);
    mix(memory, kernels::Update::assign, [&](const Block& of) {
      return Product{view(of.tokens(routing.combine)), view(of.slots(slot_y)), of.tokens(token_y)};
    });
    if (!in_place(memory)) {
      spread(memory.token_y, memory, y);
    }
  });
}

template <Real T, GateLike<T> Gate, class E>
requires ExpertLike<ExpertIn<E, T>, T>
void SoftMoELayer<T, Gate, E>::run_back(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape,
                                        MatrixRef<T> dx, Grads& grads) const {
  using kernels::view;
  auto& routing = tape.routing;
  SlotGradient<W>& gradient = tape.gradient;
  const SlotOrder& order = tape.order;
  const int threads = routing.num_threads;
  const Index num_tokens = tape.tokens.count(), num_slots = router_.num_slots();
  const auto row_of = [&](Index slot) { return order.row_of(slot); };
  const auto slot_of = [&](Index row) { return order.slot_of(row); };
  // As run() left them.
  const ConstMatrixRef<T> tokens = tokens_of(x, tape);
  const ConstMatrixRef<W> wide_x = detail::rows_as<W, T>(tokens, tape.wide_x, threads);
  const ConstMatrixRef<T> slot_x = detail::rows_as<T, W>(tape.slots, tape.slot_x, threads);
  const ConstMatrixRef<W> slot_y =
      detail::rows_as<W, T>(tape.rows, order.in_order(), tape.slot_y, threads, row_of);

  const ConstMatrixRef<T> token_dy =
      gather_rows<T>({dy, tape.tokens.groups()}, tape.gathered_dy, threads);
  const ConstMatrixRef<W> wide_dy = detail::rows_as<W, T>(token_dy, tape.wide_dy, threads);
  gradient.combine.resize(num_tokens, num_slots);
  mix(tape, kernels::Update::assign, [&](const Block& of) {
    return Product{view(of.tokens(wide_dy)), view(of.slots(slot_y)).transpose(),
                   of.tokens(gradient.combine)};
  });
  tape.dslot_y.resize(order.num_rows(), d_out());
  mix(tape, kernels::Update::assign, [&](const Block& of) {
    return Product{view(of.tokens(routing.combine)).transpose(), view(of.tokens(wide_dy)),
                   of.slots(tape.dslot_y)};
  });
  const ConstMatrixRef<T> drows =
      detail::rows_as<T, W>(tape.dslot_y, order.in_order(), tape.drows, threads, slot_of);
  tape.dx_rows.resize(order.num_rows(), d_in());
  experts_.backward({slot_x, order.groups()}, drows, tape.experts, tape.dx_rows, grads.experts,
                    threads);
  const ConstMatrixRef<W> dslots =
      detail::rows_as<W, T>(tape.dx_rows, order.in_order(), tape.dslots, threads, row_of);
  gradient.dispatch.resize(num_slots, num_tokens);
  mix(tape, kernels::Update::assign, [&](const Block& of) {
    return Product{view(of.slots(dslots)), view(of.tokens(wide_x)).transpose(),
                   of.token_columns(gradient.dispatch)};
  });

  MatrixRef<W> token_dx = mixed_rows(dx, tape, tape.token_dx);
  if (in_place(tape)) {
    router_.backward(tokens, routing, gradient, dx, grads.router);
  } else {
    tape.gate_dx.resize(num_tokens, d_in());
    router_.backward(tokens, routing, gradient, tape.gate_dx, grads.router);
    detail::for_rows(num_tokens, threads, [&](Index token) {
      token_dx.row(token) = tape.gate_dx.row(token).template cast<W>();
    });
  }
  mix(tape, kernels::Update::add, [&](const Block& of) {
    return Product{view(of.token_columns(routing.dispatch)).transpose(), view(of.slots(dslots)),
                   of.tokens(token_dx)};
  });
  if (!in_place(tape)) {
    spread(tape.token_dx, tape, dx);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
