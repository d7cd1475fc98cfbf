// SPDX-License-Identifier: Apache-2.0
// Experts of a family's layer with random weights, in the place of those that a file would have.
#pragma once

#include <vector>

#include "moe/experts/expert.hpp"
#include "moe/io/family_config.hpp"

namespace moe::io::testing {

/// Behind those of the layer are the small ones that they share.
template <Real T>
std::vector<Expert<T>> experts_of(const LayerConfig& config, std::uint64_t seed) {
  std::vector<Expert<T>> experts;
  for (Index e = 0; e < config.num_feed_forwards(); ++e) {
    experts.emplace_back(
        typename Expert<T>::Sizes{config.expert_d_in(), config.d_ff_of(e), config.expert_d_out()},
        config.expert, seed + static_cast<std::uint64_t>(e));
  }
  for (Index e = 0; e < config.adjugate.count; ++e) {
    experts.emplace_back(typename Expert<T>::Sizes{config.expert_d_in(), config.adjugate.d_ff,
                                                   config.expert_d_out()},
                         config.expert, seed + 1000 + static_cast<std::uint64_t>(e));
  }
  return experts;
}

}  // namespace moe::io::testing
