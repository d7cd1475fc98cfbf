// SPDX-License-Identifier: Apache-2.0
// Small batches in sequences, with padding and without, for layers that look across the batch.
#pragma once

#include <cstdint>
#include <vector>

#include "layer_contract.hpp"

namespace moe::testing::sequences {

using testing::forward;

inline constexpr Index N = 12;
inline const std::vector<Index> ragged = {0, 5, 5, 6, 8, 12};
/// Of `ragged` one sequence is padding alone, and one has some.
inline const std::vector<std::uint8_t> padding = {0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0};

inline std::vector<Tokens> all_tokens() {
  return {{},
          {.sequence_length = 4},
          {.sequence_offset = ragged},
          {.padding = padding},
          {.sequence_offset = ragged, .padding = padding}};
}

}  // namespace moe::testing::sequences
