// SPDX-License-Identifier: Apache-2.0
// Extents of packed experts in memory, for tests of what reads and computes them.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "layer_step.hpp"
#include "moe/experts/offloaded_experts.hpp"
#include "moe/experts/packed_experts.hpp"

namespace moe::testing {

/// The extents of all experts, one behind the other.
template <class S>
struct Extents {
  explicit Extents(const PackedExperts<S>& experts)
      : extent(ExpertExtent<S>::of(experts.expert(0))),
        bytes(extent.bytes()),
        memory(static_cast<std::byte*>(
            ::operator new(bytes* static_cast<std::size_t>(experts.num_experts()), page))) {
    for (Index e = 0; e < experts.num_experts(); ++e) {
      extent.write(experts.expert(e), {memory.get() + offset(e), bytes});
    }
  }

  std::size_t offset(Index expert) const { return static_cast<std::size_t>(expert) * bytes; }
  void read(ExpertId expert, std::span<std::byte> to) const {
    std::memcpy(to.data(), memory.get() + offset(expert), to.size());
  }

  struct Free {
    void operator()(std::byte* start) const { ::operator delete(start, page); }
  };
  static constexpr std::align_val_t page{4096};

  ExpertExtent<S> extent;
  std::size_t bytes;
  std::unique_ptr<std::byte, Free> memory;
};

/// A layer of seven experts that a storage can hold, with every part that a layer may have.
inline MoEConfig offloaded_config() {
  MoEConfig config{.d_model = 37, .d_ff = 53, .num_experts = 7, .top_k = 2};
  config.expert = {.bias = true, .output_gate = true, .limit = 0.7};
  config.shared = SharedExpertConfig{.d_ff = 13};
  config.capacity.factor = 1.5;
  return config;
}

/// The experts that have rows, in the order of their numbers.
inline std::vector<ExpertId> experts_with_rows(const RowGroups& groups) {
  std::vector<ExpertId> experts;
  for (Index e = 0; e < groups.num_experts(); ++e) {
    if (groups.end(e) > groups.begin(e)) {
      experts.push_back(static_cast<ExpertId>(e));
    }
  }
  return experts;
}

}  // namespace moe::testing
