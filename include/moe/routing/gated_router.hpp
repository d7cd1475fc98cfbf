// SPDX-License-Identifier: Apache-2.0
// GatedRouter: a router of two parts, a gate that gives every token a logit for each expert, and a
// rule that makes choices and weights of the logits (concepts.hpp in this folder says what they
// must have).
//
// Masks and padding are the router's affair: a masked logit is -inf before the rule sees it, its
// score and gradient are exactly 0 after, and padding is no token at all, whatever the rule does.
#pragma once

#include <algorithm>
#include <utility>

#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"
#include "../detail/reserve.hpp"
#include "../flops.hpp"
#include "../kernels/cast_params.hpp"
#include "../kernels/softmax.hpp"
#include "concepts.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// Params as a base of their own: those of gate and rule may be of one type.
template <class Params>
struct GatePart : Params {};
template <class Params>
struct RulePart : Params {};

}  // namespace detail

/// The parameters of gate and rule as one list. Tensors of the same name are told apart by part.
template <class GateParams, class RuleParams>
struct GatedParams : detail::GatePart<GateParams>, detail::RulePart<RuleParams> {
  GatedParams() = default;
  GatedParams(GateParams gate, RuleParams rule)
      : detail::GatePart<GateParams>{std::move(gate)},
        detail::RulePart<RuleParams>{std::move(rule)} {}

  GateParams& gate_part() { return static_cast<detail::GatePart<GateParams>&>(*this); }
  const GateParams& gate_part() const {
    return static_cast<const detail::GatePart<GateParams>&>(*this);
  }
  RuleParams& rule_part() { return static_cast<detail::RulePart<RuleParams>&>(*this); }
  const RuleParams& rule_part() const {
    return static_cast<const detail::RulePart<RuleParams>&>(*this);
  }

  /// Each of p is a GatedParams.
  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    GateParams::for_each(visit, p.gate_part()...);
    RuleParams::for_each(visit, p.rule_part()...);
  }
};

namespace detail {

/// A gate or rule for another scalar: the cast that it offers, or a copy of it as it is.
template <Real U, class P>
requires std::copy_constructible<P> || requires(const P& part) { part.template cast<U>(); }
auto cast_part(const P& part) {
  if constexpr (requires { part.template cast<U>(); }) {
    return part.template cast<U>();
  } else {
    return part;
  }
}
template <class P, class U>
using CastPart = decltype(cast_part<U>(std::declval<const P&>()));

}  // namespace detail

/// T is the scalar of the tokens. Parameters, and everything computed, are Wide<T>: float at least.
template <Real T, GateLike<T> Gate, RuleLike<Wide<T>> Rule>
class GatedRouter {
 public:
  using W = Wide<T>;
  using Params = GatedParams<typename Gate::Params, typename Rule::Params>;
  using Table = typename Gate::Table;
  static constexpr bool leaves_out_padding = true;

  /// Takes ready parts. Throws std::invalid_argument unless the parameters have their shapes, and
  /// the rule, if it says for how many experts it was made, those of the gate.
  GatedRouter(Gate gate, Rule rule, Params params)
      : gate_(std::move(gate)), rule_(std::move(rule)), params_(std::move(params)) {
    check_rule();
    check_params({"Router"});
  }

