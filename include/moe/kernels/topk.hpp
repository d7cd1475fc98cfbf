// SPDX-License-Identifier: Apache-2.0
// Selection: the k best of a row, in descending order. Nothing is rounded here, so all ways of
// selecting come to the same; they differ in time only.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lanes.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// The order of selection: the larger value first, every number before NaN. False on a tie, so
/// that whoever was met first keeps the place.
template <class T>
bool ranks_above(const T& a, const T& b) {
  using std::isnan;
  return a > b || (isnan(b) && !isnan(a));
}

/// Puts an expert in its place among the `count` best so far, of which k are kept. Returns how many
/// there are then. Of equals, the one that came first stays ahead.
template <class T>
Index insert_best(const T* value, Index expert, Index count, Index k, ExpertId* chosen) {
  if (count == k && !ranks_above(value[expert], value[chosen[k - 1]])) {
    return count;
  }
  Index place = count < k ? count++ : k - 1;
  for (; place > 0 && ranks_above(value[expert], value[chosen[place - 1]]); --place) {
    chosen[place] = chosen[place - 1];
  }
  chosen[place] = static_cast<ExpertId>(expert);
  return count;
}

/// top_k by insertion: for short rows, and for scalars without lanes.
template <class T>
Index insert_top_k(const T* value, const std::uint8_t* allowed, Index num_experts, Index k,
                   ExpertId* chosen) {
  Index count = 0;
  for (Index expert = 0; expert < num_experts; ++expert) {
    if (allowed == nullptr || allowed[expert] != 0) {
      count = insert_best(value, expert, count, k, chosen);
    }
  }
  return count;
}

/// A row in at most 64 chunks, each known by its best. The best of these is taken, and its chunk
/// looks for its next: the time is that of E + k (64 + E / 64) elements, whatever their values.
/// Masked experts, NaN and -inf take no part.
template <Vectorised T>
class Tournament {
 public:
  Tournament(const T* value, const std::uint8_t* allowed, Index size)
      : value_(value), allowed_(allowed), size_(size) {
    for (Index chunk = 0; chunk < num_chunks_; ++chunk) {
      L best(lowest);
      for_lanes<T>(length(chunk), [&](auto at) {
        const L x = load(chunk, at);
        best = where(x > best, x, best);
      });
      best_[chunk] = max_of(best);
      after_[chunk] = T(-1);
    }
    std::fill(best_ + num_chunks_, best_ + most_chunks, lowest);
  }

  /// The best expert that was not taken before, of equals the first; none if there is none.
  ExpertId take() {
    L best(lowest);
    for_chunks([&](Index begin, const L&) { best = larger(best, L::load(best_ + begin)); });
    const T top = max_of(best);
    if (!(top > lowest)) {
      return none;
    }
    L first(most_chunks);
    for_chunks([&](Index begin, const L& number) {
      first = smaller(first, where(L::load(best_ + begin) == L(top), number, L(most_chunks)));
    });
    const T chunk = min_of(first);
    const T position = replace(chunk, top);
    return static_cast<ExpertId>(static_cast<Index>(chunk) * chunk_size_ +
                                 static_cast<Index>(position));
  }

 private:
  using L = Lanes<T>;
  static constexpr Index most_chunks = 64;
  static constexpr T lowest = -std::numeric_limits<T>::infinity();

  static Index round_up(Index a, Index b) { return (a + b - 1) / b * b; }
  Index length(Index chunk) const { return (std::min)(chunk_size_, size_ - chunk * chunk_size_); }

  L load(Index chunk, const LanePlace<T>& at) const {
    const T* value = value_ + chunk * chunk_size_;
    if (allowed_ == nullptr) {
      return at.load(value, lowest);
    }
    const std::uint8_t* allowed = allowed_ + chunk * chunk_size_ + at.begin;
    T masked[L::size];
    for (Index i = 0; i < L::size; ++i) {
      masked[i] = i < at.count && allowed[i] != 0 ? value[at.begin + i] : lowest;
    }
    return L::load(masked);
  }

  /// body(begin, chunk numbers) for each vector of best_.
  template <class Body>
  void for_chunks(Body&& body) {
    L number = L::numbers();
    for (Index begin = 0; begin < num_chunks_; begin += L::size) {
      body(begin, number);
      number = number + L(L::size);
    }
  }

  /// Takes a chunk's best, which is `top`: returns its position, and finds the next.
  T replace(T chunk, T top) {
    const auto c = static_cast<Index>(chunk);
    L first(chunk_size_), count(0), below(lowest), position = L::numbers();
    for_lanes<T>(length(c), [&](auto at) {
      const L x = load(c, at);
      const auto equal = (x == L(top)) & (position > L(after_[c]));
      first = smaller(first, where(equal, position, L(chunk_size_)));
      count = count + where(equal, L(1), L(0));
      below = larger(below, where(x < L(top), x, L(lowest)));
      position = position + L(L::size);
    });
    const bool again = sum_of(count) > T(1);
    const L next(again ? top : max_of(below));
    after_[c] = again ? min_of(first) : T(-1);
    // Whole vectors, which the next take() reads: a single element would have to reach the cache.
    for_chunks([&](Index begin, const L& number) {
      where(number == L(chunk), next, L::load(best_ + begin)).store(best_ + begin);
    });
    return min_of(first);
  }

  const T* value_;
  const std::uint8_t* allowed_;
  Index size_;
  Index chunk_size_ = round_up(round_up(size_, most_chunks) / most_chunks, L::size);
  Index num_chunks_ = round_up(size_, chunk_size_) / chunk_size_;
  T best_[most_chunks];   // of each chunk; lowest: nothing is left
  T after_[most_chunks];  // up to here, elements as large as best_ are taken
};

/// Writes the experts of the k best values to chosen, best first; ties go to the lower expert.
/// allowed (E), or null for all: an expert with allowed == 0 is never chosen. Where fewer than k
/// are allowed, the rest of chosen is `none`. Returns how many were chosen.
template <class T>
[[gnu::flatten]] Index top_k(const T* value, const std::uint8_t* allowed, Index num_experts,
                             Index k, ExpertId* chosen) {
  std::fill(chosen, chosen + k, none);
  if constexpr (Vectorised<T>) {
    constexpr Index short_row = 32;  // up to here insertion is faster
    if (num_experts > short_row) {
      Tournament<T> tournament(value, allowed, num_experts);
      Index count = 0;
      while (count < k && (chosen[count] = tournament.take()) != none) {
        ++count;
      }
      const auto choose_if = [&](auto&& condition) {
        for (Index e = 0; count < k && e < num_experts; ++e) {
          if ((allowed == nullptr || allowed[e] != 0) && condition(value[e])) {
            chosen[count++] = static_cast<ExpertId>(e);
          }
        }
      };
      choose_if([](T x) { return x < std::numeric_limits<T>::lowest(); });
      choose_if([](T x) { return std::isnan(x); });
      return count;
    }
  }
  return insert_top_k(value, allowed, num_experts, k, chosen);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
