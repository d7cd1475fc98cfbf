// SPDX-License-Identifier: Apache-2.0
// Before a layer is saved: whether its family's readers will take its experts, the shared one
// among them, for what they are.
#pragma once

#include <optional>

#include "../experts/dense_ffn.hpp"
#include "../experts/zero.hpp"
#include "known_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// But for gate, bias and gate of the output, which not all of a layer's experts have.
inline void expect_expert(const Known& known, const ExpertConfig& found) {
  const Family& family = known.family;
  const ExpertConfig& read = known.config ? known.config->expert : family.expert;
  if (known.config || family.activation_keys.empty()) {
    known.expect_kind("expert.activation", found.activation, read.activation);
  }
  known.expect("expert.up_offset", found.up_offset, read.up_offset);
  known.expect_limit("expert.limit", found.limit, family.limit);
  ExpertConfig all = read;
  all.gated = found.gated;
  all.bias = found.bias;
  all.output_gate = found.output_gate;
  all.limit = found.limit;  // just compared, or by a key
  if (!known.config) {      // these keys may say
    all.activation = found.activation;
    all.alpha = known.value(family.alpha).value_or(found.alpha);
    all.gate_bound = found.gate_bound;
    all.up_bound = found.up_bound;
  }
  moe::detail::throw_unless(all == found,
                            "save_layers: the expert's clamp, alpha or bounds are not those that "
                            "readers of family ",
                            family.name(), " take");
}

/// The experts that have parameters.
template <class Set>
const auto& routed_set(const Set& experts) {
  if constexpr (requires { experts.set(); }) {
    return experts.set();
  } else {
    return experts;
  }
}

/// Readers take all routed experts to be of one kind: that of the first, which expect_expert() has
/// seen. Those of a set are of one width.
template <class Set>
void expect_one_kind(const Family& family, const ExpertConfig& first, const Set& set) {
  const Index second = family.second.router.empty() ? set.num_experts() : set.num_experts() / 2;
  for (Index e = 0; e < set.num_experts(); ++e) {
    const auto& expert = set[static_cast<std::size_t>(e)];
    moe::detail::throw_unless(expert.config() == first, "save_layers: the config of expert ", e,
                              " is not that of the first, as readers of family ", family.name(),
                              " take it to be");
    if constexpr (requires { expert.d_ff(); }) {
      const Index d_ff = set[static_cast<std::size_t>(e < second ? 0 : second)].d_ff();
      moe::detail::throw_unless(expert.d_ff() == d_ff, "save_layers: expert ", e, " is ",
                                expert.d_ff(), " wide, but readers of family ", family.name(),
                                " take it to be ", d_ff);
    }
  }
}

/// The shared one is of the same kind, but for what keys of its own say.
template <Real T>
void expect_shared(const Known& known, const ExpertConfig& routed,
                   const std::optional<DenseFfn<T>>& shared) {
  const SharedNames& names = known.family.shared;
  known.expect("the number of shared experts", shared.has_value(), known.has_shared());
  if (!shared) {
    return;
  }
  const ExpertConfig& found = shared->expert().config();
  known.expect("shared.output_gate", found.output_gate, !names.output_gate.empty());
  known.expect("shared.has_width", shared->expert().d_ff() > 0, !names.bias_alone);
  if (!names.bias_alone) {
    known.expect("shared.gated", found.gated, known.family.expert.gated);
    known.expect("shared.bias", found.bias, known.on(known.family.has_expert_bias));
  }
  known.expect_limit("shared.limit", found.limit, names.limit);
  ExpertConfig read = routed;
  read.gated = found.gated;
  read.bias = found.bias;
  read.output_gate = found.output_gate;
  read.limit = found.limit;
  moe::detail::throw_unless(read == found,
                            "save_layers: activation, limit, clamp, alpha or bounds of the shared "
                            "expert are not those that readers of family ",
                            known.family.name(), " take");
}

/// Of experts that compute nothing or share small ones.
template <class Set>
void expect_other_experts(const Known& known, const ExpertConfig& kind, const Set& experts) {
  const Family& family = known.family;
  if constexpr (requires { experts.adjugates(); }) {
    expect_one_kind(family, kind, experts.adjugates());
    known.expect("the scale of small experts", experts.scale(),
                 known.value(family.adjugates.scale));
  }
  ZeroComputation zero;
  if constexpr (requires { experts.zero(); }) {
    zero = experts.zero();
  }
  known.expect("the number of copy experts", static_cast<double>(zero.copies),
               known.value(family.copies));
  known.expect("the number of zero experts", static_cast<double>(zero.zeros),
               known.value(family.zeros));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
