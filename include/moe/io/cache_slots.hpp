// SPDX-License-Identifier: Apache-2.0
// CacheSlots: which expert is in which slot of a cache, which is to be read next, and who goes for
// it. Numbers only: it has no memory of experts, no threads, and expects one caller at a time.
//
// Who goes is decided when a call begins, so that it does not depend on which read is done first:
// it is plain LRU (least recently used) over a sequence in which the experts of a call follow those
// of the call before, and of one call first come those that are in memory, then those that are not,
// each in the order in which the call names them. An expert that takes the slot of another of the
// same call is read when that is computed, and so on: these are the waves of a call that wants more
// than fit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "../experts/expert_store.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

class CacheSlots {
 public:
  CacheSlots(Index num_experts, Index num_slots)
      : slots_(static_cast<std::size_t>(num_slots)),
        slot_of_(static_cast<std::size_t>(num_experts), -1),
        next_(static_cast<std::size_t>(num_experts), none) {
    queue_.reserve(slots_.size());
    ready_.reserve(slot_of_.size());
  }

  Index num_experts() const { return std::ssize(slot_of_); }
  Index num_slots() const { return std::ssize(slots_); }
  /// Of hits, misses and prefetched experts.
  const StoreCounts& counts() const { return counts_; }

  /// A call that wants each of them once.
  void begin(std::span<const ExpertId> wanted);
  bool any_ready() const { return !ready_.empty(); }
  /// ready = the call's experts that are there, and were not taken before.
  void take_ready(std::vector<ExpertArrival>& ready) {
    ready.assign(ready_.begin(), ready_.end());
    ready_.clear();
  }
  void release(std::span<const ExpertArrival> computed);
  /// Of a call that has not had all: reads that have begun are kept when they are done.
  void end();

  /// Takes no slot from an expert that is being read, nor from one of its own.
  void prefetch(std::span<const ExpertId> experts);
  /// The expert in it is never given up.
  void pin(Index slot) { at(slot).pinned = true; }

  bool any_to_read() const { return !queue_.empty(); }
  /// The expert to be read next and its slot: first what the call waits for.
  ExpertArrival begin_read();
  /// Whether the call waited for what was read into the slot, or could not be.
  bool end_read(Index slot, bool failed);

 private:
  enum class State { empty, queued, reading, there };
  struct Slot {
    ExpertId expert = none;
    State state = State::empty;
    bool pinned = false;
    bool wanted = false;     // by the call, which has not computed it
    std::uint64_t used = 0;  // when `last` was wanted
    ExpertId last = none;    // of those that follow each other in it during a call
  };

  Slot& at(Index slot) { return slots_[static_cast<std::size_t>(slot)]; }
  Index& slot_of(ExpertId expert) { return slot_of_[static_cast<std::size_t>(expert)]; }
  ExpertId& next_of(ExpertId expert) { return next_[static_cast<std::size_t>(expert)]; }

  Index oldest() const;
  void claim(ExpertId expert);
  void miss(ExpertId expert);
  void put(Index slot, ExpertId expert);
  void forget(Slot& slot);
  void advance(Index slot);

  std::vector<Slot> slots_;
  std::vector<Index> slot_of_;        // (E), -1: not in memory, and not on its way
  std::vector<ExpertId> next_;        // (E) who takes its slot when the call has computed it
  std::vector<Index> queue_;          // slots to be read
  std::vector<ExpertArrival> ready_;  // there, wanted, and not taken
  std::size_t left_ = 0;
  std::uint64_t clock_ = 0;
  StoreCounts counts_;
};

inline void CacheSlots::begin(std::span<const ExpertId> wanted) {
  left_ = wanted.size();
  for (const ExpertId expert : wanted) {
    if (slot_of(expert) >= 0) {
      claim(expert);
    }
  }
  for (const ExpertId expert : wanted) {
    if (slot_of(expert) < 0) {
      miss(expert);
    }
  }
}

inline void CacheSlots::release(std::span<const ExpertArrival> computed) {
  left_ -= computed.size();
  for (const ExpertArrival& arrival : computed) {
    at(arrival.slot).wanted = false;
    advance(arrival.slot);
  }
}

