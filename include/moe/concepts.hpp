// SPDX-License-Identifier: Apache-2.0
// What a user's own router and expert must have to stand in a MoELayer. Nothing is inherited or
// registered. Say static_assert(moe::ExpertLike<MyExpert, float>) beside the type: then the
// compiler names what is missing there, and not inside our headers.
#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include "config.hpp"
#include "routing_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Parameters of anything that trains: a copyable struct of Matrix<T>, walked by one list.
/// P::for_each(visit, a, b, ...) calls visit(name, a.tensor, b.tensor, ...) for each tensor, so
/// that gradients and optimiser moments are the same struct.
template <class P>
concept ParameterList = std::copyable<P> && requires(P& p) {
  P::for_each([](std::string_view, auto&) {}, p);
};

/// Chooses experts for tokens. route() is const, runs on one thread of the layer's parallel region,
/// and writes the whole table: expert, weight, and probs and logits if losses are to be taken of
/// it. It honours what CallOptions asks for.
template <class R, class T>
concept RouterLike = std::movable<R> &&
    std::derived_from<typename R::Table, RoutingTable<Wide<T>>> &&
    requires(const R& router, ConstMatrixRef<T> x, const CallOptions& call,
             typename R::Table& table) {
  { router.num_experts() } -> std::convertible_to<Index>;
  router.route(x, call, table);
};

/// dx (N, D) = and grads +=. The gradient comes in as what the layer and the losses ask of the
/// table, and may be used as scratch.
template <class R, class T>
concept TrainableRouter = RouterLike<R, T> && ParameterList<typename R::Params> &&
    requires(R& router, const R& constant, ConstMatrixRef<T> x, const typename R::Table& table,
             RoutingGradient<Wide<T>>& gradient, MatrixRef<T> dx, typename R::Params& grads) {
  { router.params() } -> std::same_as<typename R::Params&>;
  { constant.params() } -> std::same_as<const typename R::Params&>;
  constant.backward(x, table, gradient, dx, grads);
};

/// Computes rows: y (n, d_out) = f(x (n, d_in)), each row from its own input only. Called for
/// several tiles at once, each thread with its own Scratch.
template <class E, class T>
concept ExpertLike = std::movable<E> && std::default_initializable<typename E::Scratch> &&
    requires(const E& expert, ConstMatrixRef<T> x, MatrixRef<T> y, typename E::Scratch& scratch) {
  { expert.d_in() } -> std::convertible_to<Index>;
  { expert.d_out() } -> std::convertible_to<Index>;
  expert.forward(x, y, scratch);
};

/// Backward in two passes: backward_input writes dx (=) and may keep in the tape what
/// backward_params adds to grads (+=). Tapes are one per tile; the passes over the tiles of one
/// expert come in order, and one grads is never shared by two threads.
template <class E, class T>
concept TrainableExpert = ExpertLike<E, T> && ParameterList<typename E::Params> &&
    std::default_initializable<typename E::Tape> &&
    requires(E& expert, const E& constant, ConstMatrixRef<T> x, ConstMatrixRef<T> dy,
             MatrixRef<T> y, MatrixRef<T> dx, typename E::Tape& tape, typename E::Params& grads) {
  { expert.params() } -> std::same_as<typename E::Params&>;
  { constant.params() } -> std::same_as<const typename E::Params&>;
  constant.forward(x, y, tape);
  constant.backward_input(x, dy, tape, dx);
  constant.backward_params(x, dy, tape, grads);
};

/// A copy of the parameters with every tensor set to zero: gradients, or moments.
template <ParameterList P>
P zeros_like(const P& params) {
  P zeros = params;
  P::for_each([](std::string_view, auto& tensor) { tensor.setZero(); }, zeros);
  return zeros;
}

/// The same parameters in another scalar, walked by the list of `from`: To must have every tensor
/// of it, so that none is left behind.
template <ParameterList To, ParameterList From>
requires std::default_initializable<To> To cast_params(const From& from) {
  To to;
  From::for_each(
      [](std::string_view, const auto& tensor, auto& copy) {
        using U = typename std::remove_reference_t<decltype(copy)>::Scalar;
        copy = tensor.template cast<U>();
      },
      from, to);
  return to;
}

/// Throws std::invalid_argument unless every tensor of `grads` has the shape of its parameter.
template <ParameterList P>
void check_like(const P& params, const P& grads, const char* what) {
  P::for_each(
      [&](std::string_view name, const auto& tensor, const auto& grad) {
        detail::check(tensor.rows() == grad.rows() && tensor.cols() == grad.cols(), what, ": ",
                      name, " is (", grad.rows(), ", ", grad.cols(), "), expected (", tensor.rows(),
                      ", ", tensor.cols(), ")");
      },
      params, grads);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
