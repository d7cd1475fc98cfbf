// SPDX-License-Identifier: Apache-2.0
// What goes into a layer: tokens, and what the router looks at where that is something else; and
// the gradients that come out for them.
#pragma once

#include <concepts>
#include <type_traits>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// x (N, D) for the experts and router_x (N, D) for the router. A call takes `x` for one matrix as
/// both, or `{x, router_x}`: Gemma 4, Arctic and SmallThinker route by another state of the
/// residual stream. A router that takes a state (StateGate) reads it behind the token: (N, D + R).
template <Real T>
struct LayerInput {
  ConstMatrixRef<T> x, router_x;

  // Templates, as a Ref of an expression owns its values and must be made here to outlive the call.
  template <std::convertible_to<ConstMatrixRef<T>> X>
  LayerInput(const X& both) : x(both), router_x(x) {}
  template <std::convertible_to<ConstMatrixRef<T>> X, std::convertible_to<ConstMatrixRef<T>> R>
  LayerInput(const X& for_experts, const R& for_router) : x(for_experts), router_x(for_router) {}

  bool apart() const { return router_x.data() != x.data(); }
};

/// Where backward writes (=) the gradient (N, D) of what both look at, or, as `{dx, router_dx}`,
/// those of x and router_x.
template <Real T>
struct LayerInputGrads {
  MatrixRef<T> dx, router_dx;
  bool apart;

  // X is never this struct. NOLINTBEGIN(bugprone-forwarding-reference-overload)
  template <class X>
  requires std::convertible_to<X, MatrixRef<T>> LayerInputGrads(X&& both)
      : dx(both), router_dx(dx), apart(false) {}
  // NOLINTEND(bugprone-forwarding-reference-overload)
  LayerInputGrads(MatrixRef<T> of_x, MatrixRef<T> of_router_x)
      : dx(of_x), router_dx(of_router_x), apart(true) {}
};

namespace detail {

template <class X>
inline constexpr bool is_view = false;
template <class Plain, int options, class Stride>
inline constexpr bool is_view<Eigen::Ref<Plain, options, Stride>> = true;

/// Views are left to the compiler, as concepts ask with those.
template <class From, class To>
inline constexpr bool is_wrong =
    !is_view<std::remove_cvref_t<From>> && !std::convertible_to<From, To>;

/// What no layer for tokens in T takes as its input and output.
template <class T, class X, class Y>
concept WrongMatrices = is_wrong<const X&, LayerInput<T>> || is_wrong<Y, MatrixRef<T>>;

/// Nor in a backward.
template <class T, class X, class Dy, class Dx>
concept WrongBackwardMatrices = is_wrong<const X&, LayerInput<T>> ||
    is_wrong<const Dy&, ConstMatrixRef<T>> || is_wrong<Dx, LayerInputGrads<T>>;

template <class T, class X>
constexpr void refuse_input() {
  static_assert(std::convertible_to<const X&, LayerInput<T>>,
                "x is no matrix of the layer's scalar: give it a moe::Matrix<T>, an Eigen::Map of "
                "memory that is elsewhere, or x.cast<T>() of another scalar");
}

/// Ends in a sentence for each that is wrong.
template <class T, class X, class Y>
constexpr void refuse_matrices() {
  refuse_input<T, X>();
  static_assert(std::convertible_to<Y, MatrixRef<T>>,
                "y is no row-major matrix of the layer's scalar that can be written: give it a "
                "moe::Matrix<T>, or an Eigen::Map or a block of one");
}

template <class T, class X, class Dy, class Dx>
constexpr void refuse_backward_matrices() {
  refuse_input<T, X>();
  static_assert(std::convertible_to<const Dy&, ConstMatrixRef<T>>,
                "dy is no matrix of the layer's scalar: give it a moe::Matrix<T>, an Eigen::Map of "
                "memory that is elsewhere, or dy.cast<T>() of another scalar");
  static_assert(std::convertible_to<Dx, LayerInputGrads<T>>,
                "dx is no row-major matrix of the layer's scalar that can be written: give it a "
                "moe::Matrix<T>, or an Eigen::Map or a block of one");
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
