// SPDX-License-Identifier: Apache-2.0
// The only file that knows OpenMP. Whoever takes an item writes its rows, and no sum is split
// between items, so results depend neither on the threads nor on how many items there are.
//
// A call runs in one parallel region, with a team, and its loops share the threads:
//
//   with_team(threads, f)        worker 0 runs f            the others follow
//     f: parallel_for(n, ...)    opens a loop, phase odd    see it, come in, take items
//                                takes items, too
//                                closes it, phase even      go out again
//        parallel_for(m, ...)    waits for those inside     ...
//     f ends                     the team is over           leave
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <limits>
#include <type_traits>

#include "../instruction_set.hpp"
#include "check.hpp"
#include "cpu_quota.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#if __has_include(<sched.h>)  // POSIX; <thread> is a tenth of what this library costs to compile
#include <sched.h>
#else
#include <thread>
#endif

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// Lets another thread have the core.
inline void give_way() {
#if __has_include(<sched.h>)
  sched_yield();
#else
  std::this_thread::yield();
#endif
}

/// Keeps the first exception of a parallel region: one that left the region would end the process.
class FirstException {
 public:
  bool caught() const { return caught_.load(std::memory_order_relaxed); }

  /// Call it inside a catch block.
  void capture() {
    if (!caught_.exchange(true)) {
      exception_ = std::current_exception();
    }
  }

  /// After all threads have left the region.
  void rethrow() const {
    if (exception_) {
      std::rethrow_exception(exception_);
    }
  }

 private:
  std::exception_ptr exception_;
  std::atomic<bool> caught_ = false;
};

/// A loop over items, without the type of its body. Workers take items by counters: LLVM's dynamic
/// schedule allocates for every one.
struct Loop {
  void (*call)(const void* body, std::ptrdiff_t item, int worker);
  const void* body;
  std::ptrdiff_t num_items;
  int num_workers;
};

/// The threads of one parallel region, for all loops of a call: a region each would cost more than
/// the work of a small layer. One thread, the leader, runs the call; the others take part in its
/// loops. The leader waits only for those that have begun, so that a thread whose core is taken by
/// another program does not stop each loop.
class Team {
 public:
  explicit Team(int size) : size_(size) {}

  int size() const { return size_; }

  /// By the leader. An exception of an item is thrown again here.
  void run(const Loop& loop);
  /// By all others, until the leader ends the call.
  void follow(int worker);
  void end() { over_.store(true); }

 private:
  /// A run of items that one worker begins and whoever is free helps to finish: neighbours read
  /// what lies together in memory, and a core asks for what comes next before it is done.
  struct alignas(64) Segment {
    std::atomic<std::ptrdiff_t> next = 0;
    std::ptrdiff_t end = 0;
  };
  static constexpr int max_segments = 64;

  int num_segments() const { return (std::min)(loop_.num_workers, max_segments); }

  void share_items() {
    const int count = num_segments();
    for (int i = 0; i < count; ++i) {
      segments_[i].next.store(loop_.num_items * i / count);
      segments_[i].end = loop_.num_items * (i + 1) / count;
    }
  }

  void work(int worker) {
    const int count = num_segments();
    for (int i = 0; i < count; ++i) {
      Segment& segment = segments_[(worker + i) % count];
      for (std::ptrdiff_t item = segment.next++; item < segment.end && !first_->caught();
           item = segment.next++) {
        try {
          loop_.call(loop_.body, item, worker);
        } catch (...) {
          first_->capture();
        }
      }
    }
  }

  int size_;
  Loop loop_ = {};
  FirstException* first_ = nullptr;
  Segment segments_[max_segments];
  std::atomic<unsigned> phase_ = 0;  // odd: a loop is open
  std::atomic<int> inside_ = 0;      // followers that may be in the loop
  std::atomic<bool> over_ = false;
};

/// The team whose leader this thread is, between its loops.
inline thread_local Team* current_team = nullptr;

inline void Team::run(const Loop& loop) {
  FirstException first;
  loop_ = loop;
  first_ = &first;
  share_items();
  current_team = nullptr;  // an item that is parallel by itself has this thread only
  phase_.fetch_add(1);
  work(0);
  phase_.fetch_add(1);
  while (inside_.load() != 0) {
    give_way();
  }
  current_team = this;
  first.rethrow();
}

inline void Team::follow(int worker) {
  constexpr int patience = 2000;  // looks before giving the core to others
  unsigned seen = 0;
  for (int looks = 0; !over_.load(); ++looks) {
    const unsigned phase = phase_.load();
    if (phase % 2 == 1 && phase != seen) {
      seen = phase;
      looks = 0;
      // Having come in, look again: the leader closes a loop first and then waits for all inside.
      inside_.fetch_add(1);
      if (phase_.load() == phase && worker < loop_.num_workers) {
        work(worker);
      }
      inside_.fetch_sub(1);
    } else if (looks > patience) {
      give_way();
    }
  }
}

