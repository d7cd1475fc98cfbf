// SPDX-License-Identifier: Apache-2.0
// Which instruction set the layers of moe::compiled compute with. It is chosen once, when the first
// layer is made that names none: the best that the processor has, or what the environment variable
// MOE_INSTRUCTION_SET names. Another one gives other last digits.
#pragma once

#include <string_view>
#include <vector>

#include "../instruction_set.hpp"
#include "boundary.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::compiled {

/// Those that the library has and this processor runs, the best first: of avx512_bf16_vnni,
/// avx512_vnni, avx512, avx2_fma_vnni, avx2_fma and sse2 on x86-64 (the first two the other way
/// round where there is AMX), elsewhere the one that it was built for.
inline std::vector<std::string_view> instruction_sets() {
  std::vector<std::string_view> names;
  for (const boundary::InstructionSet* set : boundary::instruction_sets()) {
    names.push_back(set->name);
  }
  return names;
}

/// That of a layer that names none. Throws std::invalid_argument if the environment names another
/// than one of instruction_sets().
inline std::string_view default_instruction_set() { return boundary::instruction_set({}).name; }

}  // namespace moe::inline MOE_INSTRUCTION_SET::compiled
