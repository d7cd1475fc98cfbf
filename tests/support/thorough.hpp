// SPDX-License-Identifier: Apache-2.0
// How far tests go through sizes and elements, of which more show the same.
#pragma once

#include "moe/types.hpp"

namespace moe::testing {

/// Code that nobody optimised, with sanitizers, and code of another processor, which is emulated,
/// are twenty times as slow: they meet each case once, where others meet every pair of cases.
#if defined(__OPTIMIZE__) && !defined(MOE_TESTS_EMULATED)
constexpr bool thorough = true;
#else
constexpr bool thorough = false;
#endif

/// Steps through `count` elements: through all of them, or about nine.
constexpr Index element_step(Index count) { return thorough ? 1 : count / 8 + 1; }

}  // namespace moe::testing
