// SPDX-License-Identifier: Apache-2.0
// A packed layer once more in memory of its own, for benches that want more weights than caches
// hold: copies of packed weights share theirs.
#pragma once

#include <algorithm>
#include <moe/moe.hpp>
#include <type_traits>
#include <utility>
#include <vector>

namespace moe::bench {

template <Storage S>
PackedMatrix<S> in_own_memory(const PackedMatrix<S>& weight) {
  using Stored = std::remove_cvref_t<decltype(*weight.stored(0, 0))>;
  const std::size_t size = weight.bytes() / sizeof(Stored);
  const auto panels = moe::detail::zeroed_panels<Stored>(static_cast<Index>(size));
  std::copy_n(weight.stored(0, 0), size, panels.get());
  return {weight, panels};
}

/// Of a layer without a shared expert.
template <Storage S>
PackedLayer<S> in_own_memory(const PackedLayer<S>& layer) {
  std::vector<PackedExpert<S>> experts;
  for (Index e = 0; e < layer.num_experts(); ++e) {
    experts.push_back(layer.experts().expert(e));
    experts.back().up = in_own_memory<S>(experts.back().up);
    experts.back().down = in_own_memory<S>(experts.back().down);
  }
  return {layer.router(), PackedExperts<S>(std::move(experts)), layer.options()};
}

}  // namespace moe::bench
