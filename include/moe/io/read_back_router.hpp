// SPDX-License-Identifier: Apache-2.0
// Before a layer is saved: whether its family's readers will make its router of what they read.
#pragma once

#include <cmath>
#include <concepts>
#include <optional>

#include "family_router.hpp"
#include "known_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Whether readers make a router of this type, or one that does the same.
template <class RouterT>
constexpr bool is_made(RouterType type) {
  if constexpr (requires { FamilyRouter<RouterT>::type; }) {
    return FamilyRouter<RouterT>::type == type;
  } else if constexpr (requires(const RouterT& router) {
                         { router.rule().config() } -> std::same_as<const RouterConfig&>;
                       }) {
    return type == RouterType::router;
  } else {
    return false;
  }
}

inline void expect_groups(const Known& known, const std::optional<GroupLimit>& found,
                          const std::optional<GroupLimit>& read) {
  const Index num_groups = found ? found->num_groups : 1;
  const std::optional<double> by_row = read ? known.value(known.family.groups) : 1.0;
  known.expect("router.selection.groups", static_cast<double>(num_groups),
               known.config ? static_cast<double>(read ? read->num_groups : 1) : by_row);
  if (num_groups == 1) {
    return;
  }
  known.expect_kind("router.selection.groups.rule", found->rule, read->rule);
  known.expect_kind("router.selection.groups.others", found->others, read->others);
  if (known.config && found->rule != GroupRule::equal_quota) {
    known.expect("router.selection.groups.kept", found->kept, read->kept);
  }
}

inline void expect_selection(const Known& known, const SelectionConfig& found) {
  const Family& family = known.family;
  if (known.config) {
    const SelectionConfig& read = known.config->router.selection;
    known.expect("router.selection.vocabulary", found.vocabulary, read.vocabulary);
    known.expect("router.selection.always", found.always, read.always);
  }
  if (found.vocabulary == 0) {
    known.expect("router.selection.bias", found.bias,
                 known.on(family.has_selection_bias, !family.router.selection_bias.empty()));
  }
}

/// Scores and weights; groups, which the rule has, too.
inline void expect_rule(const Known& known, const RouterConfig& found, const RouterConfig& read,
                        Index top_k) {
  known.expect_kind("router.score", found.score, read.score);
  known.expect_kind("router.weight.source", found.weight.source, read.weight.source);
  known.expect_kind("router.weight.expert_scale", found.weight.expert_scale,
                    read.weight.expert_scale);
  expect_groups(known, found.selection.groups, read.selection.groups);
  const bool divides =
      found.weight.source != WeightSource::softmax_of_chosen && found.weight.renormalises(top_k);
  const bool by_row = known.family.epsilon.keys.empty();
  constexpr double too_little = 1e-6;  // beside a sum of scores
  if (divides && (known.config || by_row) &&
      std::abs(found.weight.epsilon - read.weight.epsilon) > too_little) {
    known.expect("router.weight.epsilon", found.weight.epsilon, read.weight.epsilon);
  }
}

inline void expect_router(const Known& known, const RouterConfig& found, Index top_k) {
  const Family& family = known.family;
  known.expect("top_k", static_cast<double>(top_k),
               known.config ? static_cast<double>(known.config->top_k) : known.value(family.top_k));
  if (known.config || family.other_rule.when.key.empty()) {
    expect_rule(known, found, known.config ? known.config->router : family.rule, top_k);
  }
  expect_selection(known, found.selection);
  if (found.weight.source != WeightSource::softmax_of_chosen) {
    known.expect("router.weight.renormalise", found.weight.renormalises(top_k),
                 known.on(family.renormalise));
  }
  known.expect("router.weight.scale", found.weight.scale, known.value(family.scale));
  known.expect("router.logits.softcap", found.logits.softcap, known.value(family.softcap));
  known.expect("router.logits.bias", found.logits.bias,
               known.on(family.has_router_bias, !family.router.bias.empty()));
}

/// What is not in every router's config: what is by a key, if there is a config.
template <class RouterT>
void expect_own_parts(const Known& known, const RouterT& router) {
  if constexpr (requires { router.gate().config().takes_state; }) {
    known.expect("router.takes_state", router.gate().config().takes_state, known.layer != 0);
  }
  if (!known.config) {
    return;
  }
  const LayerConfig& config = *known.config;
  if constexpr (requires { router.gate().norm(); }) {
    known.expect("router.norm.epsilon", router.gate().norm().epsilon, config.router_norm.epsilon);
    known.expect("router.norm.factor", router.gate().norm().factor, config.router_norm.factor);
  }
  if constexpr (requires { router.gate().config().epsilon; }) {
    known.expect("router.epsilon", router.gate().config().epsilon, config.state.epsilon);
  }
  if constexpr (requires { router.rule().config().jitter; }) {
    known.expect("router.jitter", router.rule().config().jitter, config.sparse_mixer.jitter);
  }
  if constexpr (requires { router.rule().config().policy; }) {
    const SecondExpertConfig& found = router.rule().config();
    known.expect_kind("router.policy", found.policy, config.second_expert.policy);
    known.expect_kind("router.normalise", found.normalise, config.second_expert.normalise);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
