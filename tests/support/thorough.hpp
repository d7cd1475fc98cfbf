// SPDX-License-Identifier: Apache-2.0
// How far tests go through sizes and elements, of which more show the same.
#pragma once

#include "moe/types.hpp"

namespace moe::testing {

/// Sanitizers run code that nobody optimised, twenty times as slow: it meets each case once, where
/// optimised code meets every pair of cases. What is computed does not change with that.
#ifdef __OPTIMIZE__
constexpr bool thorough = true;
#else
constexpr bool thorough = false;
#endif

/// A step through `count` elements: that of all, or of eight at most.
constexpr Index element_step(Index count) { return thorough ? 1 : count / 8 + 1; }

}  // namespace moe::testing
