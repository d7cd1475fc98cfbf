// SPDX-License-Identifier: Apache-2.0
// The parameters of whatever trains: a struct of tensors with one list of them. Gradients and
// optimiser moments are the same struct, perhaps in a wider scalar; everything that reads, casts,
// checks or updates parameters walks the list.
#pragma once

#include <charconv>
#include <concepts>
#include <string>
#include <string_view>

#include "detail/check.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A copyable struct of Matrix<T>, walked by one list: P::for_each(visit, a, b, ...) calls
/// visit(name, a.tensor, b.tensor, ...) for each tensor.
template <class P>
concept ParameterList = std::copyable<P> && requires(P& p) {
  P::for_each([](std::string_view, auto&) {}, p);
};

/// The name of a tensor in a layer, as "experts.3.up". It lives as long as the visit, and its text
/// is made only when asked for.
struct ParameterName {
  std::string_view word;
  Index number = -1;                    ///< of the expert, where the word is that of all experts
  const ParameterName* part = nullptr;  ///< that it belongs to; one without a word is left out

  std::string text() const {
    const bool inside = part != nullptr && !part->word.empty();
    const std::string all = inside ? detail::joined(part->text(), ".", word) : std::string(word);
    return number < 0 ? all : detail::joined(all, ".", number);
  }
  operator std::string() const { return text(); }
  /// text() == other, without making it.
  bool is(std::string_view other) const { return take_from_end(other) && other.empty(); }

 private:
  bool take_from_end(std::string_view& rest) const {
    const auto take = [&rest](std::string_view end) {
      const bool ends = rest.ends_with(end);
      rest.remove_suffix(ends ? end.size() : 0);
      return ends;
    };
    if (number >= 0) {
      char digits[20];  // as many as the largest Index has, and one more
      const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
      if (!take({digits, static_cast<std::size_t>(end - digits)}) || !take(".")) {
        return false;
      }
    }
    const bool inside = part != nullptr && !part->word.empty();
    return take(word) && (!inside || (take(".") && part->take_from_end(rest)));
  }
};

/// What a tensor has to be. One that its part does not have is empty, whatever its rows and
/// columns.
struct Shape {
  Index rows = 0, cols = 0;

  template <class M>
  bool fits(const M& tensor) const {
    return (tensor.rows() == rows && tensor.cols() == cols) ||
           (tensor.size() == 0 && rows * cols == 0);
  }
};

/// What the gradients of a part are: its Grads if it has such a type, else its Params.
template <class P>
struct GradsIn {};
template <class P>
requires requires { typename P::Grads; }
struct GradsIn<P> {
  using type = typename P::Grads;
};
template <class P>
requires requires {
  typename P::Params;
} &&(!requires { typename P::Grads; })  //
    struct GradsIn<P> {
  using type = typename P::Params;
};
template <class P>
using GradsOf = typename GradsIn<P>::type;

/// Asked before anything about Grads: those of a layer that cannot train name types that do not
/// exist.
template <class P>
concept GivesParams = requires(P& part, const P& constant) {
  { part.params() } -> std::same_as<typename P::Params&>;
  { constant.params() } -> std::same_as<const typename P::Params&>;
};
template <class P>
concept GivesZeroGrads = requires(const P& part) {
  { part.zero_grads() } -> std::same_as<GradsOf<P>>;
};

/// A part whose parameters are one struct: an expert or a router. Its Grads, where it has them, are
/// the same tensors in another scalar: float where the parameters are narrower, as sums over many
/// batches want it. Params::for_each walks both side by side.
template <class P>
concept HasParams = GivesParams<P> && ParameterList<typename P::Params> &&
    ParameterList<GradsOf<P>> && requires(P& part, GradsOf<P>& grads) {
  P::Params::for_each([](std::string_view, auto&, auto&) {}, part.params(), grads);
};

/// A part that is made of parts: a layer or a set of experts. Its Grads are the gradients of all of
/// them, and P::walk(part, name, visit, p...) calls visit(ParameterName, tensor, tensor of each
/// p...).
template <class P>
concept WalksParams = GivesZeroGrads<P> && std::copyable<GradsOf<P>> &&
    requires(P& part, const P& constant, GradsOf<P>& grads) {
  P::walk(
      part, ParameterName{}, [](const ParameterName&, auto&, auto&) {}, grads);
  P::walk(
      constant, ParameterName{}, [](const ParameterName&, auto&, auto&) {}, grads);
};