/// Threads a call may use: as many as requested, or for 0 OpenMP's default, within the quota of the
/// process's container, which is read once. One without OpenMP, and one inside the caller's own
/// parallel region, which already has its threads. Throws std::invalid_argument for less than 0.
inline int num_threads(int requested) {
  throw_unless(requested >= 0, "CallOptions: num_threads = ", requested, ", expected at least 0");
#ifdef _OPENMP
  if (current_team != nullptr) {
    return current_team->size();
  }
  if (omp_in_parallel()) {
    return 1;
  }
  if (requested > 0) {
    return requested;
  }
  static const int quota = read_cpu_quota();
  static const char* const said = std::getenv("OMP_NUM_THREADS");
  return default_threads(omp_get_max_threads(), quota, said);
#else
  return 1;
#endif
}

/// Multiply-adds that are worth a second thread, about 10 us of work. A thread that comes for less
/// takes longer to wake than to do its share, and where other programs have its core, the call
/// waits a whole time slice for it.
inline constexpr double least_work = 1 << 18;

/// Threads of a call of so many multiply-adds: one if they are few, also if more are requested. In
/// a team, whose threads are awake, those of the team.
inline int num_threads(int requested, double multiply_adds) {
  const int threads = num_threads(requested);
  return multiply_adds < least_work && current_team == nullptr ? 1 : threads;
}

/// What a part, a router or experts, states of itself for so many rows. One that states nothing
/// may be of any size.
template <class P>
double multiply_adds(const P& part, std::ptrdiff_t rows) {
  if constexpr (requires { part.multiply_adds(rows); }) {
    return part.multiply_adds(rows);
  } else {
    return std::numeric_limits<double>::infinity();
  }
}

/// A function to call without knowing its type: whoever takes it is compiled once, and so is f.
struct Function {
  void (*call)(void* f);
  void* f;
};

/// By the leader, who has no team yet: runs the function and keeps its exception.
inline void lead(Team& team, const Function& function, FirstException& first) {
  current_team = &team;
  try {
    function.call(function.f);
  } catch (...) {
    first.capture();
  }
  current_team = nullptr;
  team.end();
}

inline void run_with_team([[maybe_unused]] int threads, const Function& function) {
#ifdef _OPENMP
  if (current_team == nullptr) {
    Team team(threads);  // also of one: calls within this one then have one thread, too
    FirstException first;
    if (threads <= 1) {
      lead(team, function, first);
    } else {
#pragma omp parallel num_threads(threads)
      if (const int worker = omp_get_thread_num(); worker == 0) {
        lead(team, function, first);
      } else {
        team.follow(worker);
      }
    }
    return first.rethrow();
  }
#endif
  function.call(function.f);
}

/// Runs f, a call with many loops, in one parallel region: its loops share the threads. f itself
/// runs on one of them, and what it throws comes out of here. Inside a team it just runs f.
template <class F>
void with_team(int threads, F&& f) {
  using Callable = std::remove_reference_t<F>;
  run_with_team(threads, {[](void* callable) { (*static_cast<Callable*>(callable))(); }, &f});
}

inline void run_loop(const Loop& loop) {
#ifdef _OPENMP
  if (loop.num_items > 1 && loop.num_workers > 1) {
    return with_team(loop.num_workers, [&] { current_team->run(loop); });
  }
#endif
  for (std::ptrdiff_t item = 0; item < loop.num_items; ++item) {
    loop.call(loop.body, item, 0);
  }
}

/// Calls body(item, worker) once for each item in [0, num_items), worker in [0, threads). Items
/// are handed out as workers become free. An exception of an item is thrown again here, and the
/// items that had not begun are left out.
template <class Body>
void parallel_for(std::ptrdiff_t num_items, int threads, const Body& body) {
  const auto call = [](const void* b, std::ptrdiff_t item, int worker) {
    (*static_cast<const Body*>(b))(item, worker);
  };
  run_loop({call, &body, num_items, threads});
}

/// Calls body(begin, size) for blocks of [0, count), each `block` long but for the last.
template <class Body>
void for_blocks(std::ptrdiff_t count, std::ptrdiff_t block, int threads, Body&& body) {
  parallel_for((count + block - 1) / block, threads, [&](std::ptrdiff_t item, int) {
    const std::ptrdiff_t begin = item * block;
    body(begin, (std::min)(block, count - begin));
  });
}

/// Calls body(row) for each row in [0, num_rows), in blocks of rows that are worth a hand-over.
template <class Body>
void for_rows(std::ptrdiff_t num_rows, int threads, Body&& body) {
  for_blocks(num_rows, 32, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t size) {
    for (std::ptrdiff_t row = begin; row < begin + size; ++row) {
      body(row);
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
