// SPDX-License-Identifier: Apache-2.0
// What a user's own gate and rule must have to stand in a GatedRouter. Nothing is inherited or
// registered. Say static_assert(moe::TokenRule<MyRule, float>) beside the type: then the compiler
// names what is missing there, and not inside our headers.
#pragma once

#include <concepts>

#include "../concepts.hpp"
#include "gated_table.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// forward() takes tokens in T, asked as RoutesTokensIn.
template <class G, class T>
concept ProjectsTokensIn = requires(const G& gate, const typename G::Params& params,
                                    const Matrix<T>& x, const CallOptions& call,
                                    typename G::Table& table) {
  gate.forward(params, x, call, table);
};

/// Gives every token a logit for each expert. The parameters live in the router and are given to
/// each call. forward() is const, runs on one thread of the router's parallel region, and writes
/// table.logits (N, E). x of padding may be NaN and must reach no other row. Gates and rules may
/// have shapes(), a struct of Shape that Params::for_each walks: then each call checks them.
template <class G, class T>
concept GateLike = std::movable<G> && ParameterList<typename G::Params> &&
    std::derived_from<typename G::Table, GatedTable<Wide<T>>> &&
    std::default_initializable<typename G::Table> &&
    requires(const G& gate, const typename G::Params& params, ConstMatrixRef<T> x,
             const CallOptions& call, typename G::Table& table) {
  { gate.d_model() } -> std::convertible_to<Index>;
  { gate.num_experts() } -> std::convertible_to<Index>;
  gate.forward(params, x, call, table);
} && ProjectsTokensIn<G, T>;

/// Backward in two passes, from gradient.logits: backward_input writes dx (=), of padding exactly
/// 0, and may keep in the gradient what backward_params adds to grads (+=).
template <class G, class T>
concept TrainableGate = GateLike<G, T> &&
    requires(const G& gate, const typename G::Params& params, ConstMatrixRef<T> x,
             const typename G::Table& table, RoutingGradient<Wide<T>>& gradient, MatrixRef<T> dx,
             typename G::Params& grads) {
  gate.backward_input(params, x, table, gradient, dx);
  gate.backward_params(params, x, table, gradient, grads);
};

/// Makes choices, scores and weights of the logits of one token, which is not padding: such a rule
/// is causal. Called for many tokens at once, by several threads.
template <class R, class W>
concept TokenRule = std::movable<R> && ParameterList<typename R::Params> &&
    requires(const R& rule, const typename R::Params& params, const TokenRoute<W>& token) {
  { rule.top_k() } -> std::convertible_to<Index>;
  rule.route(params, token);
};

/// Makes them for all tokens at once, for rules whose tokens compete: they look across the batch,
/// most are not causal. Called once, it may use table.num_threads threads, and writes expert,
/// weight and probs of the shapes it wants. Logits of padding are -inf, and whatever is chosen for
/// it is taken back.
template <class R, class W>
concept TableRule = std::movable<R> && ParameterList<typename R::Params> &&
    requires(const R& rule, const typename R::Params& params, const CallOptions& call,
             GatedTable<W>& table) {
  rule.route(params, call, table);
};

/// A rule that says `static constexpr bool obeys_call = true`: it chooses as many experts as the
/// call asks for, whatever its own top_k is, or takes those that the call gives. A token rule finds
/// both in TokenRoute (select_experts does so), a table rule in CallOptions. Behind another rule, a
/// call that asks throws std::invalid_argument. Any rule may have check_call(call, num_tokens),
/// which throws where the call does not fit it.
template <class R>
concept ObeysCall = requires {
  requires R::obeys_call;
};

/// Gates and rules may have double multiply_adds(rows) const, a rule that does not keep its number
/// of experts multiply_adds(rows, num_experts): about how much work so many rows are. A router of
/// two that both have it takes one thread for a small call, any other all that it may.
///
/// A rule that was made for a number of experts says which: it has a member Index num_experts()
/// const, and its router throws std::invalid_argument unless the gate has as many. With a
/// static constexpr const char* name it is called so there.
///
/// A rule whose probs of a token do not sum to 1, as sigmoids, says so: it has a member
/// bool probs_sum_to_one() const. Of a rule that is both, the router uses the token rule.
template <class R, class W>
concept RuleLike = TokenRule<R, W> || TableRule<R, W>;

/// Adds to the gradient of the logits what those of weights and probs make of it: token by token,
/// or once, as route(). Most parameters of rules have no gradient. A rule that learns some has
/// backward_params(params, table, gradient, grads), grads +=, which is called before.
template <class R, class W>
concept TrainableRule =
    (TokenRule<R, W> &&
     requires(const R& rule, const typename R::Params& params, const TokenGradient<W>& token) {
       rule.backward(params, token);
     }) ||
    (!TokenRule<R, W> && TableRule<R, W> &&
     requires(const R& rule, const typename R::Params& params, const GatedTable<W>& table,
              RoutingGradient<W>& gradient) { rule.backward(params, table, gradient); });

/// The Params of a rule that has none.
struct NoParams {
  template <class Visit, class... P>
  static void for_each(Visit&&, P&...) {}
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
