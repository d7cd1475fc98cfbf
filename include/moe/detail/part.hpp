// SPDX-License-Identifier: Apache-2.0
// The shares in which threads divide work on one expert, so that all of them are busy whatever the
// router chose.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "parallel.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// A share of something's rows or columns. With a `step`, shares begin at its multiples.
struct Part {
  std::ptrdiff_t number = 0, count = 1;

  std::ptrdiff_t begin(std::ptrdiff_t size, std::ptrdiff_t step = 1) const {
    return border(number, size, step);
  }
  std::ptrdiff_t end(std::ptrdiff_t size, std::ptrdiff_t step = 1) const {
    return border(number + 1, size, step);
  }

 private:
  std::ptrdiff_t border(std::ptrdiff_t n, std::ptrdiff_t size, std::ptrdiff_t step) const {
    return (std::min)(size, (size + step - 1) / step * n / count * step);
  }
};

/// Parts into which to cut each of `num_pieces` of work, so that all threads are busy to the end;
/// not more than `most`, but one for each thread, and as many for one as for another.
inline std::ptrdiff_t parts_of_each(
    std::ptrdiff_t num_pieces, int threads,
    std::ptrdiff_t most = (std::numeric_limits<std::ptrdiff_t>::max)()) {
  constexpr std::ptrdiff_t items_per_thread = 32;
  if (num_pieces == 0 || threads == 1) {
    return 1;
  }
  const auto parts_of = [&](std::ptrdiff_t items) { return (items + num_pieces - 1) / num_pieces; };
  const std::ptrdiff_t least = parts_of(threads), wanted = parts_of(threads * items_per_thread);
  return wanted <= most ? wanted : (std::max)(most / least, std::ptrdiff_t{1}) * least;
}

/// body(piece, part, worker) for every part of every piece, worker in [0, threads).
template <class Body>
void for_parts(std::ptrdiff_t num_pieces, int threads, Body&& body) {
  const std::ptrdiff_t parts = parts_of_each(num_pieces, threads);
  parallel_for(num_pieces * parts, threads, [&](std::ptrdiff_t item, int worker) {
    body(item / parts, Part{item % parts, parts}, worker);
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
