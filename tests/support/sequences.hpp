// SPDX-License-Identifier: Apache-2.0
// Small batches in sequences, with padding and without, for layers that look across the batch; and
// whether their bits depend on the threads.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "layer_step.hpp"

namespace moe::testing {

namespace sequences {

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

}  // namespace sequences

/// Of 60 tokens at least. run_step(call) and forward(call) are a step and an inference of the
/// layer.
template <class Layer, class RunStep, class Forward>
void expect_same_bits_for_any_threads(const Layer& layer, Index num_tokens, RunStep&& run_step,
                                      Forward&& forward) {
  const std::vector<Index> offset = {0, 7, 7, 40, num_tokens};
  std::vector<std::uint8_t> marks(static_cast<std::size_t>(num_tokens), 0);
  marks[3] = marks[50] = 1;
  for (const Tokens& tokens :
       {Tokens{}, Tokens{.sequence_offset = offset}, Tokens{.padding = marks}}) {
    const auto one = run_step(CallOptions{.num_threads = 1, .tokens = tokens});
    for (const int threads : {2, 5}) {
      const auto more = run_step(CallOptions{.num_threads = threads, .tokens = tokens});
      EXPECT_TRUE(same_bits(more.y, one.y));
      EXPECT_TRUE(same_bits(more.dx, one.dx));
      EXPECT_TRUE(same_grads(layer, more.grads, one.grads));
    }
    EXPECT_TRUE(same_bits(forward(CallOptions{.tokens = tokens}), one.y)) << "inference";
  }
}

}  // namespace moe::testing