inline void CacheSlots::end() {
  if (left_ == 0) {
    return;
  }
  for (const Index slot : queue_) {
    forget(at(slot));
  }
  for (Slot& slot : slots_) {
    slot.wanted = false;
    slot.last = slot.expert;
  }
  std::fill(next_.begin(), next_.end(), none);
  queue_.clear();
  ready_.clear();
  left_ = 0;
}

inline void CacheSlots::prefetch(std::span<const ExpertId> experts) {
  const std::uint64_t before = clock_;
  for (const ExpertId expert : experts) {
    if (expert != none && slot_of(expert) >= 0) {
      at(slot_of(expert)).used = ++clock_;
    }
  }
  for (const ExpertId expert : experts) {
    if (expert == none || slot_of(expert) >= 0) {
      continue;
    }
    const Index slot = oldest();
    if (slot < 0 || at(slot).used > before || at(slot).state == State::reading) {
      return;
    }
    at(slot).used = ++clock_;
    put(slot, expert);
    ++counts_.prefetched;
  }
}

inline ExpertArrival CacheSlots::begin_read() {
  const auto wanted =
      std::find_if(queue_.begin(), queue_.end(), [&](Index number) { return at(number).wanted; });
  const auto next = wanted != queue_.end() ? wanted : queue_.begin();
  const Index number = *next;
  queue_.erase(next);
  at(number).state = State::reading;
  return {at(number).expert, number};
}

inline bool CacheSlots::end_read(Index number, bool failed) {
  Slot& slot = at(number);
  const bool wanted = slot.wanted;
  slot.state = State::there;
  if (wanted && !failed) {
    ready_.push_back({slot.expert, number});
  } else if (!wanted && next_of(slot.expert) != none) {
    advance(number);
  } else if (failed) {
    forget(slot);
  }
  return wanted;
}

/// The slot to be given up next, -1 if all are pinned.
inline Index CacheSlots::oldest() const {
  Index oldest = -1;
  std::uint64_t least = 0;
  for (std::size_t number = 0; number < slots_.size(); ++number) {
    const Slot& slot = slots_[number];
    if (!slot.pinned && (oldest < 0 || slot.used < least)) {
      oldest = static_cast<Index>(number);
      least = slot.used;
    }
  }
  return oldest;
}

/// For the call, which finds it there or on its way.
inline void CacheSlots::claim(ExpertId expert) {
  Slot& slot = at(slot_of(expert));
  slot.wanted = true;
  slot.used = ++clock_;
  slot.last = expert;
  ++counts_.hits;
  if (slot.state == State::there) {
    ready_.push_back({expert, slot_of(expert)});
  }
}

inline void CacheSlots::miss(ExpertId expert) {
  const Index number = oldest();
  Slot& slot = at(number);
  ++counts_.misses;
  slot.used = ++clock_;
  if (slot.wanted || slot.state == State::reading) {
    next_of(slot.last) = expert;
  } else {
    put(number, expert);
    slot.wanted = true;
  }
  slot.last = expert;
}

/// Into a slot that nobody needs.
inline void CacheSlots::put(Index number, ExpertId expert) {
  Slot& slot = at(number);
  if (slot.expert != none) {
    slot_of(slot.expert) = -1;
  }
  if (slot.state != State::queued) {
    queue_.push_back(number);
  }
  slot.expert = slot.last = expert;
  slot.state = State::queued;
  slot_of(expert) = number;
}

/// Of an expert that has not come.
inline void CacheSlots::forget(Slot& slot) {
  slot_of(slot.expert) = -1;
  slot.expert = slot.last = none;
  slot.state = State::empty;
  slot.used = 0;
}

/// The slot's next expert of the call, if there is one.
inline void CacheSlots::advance(Index number) {
  Slot& slot = at(number);
  const ExpertId last = slot.last, next = std::exchange(next_of(slot.expert), none);
  if (next != none) {
    put(number, next);
    slot.wanted = true;
    slot.last = last;
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
