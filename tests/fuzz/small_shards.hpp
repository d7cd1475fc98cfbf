// SPDX-License-Identifier: Apache-2.0
// The shards beside which an index is read, for the target and for its first seed.
#pragma once

#include <array>

namespace moe::fuzz {

struct SmallShard {
  const char* file;
  std::array<const char*, 2> tensors;
};
inline constexpr std::array<SmallShard, 2> small_shards{
    {{"1.safetensors", {"a", "model.layers.0.mlp.gate.weight"}}, {"2.safetensors", {"b", "c.d"}}}};

}  // namespace moe::fuzz