template <class P>
concept Parametrised = HasParams<P> || WalksParams<P>;

/// visit(name, tensor, tensor of each of `others`) for every tensor of a part, which may be const;
/// also for those that the part does not have, which are empty.
template <class P, class Visit, class... Others>
void walk_params(P& part, const ParameterName& name, Visit&& visit, Others&... others) {
  if constexpr (WalksParams<std::remove_const_t<P>>) {
    std::remove_const_t<P>::walk(part, name, visit, others...);
  } else {
    P::Params::for_each(
        [&](std::string_view word, auto& tensor, auto&... rest) {
          visit(ParameterName{.word = word, .part = &name}, tensor, rest...);
        },
        part.params(), others...);
  }
}

/// A copy of the parameters with every tensor set to zero: gradients, or moments.
template <ParameterList P>
P zeros_like(const P& params) {
  P zeros = params;
  P::for_each([](std::string_view, auto& tensor) { tensor.setZero(); }, zeros);
  return zeros;
}

namespace detail {

/// A visit for walk_params that leaves out what a part does not have.
template <class Visit>
auto visit_existing(Visit& visit) {
  return [&visit](const ParameterName& name, auto& parameter, auto&... others) {
    if (parameter.size() > 0) {
      visit(name, parameter, others...);
    }
  };
}

template <class M>
[[noreturn]] void fail_shape(const char* what, const ParameterName& name, const M& found,
                             const Shape& expected) {
  fail(what, ' ', name.text(), " is (", found.rows(), ", ", found.cols(), "), expected (",
       expected.rows, ", ", expected.cols, ")");
}

}  // namespace detail

/// Throws std::invalid_argument unless a tape is of the last forward of this very part, and of the
/// parts that stand in it now: a copy, or what was put in its place, is another. Asks the part's
/// own check_tape(tape, name), where a router's tape is its table; of a part without one nothing is
/// known.
template <class P, class Tape>
void check_tape(const P& part, const Tape& tape, const ParameterName& name) {
  if constexpr (requires { part.check_tape(tape, name); }) {
    part.check_tape(tape, name);
  }
}

namespace detail {

/// Throws std::invalid_argument, with the name of the part first, unless what it is given is its
/// own.
inline void check_own(bool own, const ParameterName& name, std::string_view otherwise) {
  if (!own) [[unlikely]] {
    fail(name.text(), ": ", otherwise);
  }
}

}  // namespace detail

/// Throws std::invalid_argument unless every tensor of `params` has its Shape in `shapes`, which
/// the list of P walks as it walks parameters. `name` is that of the part.
template <ParameterList P, class Shapes>
void check_shapes(const P& params, const Shapes& shapes, const ParameterName& name) {
  P::for_each(
      [&](std::string_view word, const auto& tensor, const Shape& shape) {
        if (!shape.fits(tensor)) [[unlikely]] {
          detail::fail_shape("parameter", {.word = word, .part = &name}, tensor, shape);
        }
      },
      params, shapes);
}

/// Throws std::invalid_argument unless the parameters of a part have their shapes: params() hands
/// out whole matrices, to which anything may be assigned. Asks the part's own check_params(name);
/// of a part without one nothing is known.
template <class P>
void check_params(const P& part, const ParameterName& name) {
  if constexpr (requires { part.check_params(name); }) {
    part.check_params(name);
  }
}

template <Parametrised P>
GradsOf<P> zero_grads_of(const P& part) {
  if constexpr (WalksParams<P>) {
    return part.zero_grads();
  } else if constexpr (std::same_as<GradsOf<P>, typename P::Params>) {
    return zeros_like(part.params());
  } else {
    GradsOf<P> zeros;
    P::Params::for_each([](std::string_view, const auto& tensor,
                           auto& zero) { zero.setZero(tensor.rows(), tensor.cols()); },
                        part.params(), zeros);
    return zeros;
  }
}

/// Throws std::invalid_argument unless every tensor of `grads` has the shape of its parameter.
template <Parametrised P>
void check_grads(const P& part, const ParameterName& name, const GradsOf<P>& grads) {
  walk_params(
      part, name,
      [](const ParameterName& tensor, const auto& parameter, const auto& grad) {
        if (parameter.rows() != grad.rows() || parameter.cols() != grad.cols()) [[unlikely]] {
          detail::fail_shape("gradient", tensor, grad, {parameter.rows(), parameter.cols()});
        }
      },
      grads);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
