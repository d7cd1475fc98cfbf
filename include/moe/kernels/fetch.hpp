// SPDX-License-Identifier: Apache-2.0
// What a tile asks memory for while it computes: the lines that come next, in as many places at a
// time as the processor wants.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Bytes that a tile which reads one stream asks ahead in it.
inline constexpr Index page_ahead = 4096;

/// Asks for a cache line, for the second cache if not told. In the first, which is small, it would
/// push out what is at work, or be pushed out by columns that lie a power of two apart, before its
/// turn comes.
template <int cache = 2>
void prefetch(const void* line) {
#ifdef __GNUC__  // and Clang
  __builtin_prefetch(line, 0, 4 - cache);
#else
  Eigen::internal::prefetch(static_cast<const char*>(line));
#endif
}

/// prefetch() of the lines of `rows` rows of `cols` elements. Rows that a tile is about to write
/// are worth it, too: else its stores wait for their lines, and what comes next for the stores.
template <class T>
void prefetch_rows(const T* first, Index rows, Index cols, Index stride) {
  constexpr Index line = 64 / Index{sizeof(T)};
  for (Index row = 0; row < rows; ++row) {
    for (Index col = 0; col < cols; col += line) {
      prefetch(first + row * stride + col);
    }
  }
}

/// Lines of what comes next from memory, of which a tile asks for `lines` at each of its steps.
/// They lie `stride` bytes apart in `size` bytes, round and round. Any address will do.
struct Ahead {
  const void* first = nullptr;
  Index stride = 0, size = 0, lines = 0;
};

/// Asks for them, step by step.
class Fetch {
 public:
  explicit Fetch(const Ahead& ahead)
      : next_(static_cast<const char*>(ahead.first)),
        end_(next_ + ahead.size),
        stride_(ahead.stride),
        size_(ahead.size),
        lines_(ahead.lines) {}

  /// For a step.
  void operator()() {
    for (Index i = 0; i < lines_; ++i) {
      prefetch(take());
    }
  }
  /// The next of the lines.
  const void* take() {
    const char* const line = next_;
    next_ += stride_;
    next_ = next_ < end_ ? next_ : next_ - size_;
    return line;
  }

 private:
  const char *next_, *end_;
  Index stride_, size_, lines_;
};

/// In how many places a core asks memory for bytes that follow each other. Memory has many pages
/// open, and what fetches by itself looks ahead in each page: where lines are long on their way
/// (Intel's servers), one place after the other gives a core three quarters of what eight give.
/// AMD's Zen 5 fetches one stream by itself at 40 GB/s a core, and in eight places at 23.
inline Index places_ahead() {
#if defined(__GNUC__) && defined(__x86_64__)
  return __builtin_cpu_is("amd") != 0 ? 1 : 8;
#else
  return 8;
#endif
}

/// The panel that comes after this one, for the last `tiles` tiles of this one to ask for: fetched
/// earlier, the rows in between would push it out again. The tile with n tiles after it takes what
/// begins n * tile_stride bytes further on.
struct NextPanel {
  Ahead first;
  Index tile_stride = 0, tiles = 0;

  /// Bytes that follow each other, in so many places in turn, for tiles of so many steps.
  static NextPanel of_bytes(std::span<const std::byte> bytes, Index steps, Index lines,
                            Index places = places_ahead()) {
    constexpr Index line = 64;
    const Index whole = (static_cast<Index>(bytes.size()) + line - 1) / line * line;
    const Index size = (std::min)(whole, steps * lines * line);
    const Index tiles = size == 0 ? 0 : (whole + size - 1) / size;
    // After a round of the places all of them are a line further on.
    return {{bytes.data(), (size + line) / places, size, lines}, size, tiles};
  }

  /// So many rows of tile cols, whose step is a row. A tile asks for a line of each.
  template <class Tile, class T>
  static NextPanel of_rows(const T* rows, Index depth, Index stride) {
    const Index bytes = stride * Index{sizeof(T)};
    return {{rows, bytes, depth * bytes, 1}, 64, Tile::lines};
  }

  /// For a tile that so many rows come after.
  template <class Tile>
  Ahead ahead_of(Index rows_left) const {
    const Index tile = (rows_left + Tile::rows - 1) / Tile::rows;
    if (tile >= tiles) {
      return {};
    }
    Ahead ahead = first;
    ahead.first = static_cast<const char*>(first.first) + tile * tile_stride;
    return ahead;
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
