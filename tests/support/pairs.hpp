// SPDX-License-Identifier: Apache-2.0
// Every kind of gated pair, for tests that hold for all of them.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "moe/config.hpp"

namespace moe::testing {

/// Plain, cut before and behind each activation, with an offset, and SiTU. Limits are small, so
/// that tests with numbers of about 1 reach them.
inline std::vector<ExpertConfig> pair_configs() {
  std::vector<ExpertConfig> all;
  for (const Activation activation : all_activations) {
    all.push_back({.activation = activation, .gate_bound = 1.5, .up_bound = 2.0});
    if (activation != Activation::situ) {
      all.push_back({.activation = activation, .limit = 0.8});
      all.push_back({.activation = activation, .limit = 0.4, .clamp = Clamp::after});
    }
  }
  all.push_back({.activation = Activation::gelu_quick, .limit = 0.7, .up_offset = 1.0});
  all.push_back({.up_offset = -0.5, .alpha = 1.3});
  return all;
}

template <class F>
void for_each_pair(F&& f) {
  for (const ExpertConfig& config : pair_configs()) {
    SCOPED_TRACE(::testing::Message() << "activation " << static_cast<int>(config.activation)
                                      << ", limit " << config.limit.value_or(0.0)
                                      << (config.clamp == Clamp::before ? " before" : " after")
                                      << ", offset " << config.up_offset);
    f(config);
  }
}

}  // namespace moe::testing
