// SPDX-License-Identifier: Apache-2.0
// What a user's own router, expert or set of experts must have to stand in a MoELayer. Nothing is
// inherited or registered. Say static_assert(moe::ExpertLike<MyExpert, float>) beside the type:
// then the compiler names what is missing there, and not inside our headers.
#pragma once

#include <concepts>

#include "call_options.hpp"
#include "parameters.hpp"
#include "routing_table.hpp"
#include "row_groups.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// route() takes tokens in T. Asked with a matrix: Eigen offers to make a ConstMatrixRef of that of
/// any other scalar, and fails when it does.
template <class R, class T>
concept RoutesTokensIn = requires(const R& router, const Matrix<T>& x, const CallOptions& call,
                                  typename R::Table& table) {
  router.route(x, call, table);
};

/// Chooses experts for tokens. route() is const, runs on one thread of the layer's parallel region,
/// and writes the whole table: expert, weight, and probs and logits if losses are to be taken of
/// it. It honours what CallOptions asks for; padding the layer leaves out by itself. A router that
/// cannot honour a call may have check_call(call, num_tokens), which throws: a tape is as before
/// then.
template <class R, class T>
concept RouterLike = std::movable<R> &&
    std::derived_from<typename R::Table, RoutingTable<Wide<T>>> &&
    std::default_initializable<typename R::Table> &&
    requires(const R& router, ConstMatrixRef<T> x, const CallOptions& call,
             typename R::Table& table) {
  { router.num_experts() } -> std::convertible_to<Index>;
  router.route(x, call, table);
} && RoutesTokensIn<R, T>;

/// A router that says `static constexpr bool leaves_out_padding = true`: padding has no choice, no
/// weight and no score in its table, and reaches none of its gradients. For any other the layer
/// sees to that, for backward with a copy of x where there is padding.
template <class R>
concept LeavesOutPadding = requires {
  requires R::leaves_out_padding;
};

/// dx (N, D) = and grads +=. The gradient comes in as what the layer and the losses ask of the
/// table, and may be used as scratch. Padding comes in as expert `none`, with x and gradient 0.
/// A router may have check_tape(table, name) (parameters.hpp): then a layer notices before anything
/// is written that another stood in its place when the table was made.
template <class R, class T>
concept TrainableRouter = RouterLike<R, T> && HasParams<R> &&
    requires(const R& router, ConstMatrixRef<T> x, const typename R::Table& table,
             RoutingGradient<Wide<T>>& gradient, MatrixRef<T> dx, GradsOf<R>& grads) {
  router.backward(x, table, gradient, dx, grads);
};

/// Computes rows: y (n, d_out) = f(x (n, d_in)), each row from its own input only. Called for
/// parts of several experts at once, each thread with its own Scratch.
template <class E, class T>
concept ExpertLike = std::movable<E> && std::default_initializable<typename E::Scratch> &&
    std::movable<typename E::Scratch> &&
    requires(const E& expert, ConstMatrixRef<T> x, MatrixRef<T> y, typename E::Scratch& scratch) {
  { expert.d_in() } -> std::convertible_to<Index>;
  { expert.d_out() } -> std::convertible_to<Index>;
  expert.forward(x, y, scratch);
};

/// backward writes dx (=) and adds to grads (+=), from the x and the tape of a forward. One grads
/// is never shared by two threads. They are E::Params, or E::Grads for an expert that has them. An
/// expert may have check_tape(tape, name), as a router. A MoELayer is such an expert.
template <class E, class T>
concept TrainableExpert = ExpertLike<E, T> && Parametrised<E> &&
    std::default_initializable<typename E::Tape> && std::movable<typename E::Tape> &&
    requires(const E& expert, ConstMatrixRef<T> x, ConstMatrixRef<T> dy, MatrixRef<T> y,
             MatrixRef<T> dx, typename E::Tape& tape, GradsOf<E>& grads) {
  expert.forward(x, y, tape);
  expert.backward(x, dy, tape, dx, grads);
};

/// An expert with a router of its own, as a layer is: its tape has the routing of a forward, and
/// its backward takes the gradient of losses on that.
template <class E, class T>
concept TakesRoutingLosses = TrainableExpert<E, T> &&
    requires(const E& expert, ConstMatrixRef<T> x, ConstMatrixRef<T> dy, MatrixRef<T> dx,
             typename E::Tape& tape, GradsOf<E>& grads, const RoutingGradient<Wide<T>>& losses) {
  losses.validate(tape.routing);
  expert.backward(x, dy, tape, dx, grads, losses);
};

/// All experts of a layer as one part. forward writes rows (S, d_out), in expert order, on so many
/// threads; it sees which rows each expert gets before it computes any.
template <class S, class T>
concept ExpertSet = std::movable<S> && std::default_initializable<typename S::Scratch> &&
    requires(const S& set, const ExpertInput<T>& input, MatrixRef<T> rows,
             typename S::Scratch& scratch, int threads) {
  { set.num_experts() } -> std::convertible_to<Index>;
  { set.d_in() } -> std::convertible_to<Index>;
  { set.d_out() } -> std::convertible_to<Index>;
  set.forward(input, rows, scratch, threads);
};

/// backward writes dx_rows (S, d_in), the gradients of the rows of x after their weights, and adds
/// to grads, from drows (S, d_out) and the input and tape of a forward.
template <class S, class T>
concept TrainableExpertSet = ExpertSet<S, T> && WalksParams<S> &&
    std::default_initializable<typename S::Tape> &&
    requires(const S& set, const ExpertInput<T>& input, MatrixRef<T> rows, ConstMatrixRef<T> drows,
             typename S::Tape& tape, MatrixRef<T> dx_rows, GradsOf<S>& grads, int threads) {
  set.forward(input, rows, tape, threads);
  set.backward(input, drows, tape, dx_rows, grads, threads);
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
