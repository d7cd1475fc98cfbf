// SPDX-License-Identifier: Apache-2.0
// ExpertStore: where experts lie that are not all in memory, as bytes. It knows no weights. A set
// of experts asks it for those of a call, computes each when it is there, and says so.
//
//   begin(wanted) -> wait() -> arrivals -> release(arrivals) -> wait() ... -> end()
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// What the calls of a store met so far. An expert that is in memory, or on its way there, when a
/// call begins is a hit, any other that the call needs a miss.
struct StoreCounts {
  std::uint64_t hits = 0, misses = 0;
  std::uint64_t prefetched = 0;  ///< experts that a hint had read
  std::uint64_t bytes = 0;       ///< that were read
  std::uint64_t waits = 0;       ///< times that a call had nothing to compute
  double seconds_waited = 0.0;
};

/// An expert that is in memory, and in which slot.
struct ExpertArrival {
  ExpertId expert;
  Index slot;
};

/// A call is one thread's, from begin() to end(), and others wait in begin() meanwhile.
class ExpertStore {
 public:
  ExpertStore() = default;
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;
  virtual ~ExpertStore() = default;

  virtual Index num_experts() const = 0;
  virtual Index num_slots() const = 0;
  /// The memory of a slot, for one expert. It stays where it is, and belongs to the store.
  virtual const std::byte* slot(Index number) const = 0;

  /// Has all wanted experts, each of them once, on their way.
  virtual void begin(std::span<const ExpertId> wanted) = 0;
  /// arrived = experts of the call that are there and were not named before, one at least; waits
  /// for it. They stay until they are released. Throws what reading an expert of the call threw.
  virtual void wait(std::vector<ExpertArrival>& arrived) = 0;
  /// The call has computed them.
  virtual void release(std::span<const ExpertArrival> computed) = 0;
  /// Ends the call, also where it has not had all it wanted.
  virtual void end() noexcept = 0;

  /// A hint that a later call may want these; `none` is nobody. It waits for nothing, and does
  /// nothing while another thread is in a call.
  virtual void prefetch(std::span<const ExpertId> experts) = 0;
  virtual StoreCounts counts() const = 0;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
