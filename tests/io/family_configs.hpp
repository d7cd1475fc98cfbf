// SPDX-License-Identifier: Apache-2.0
// A config.json of any family, small.
#pragma once

#include <string>
#include <string_view>

#include "moe/io/families.hpp"

namespace moe::io::testing {

/// Keys of sizes that most families have.
inline constexpr std::string_view four_experts = R"("hidden_size": 8, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16)";

/// A config that every family finds its keys in.
inline std::string config_text(std::string_view family) {
  return detail::joined(R"({"model_type": ")", family, R"(", "hidden_size": 8, "num_experts": 4,
      "num_experts_per_tok": 2, "moe_intermediate_size": 6, "intermediate_size": 6,
      "ffn_hidden_size": 6, "moe_ffn_hidden_size": 6, "d_ff": 6, "shared_expert_intermediate_size": 3,
      "shared_intermediate_size": 3, "n_shared_experts": 2, "routed_scaling_factor": 1.5,
      "n_group": 1, "router_bias": true, "expert_selection_fn": "softmax",
      "shared_expert_combination_strategy": "sum", "share_expert_dim": 3, "vocab_size": 5,
      "moe_shared_expert_intermediate_size": 3, "moe_num_primary_experts": 4,
      "moe_num_active_primary_experts": 2, "expert_ffn_hidden_size": 6, "zero_expert_num": 2,
      "moe_latent_size": 5, "routed_expert_hidden_size": 5, "norm_topk_prob": false,
      "num_routed_experts": 4, "encoder_ffn_dim": 6, "router_hidden_size": 5, "is_moe": true})");
}

}  // namespace moe::io::testing
