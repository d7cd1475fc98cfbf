// SPDX-License-Identifier: Apache-2.0
// The shares in which threads divide work on one expert, so that all of them are busy whatever the
// router chose.
#pragma once

#include <algorithm>

#include "detail/parallel.hpp"
#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// A share of something's rows or columns. With a `step`, shares begin at its multiples.
struct Part {
  Index number = 0, count = 1;

  Index begin(Index size, Index step = 1) const { return border(number, size, step); }
  Index end(Index size, Index step = 1) const { return border(number + 1, size, step); }

 private:
  Index border(Index n, Index size, Index step) const {
    return std::min(size, (size + step - 1) / step * n / count * step);
  }
};

/// Parts into which to cut each of `num_pieces` of work, so that all threads are busy to the end.
inline Index parts_of_each(Index num_pieces, int threads) {
  constexpr Index items_per_thread = 32;
  const Index wanted = threads == 1 ? 1 : threads * items_per_thread;
  return num_pieces == 0 ? 1 : (wanted + num_pieces - 1) / num_pieces;
}

/// body(piece, part, worker) for every part of every piece, worker in [0, threads).
template <class Body>
void for_parts(Index num_pieces, int threads, Body&& body) {
  const Index parts = parts_of_each(num_pieces, threads);
  detail::parallel_for(num_pieces * parts, threads, [&](Index item, int worker) {
    body(item / parts, Part{item % parts, parts}, worker);
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
