// SPDX-License-Identifier: Apache-2.0
// The only file that knows OpenMP. Whoever takes an item writes its rows, and no sum is split
// between items, so results depend neither on the threads nor on how many items there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>

#include "../kernels/instruction_set.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// Threads a call may use: as many as requested, or OpenMP's default for 0. One without OpenMP,
/// and one inside the caller's own parallel region, which already has its threads.
inline int num_threads([[maybe_unused]] int requested) {
#ifdef _OPENMP
  if (omp_in_parallel()) {
    return 1;
  }
  return requested > 0 ? requested : omp_get_max_threads();
#else
  return 1;
#endif
}

/// Keeps the first exception of a parallel region: one that left the region would end the process.
class FirstException {
 public:
  bool caught() const { return caught_.load(std::memory_order_relaxed); }

  /// Call it inside a catch block.
  void capture() {
    const std::lock_guard lock(mutex_);
    if (!exception_) {
      exception_ = std::current_exception();
      caught_.store(true, std::memory_order_relaxed);
    }
  }

  void rethrow() const {
    if (exception_) {
      std::rethrow_exception(exception_);
    }
  }

 private:
  std::mutex mutex_;
  std::exception_ptr exception_;
  std::atomic<bool> caught_ = false;
};

/// Calls body(item, worker) once for each item in [0, num_items), worker in [0, threads). Items
/// are handed out as workers become free, by a counter of ours: LLVM's dynamic schedule allocates
/// for every item. An exception of an item is thrown again here, and the items that had not begun
/// are left out.
template <class Body>
void parallel_for(std::ptrdiff_t num_items, int threads, Body&& body) {
  threads = static_cast<int>(std::min<std::ptrdiff_t>(threads, num_items));
#ifdef _OPENMP
  if (threads > 1) {
    FirstException first;
    std::atomic<std::ptrdiff_t> next = 0;
#pragma omp parallel num_threads(threads)
    {
      const int worker = omp_get_thread_num();
      for (std::ptrdiff_t item = next++; item < num_items && !first.caught(); item = next++) {
        try {
          body(item, worker);
        } catch (...) {
          first.capture();
        }
      }
    }
    first.rethrow();
    return;
  }
#endif
  for (std::ptrdiff_t item = 0; item < num_items; ++item) {
    body(item, 0);
  }
}

/// Parts into which to cut each of `num_pieces` of work, so that all threads are busy to the end.
inline std::ptrdiff_t parts_of_each(std::ptrdiff_t num_pieces, int threads) {
  constexpr std::ptrdiff_t items_per_thread = 32;
  const std::ptrdiff_t wanted = threads == 1 ? 1 : threads * items_per_thread;
  return num_pieces == 0 ? 1 : (wanted + num_pieces - 1) / num_pieces;
}

/// Calls body(row) for each row in [0, num_rows), in blocks of rows that are worth a hand-over.
template <class Body>
void for_blocks(std::ptrdiff_t num_rows, int threads, Body&& body) {
  constexpr std::ptrdiff_t block = 32;
  parallel_for((num_rows + block - 1) / block, threads, [&](std::ptrdiff_t item, int) {
    const std::ptrdiff_t end = std::min((item + 1) * block, num_rows);
    for (std::ptrdiff_t row = item * block; row < end; ++row) {
      body(row);
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
