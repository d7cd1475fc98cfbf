// SPDX-License-Identifier: Apache-2.0
// ExpertCache: a store that has some experts in memory and reads the others when they are wanted,
// each in place of the one that was not wanted for longest, as CacheSlots has it. Reads are made by
// a few threads of its own.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "../detail/check.hpp"
#include "byte_source.hpp"
#include "cache_slots.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

struct CacheOptions {
  Index slots = 1;                    ///< experts in memory at once, also the pinned ones
  std::vector<ExpertId> pinned = {};  ///< read when it is made, each a miss, and never given up
  int threads = 2;                    ///< that read, beside those that compute

  /// Throws std::invalid_argument unless the pinned experts exist, each is there once, and one slot
  /// at least remains for the others, if there are others.
  void validate(Index num_experts) const {
    const Index num_pinned = std::ssize(pinned);
    moe::detail::throw_unless(threads >= 1, "CacheOptions: threads = ", threads,
                              ", expected at least 1");
    const Index least = num_pinned < num_experts ? num_pinned + 1 : num_pinned;
    moe::detail::throw_unless(slots >= least, "CacheOptions: slots = ", slots,
                              ", expected at least ", least, " with ", num_pinned, " pinned of ",
                              num_experts, " experts");
    std::vector<bool> seen(static_cast<std::size_t>(num_experts));
    for (const ExpertId expert : pinned) {
      moe::detail::throw_unless(expert >= 0 && expert < num_experts, "CacheOptions: pinned has ",
                                expert, ", expected in [0, num_experts = ", num_experts, ")");
      moe::detail::throw_unless(!seen[static_cast<std::size_t>(expert)],
                                "CacheOptions: pinned has ", expert, " twice, expected once");
      seen[static_cast<std::size_t>(expert)] = true;
    }
  }
};

/// Reads an expert into memory of the cache, which begins at a page. Called by several threads at
/// once. What it throws comes out of the call that wanted the expert.
using ReadExpert = std::function<void(ExpertId, std::span<std::byte>)>;

/// Starts threads of its own, which end with it; it does not survive a fork().
class ExpertCache final : public ExpertStore {
 public:
  /// Of experts of so many bytes each, whole pages. Throws std::invalid_argument as the options
  /// say, and what reading a pinned expert throws.
  ExpertCache(Index num_experts, std::size_t bytes, ReadExpert read, const CacheOptions& options);

  Index num_experts() const override { return slots_.num_experts(); }
  Index num_slots() const override { return slots_.num_slots(); }
  const std::byte* slot(Index number) const override { return memory(number).data(); }

  void begin(std::span<const ExpertId> wanted) override;
  void wait(std::vector<ExpertArrival>& arrived) override;
  void release(std::span<const ExpertArrival> computed) override;
  void end() noexcept override;
  void prefetch(std::span<const ExpertId> experts) override;
  StoreCounts counts() const override;

 private:
  using Lock = std::unique_lock<std::mutex>;
  /// The last member: they end before what they use.
  struct Readers {
    ExpertCache& cache;
    std::vector<std::thread> threads = {};
    ~Readers() {
      cache.stop();
      for (std::thread& thread : threads) {
        thread.join();
      }
    }
  };

  std::span<std::byte> memory(Index slot) const {
    return {pages_.get() + static_cast<std::size_t>(slot) * bytes_, bytes_};
  }
  void read_pinned(const std::vector<ExpertId>& pinned);
  void read_all();
  void stop() {
    const Lock lock(mutex_);
    stopped_ = true;
    work_.notify_all();
  }

  const std::size_t bytes_;
  const ReadExpert read_;
  detail::Pages pages_;

  std::mutex calls_;          // a call's thread has it from begin() to end()
  mutable std::mutex mutex_;  // of all that follows
  std::condition_variable work_, arrived_;
  detail::CacheSlots slots_;
  std::exception_ptr fault_;  // of the call
  StoreCounts counts_;        // of bytes and waits
  bool stopped_ = false;
  Readers readers_{*this};
};

inline ExpertCache::ExpertCache(Index num_experts, std::size_t bytes, ReadExpert read,
                                const CacheOptions& options)
    : bytes_(bytes), read_(std::move(read)), slots_(0, 0) {
  options.validate(num_experts);
  slots_ = detail::CacheSlots(num_experts, (std::min)(options.slots, num_experts));
  pages_ = detail::make_pages(static_cast<std::size_t>(num_slots()) * bytes);
  for (int i = 0; i < options.threads; ++i) {
    readers_.threads.emplace_back([this] { read_all(); });
  }
  read_pinned(options.pinned);
}

inline void ExpertCache::read_pinned(const std::vector<ExpertId>& pinned) {
  begin(pinned);
  try {
    std::vector<ExpertArrival> arrived;
    for (std::size_t there = 0; there < pinned.size(); there += arrived.size()) {
      wait(arrived);
      release(arrived);
      const Lock lock(mutex_);
      for (const ExpertArrival& arrival : arrived) {
        slots_.pin(arrival.slot);
      }
    }
  } catch (...) {
    end();
    throw;
  }
  end();
}

inline void ExpertCache::begin(std::span<const ExpertId> wanted) {
  calls_.lock();
  const Lock lock(mutex_);
  slots_.begin(wanted);
  work_.notify_all();
}

inline void ExpertCache::wait(std::vector<ExpertArrival>& arrived) {
  using Clock = std::chrono::steady_clock;
  Lock lock(mutex_);
  const auto over = [&] { return slots_.any_ready() || fault_ != nullptr; };
  if (!over()) {
    const Clock::time_point before = Clock::now();
    arrived_.wait(lock, over);
    ++counts_.waits;
    counts_.seconds_waited += std::chrono::duration<double>(Clock::now() - before).count();
  }
  if (fault_ != nullptr) {
    std::rethrow_exception(fault_);
  }
  slots_.take_ready(arrived);
}

inline void ExpertCache::release(std::span<const ExpertArrival> computed) {
  const Lock lock(mutex_);
  slots_.release(computed);
  work_.notify_all();
}

inline void ExpertCache::end() noexcept {
  {
    const Lock lock(mutex_);
    slots_.end();
    fault_ = nullptr;
  }
  calls_.unlock();
}

inline void ExpertCache::prefetch(std::span<const ExpertId> experts) {
  const Lock call(calls_, std::try_to_lock);
  if (call.owns_lock()) {
    const Lock lock(mutex_);
    slots_.prefetch(experts);
    work_.notify_all();
  }
}

inline StoreCounts ExpertCache::counts() const {
  const Lock lock(mutex_);
  StoreCounts counts = counts_;
  counts.hits = slots_.counts().hits;
  counts.misses = slots_.counts().misses;
  counts.prefetched = slots_.counts().prefetched;
  return counts;
}

/// By each of the threads.
inline void ExpertCache::read_all() {
  Lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stopped_ || slots_.any_to_read(); });
    if (stopped_) {
      return;
    }
    const ExpertArrival next = slots_.begin_read();
    std::exception_ptr fault;
    lock.unlock();
    try {
      read_(next.expert, memory(next.slot));
    } catch (...) {
      fault = std::current_exception();
    }
    lock.lock();
    counts_.bytes += fault == nullptr ? bytes_ : 0;
    if (slots_.end_read(next.slot, fault != nullptr) && fault_ == nullptr) {
      fault_ = std::move(fault);
    }
    arrived_.notify_all();
    work_.notify_all();
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