  Index d_model() const { return gate_.d_model(); }
  Index num_experts() const { return gate_.num_experts(); }
  Index top_k() const requires TokenRule<Rule, W> { return rule_.top_k(); }
  double multiply_adds(Index rows) const {
    if constexpr (requires { rule_.multiply_adds(rows, num_experts()); }) {
      return detail::multiply_adds(gate_, rows) + rule_.multiply_adds(rows, num_experts());
    } else {
      return detail::multiply_adds(gate_, rows) + detail::multiply_adds(rule_, rows);
    }
  }
  /// Of so many tokens, where gate and rule state theirs.
  template <StatesFlops G = Gate, StatesFlops R = Rule>
  Flops forward_flops(Index tokens) const {
    return gate_.forward_flops(tokens) + rule_.forward_flops(tokens);
  }
  template <StatesBackwardFlops G = Gate, StatesBackwardFlops R = Rule>
  Flops backward_flops(Index tokens) const {
    return gate_.backward_flops(tokens) + rule_.backward_flops(tokens);
  }
  /// Of the call that wrote the table, also where those of the rule depend on what it chose.
  /// Padding counts for the gate: where there is some, an upper bound.
  Flops forward_flops(const Table& table) const requires StatesFlops<Gate> &&
      (StatesFlops<Rule> || StatesFlopsOf<Rule, Table>) {
    if constexpr (StatesFlopsOf<Rule, Table>) {
      return gate_.forward_flops(table.num_tokens()) + rule_.forward_flops(table);
    } else {
      return forward_flops(table.num_tokens());
    }
  }
  Flops backward_flops(const Table& table) const requires StatesBackwardFlops<Gate> &&
      (StatesBackwardFlops<Rule> || StatesBackwardFlopsOf<Rule, Table>) {
    if constexpr (StatesBackwardFlopsOf<Rule, Table>) {
      return gate_.backward_flops(table.num_tokens()) + rule_.backward_flops(table);
    } else {
      return backward_flops(table.num_tokens());
    }
  }
  const Gate& gate() const { return gate_; }
  const Rule& rule() const { return rule_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  /// This router for tokens in U, of the gate's cast<U>() and the rule's cast<Wide<U>>(), or of
  /// either as it is if it takes them. Parameters are rounded once. Throws std::invalid_argument
  /// unless they have their shapes.
  template <Real U>
  auto cast() const requires GateLike<detail::CastPart<Gate, U>, U> &&
      RuleLike<detail::CastPart<Rule, Wide<U>>, Wide<U>> {
    using To = GatedRouter<U, detail::CastPart<Gate, U>, detail::CastPart<Rule, Wide<U>>>;
    check_params({"Router"});
    return To(detail::cast_part<U>(gate_), detail::cast_part<Wide<U>>(rule_),
              cast_params<typename To::Params>(params_));
  }

  /// Throws std::invalid_argument unless the parameters have the shapes() of gate and rule, as far
  /// as these have any; `name` is the router's.
  void check_params(const ParameterName& name) const {
    if constexpr (requires { gate_.shapes(); }) {
      check_shapes(params_.gate_part(), gate_.shapes(), name);
    }
    if constexpr (requires { rule_.shapes(); }) {
      check_shapes(params_.rule_part(), rule_.shapes(), name);
    }
  }

  /// Throws std::invalid_argument unless this very object wrote the table.
  void check_tape(const Table& table, const ParameterName& name) const {
    detail::check_own(table.owner.is(identity_), name,
                      "the table is of another router, expected this one's");
  }

  /// Throws std::invalid_argument if the call asks for what the rule cannot do. A layer asks before
  /// it touches a tape.
  void check_call(const CallOptions& call, Index num_tokens) const {
    detail::throw_unless(ObeysCall<Rule> || (!call.top_k && call.experts == nullptr),
                         "Router: the call sets top_k or experts, expected a rule that obeys it");
    if constexpr (requires { rule_.check_call(call, num_tokens); }) {
      rule_.check_call(call, num_tokens);
    }
  }

  /// Writes the whole table for x (N, D). Throws std::invalid_argument if x, the parameters or the
  /// call do not fit.
  void route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const {
    check_params({"Router"});
    detail::check_shape(x, x.rows(), d_model(), "Router: x");
    call.validate(x.rows(), num_experts());
    check_call(call, x.rows());
    detail::num_threads(call.num_threads);  // throws what keep_call() would, while there is a table
    table.owner.clear();
    keep_call(call, multiply_adds(x.rows()), table);
    if constexpr (requires { rule_.probs_sum_to_one(); }) {
      table.probs_sum_to_one = rule_.probs_sum_to_one();
    } else {
      table.probs_sum_to_one = true;
    }
    detail::with_team(table.num_threads, [&] {
      gate_.forward(params_.gate_part(), x, call, table);
      detail::check_shape(table.logits, x.rows(), num_experts(), "Router: logits");
      apply(rule_, call, table);
    });
    table.owner.set(identity_);
  }

  /// dx (N, D) = and grads +=, from the gradient of the table. On return gradient.logits is the
  /// whole gradient of the logits (before a cap): exactly 0 for padding and masked experts. Throws
  /// std::invalid_argument on other shapes, a table of another router (also of a copy), or if dx
  /// overlaps x.
  void backward(ConstMatrixRef<T> x, const Table& table, RoutingGradient<W>& gradient,
                MatrixRef<T> dx,
                Params& grads) const requires TrainableGate<Gate, T> && TrainableRule<Rule, W> {
    check_tape(table, {"Router"});
    detail::check_shape(x, table.num_tokens(), d_model(), "Router: x");
    detail::check_shape(dx, x.rows(), d_model(), "Router: dx");
    detail::throw_unless(!detail::overlap(x, dx),
                         "Router: dx overlaps x, expected memory of its own");
    check_params({"Router"});
    check_grads(*this, {.word = "Router"}, grads);
    detail::check_shape(table.expert, x.rows(), table.top_k(), "Router: expert");
    detail::check_shape(table.weight, x.rows(), table.top_k(), "Router: weight");
    detail::check_shape(table.logits, x.rows(), num_experts(), "Router: logits");
    detail::check_shape(table.probs, x.rows(), num_experts(), "Router: probs");
    gradient.validate(table);
    detail::with_team(table.num_threads, [&] {
      gradient.fill_empty(table, table.num_threads);
      if constexpr (requires(typename Rule::Params & of_rule) {
                      rule_.backward_params(of_rule, table, gradient, of_rule);
                    }) {
        rule_.backward_params(params_.rule_part(), table, gradient, grads.rule_part());
      }
      apply_backward(rule_, table, gradient);
      gate_.backward_input(params_.gate_part(), x, table, gradient, dx);
      gate_.backward_params(params_.gate_part(), x, table, gradient, grads.gate_part());
    });
  }

 private:
  void check_rule() const {
    if constexpr (requires {
                    { rule_.num_experts() } -> std::convertible_to<Index>;
                  }) {
      const char* name = "the rule";
      if constexpr (requires {
                      { rule_.name } -> std::convertible_to<const char*>;
                    }) {
        name = rule_.name;
      }
      const Index made_for = rule_.num_experts();
      detail::throw_unless(made_for == num_experts(), "Router: ", name, " was made for ", made_for,
                           " experts, expected the ", num_experts(), " of the gate");
    }
  }

  static void keep_call(const CallOptions& call, double multiply_adds, Table& table) {
    table.num_threads = detail::num_threads(call.num_threads, multiply_adds);
    table.noise_seed = call.noise_seed;
    table.padding.assign(call.tokens.padding.begin(), call.tokens.padding.end());
    if (call.expert_mask != nullptr) {
      table.mask = *call.expert_mask;
    } else {
      table.mask.resize(0, 0);
    }
  }

  template <TokenRule<W> R>
  void apply(const R& rule, const CallOptions& call, Table& table) const {
    const Index num_tokens = table.logits.rows();
    if (call.experts != nullptr) {
      table.expert = *call.experts;
    } else {
      table.expert.resize(num_tokens, call.top_k.value_or(top_k()));
    }
    table.weight.resize(num_tokens, table.top_k());
    table.probs.resize(num_tokens, num_experts());
    detail::grow_both(table.scratch, table.num_threads, detail::spread_width<W>(2 * num_experts()));
    constexpr Index block = 32;
    detail::parallel_for((num_tokens + block - 1) / block, table.num_threads,
                         [&](Index item, int worker) {
                           const Index end = (std::min)((item + 1) * block, num_tokens);
                           for (Index token = item * block; token < end; ++token) {
                             mask_logits(token, table);
                             if (!table.is_padding(token)) {
                               TokenRoute<W> route = token_route<W>(token, worker, table);
                               route.chosen = call.experts != nullptr;
                               if (!call.tokens.ids.empty()) {
                                 route.id = call.tokens.ids[static_cast<std::size_t>(token)];
                               }
                               rule.route(params_.rule_part(), route);
                             }
                             clear_masked(token, table);
                           }
                         });
  }

  template <TableRule<W> R>
  requires(!TokenRule<R, W>) void apply(const R& rule, const CallOptions& call,
                                        Table& table) const {
    const Index num_tokens = table.logits.rows();
    detail::for_rows(num_tokens, table.num_threads,
                     [&](Index token) { mask_logits(token, table); });
    rule.route(params_.rule_part(), call, table);
    detail::check_shape(table.expert, num_tokens, table.top_k(), "Router: expert");
    detail::check_shape(table.weight, num_tokens, table.top_k(), "Router: weight");
    detail::check_shape(table.probs, num_tokens, num_experts(), "Router: probs");
    detail::for_rows(num_tokens, table.num_threads,
                     [&](Index token) { clear_masked(token, table); });
  }

  /// What the rule sees of a masked expert, and of padding.
  static void mask_logits(Index token, Table& table) {
    const std::uint8_t* allowed = table.allowed(token);
    const bool padding = table.is_padding(token);
    if (allowed == nullptr && !padding) {
      return;
    }
    for (Index e = 0; e < table.logits.cols(); ++e) {
      if (padding || allowed[e] == 0) {
        table.logits(token, e) = kernels::minus_infinity<W>();
      }
    }
  }

  /// What is seen of them after it.
  static void clear_masked(Index token, Table& table) {
    if (table.is_padding(token)) {
      std::fill_n(&table.expert.coeffRef(token, 0), table.expert.cols(), none);
      std::fill_n(&table.weight.coeffRef(token, 0), table.weight.cols(), W(0));
      std::fill_n(&table.probs.coeffRef(token, 0), table.probs.cols(), W(0));
      return;
    }
    const std::uint8_t* allowed = table.allowed(token);
    for (Index e = 0; allowed != nullptr && e < table.probs.cols(); ++e) {
      if (allowed[e] == 0) {
        table.probs(token, e) = W(0);  // also where the row is NaN
      }
    }
  }

  template <TokenRule<W> R>
  void apply_backward(const R& rule, const Table& table, RoutingGradient<W>& gradient) const {
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index token) {
      if (table.is_padding(token)) {
        gradient.clear(token);
      } else {
        rule.backward(params_.rule_part(), token_gradient<W>(token, table, gradient));
        clear_masked_gradient(token, table, gradient);
      }
    });
  }

  template <TableRule<W> R>
  requires(!TokenRule<R, W>) void apply_backward(const R& rule, const Table& table,
                                                 RoutingGradient<W>& gradient) const {
    const auto clear_padding = [&](Index token) {
      if (table.is_padding(token)) {
        gradient.clear(token);
      }
    };
    // What came in may be NaN, and the rule may add up tokens.
    detail::for_rows(table.num_tokens(), table.num_threads, clear_padding);
    rule.backward(params_.rule_part(), table, gradient);
    detail::for_rows(table.num_tokens(), table.num_threads, [&](Index token) {
      clear_padding(token);
      clear_masked_gradient(token, table, gradient);
    });
  }

  static void clear_masked_gradient(Index token, const Table& table, RoutingGradient<W>& gradient) {
    const std::uint8_t* allowed = table.allowed(token);
    for (Index e = 0; allowed != nullptr && e < table.logits.cols(); ++e) {
      if (allowed[e] == 0) {
        gradient.logits(token, e) = W(0);
      }
    }
  }

  Gate gate_;
  Rule rule_;
  Params params_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
