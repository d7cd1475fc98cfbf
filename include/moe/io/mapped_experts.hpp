// SPDX-License-Identifier: Apache-2.0
// MappedExperts: a store that lets the system's cache decide which experts are in memory. It asks
// for those of a call early, and counts nothing: what was in memory only the system knows.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "../experts/expert_store.hpp"
#include "byte_source.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Trusts its file: checksums are not looked at, what is overwritten changes the weights, and where
/// the disk fails or the file has become shorter the process gets a SIGBUS.
class MappedExperts final : public ExpertStore {
 public:
  /// Extents of so many bytes each, one behind the other.
  MappedExperts(detail::Bytes extents, std::size_t bytes)
      : extents_(std::move(extents)), bytes_(bytes) {}

  Index num_experts() const override { return static_cast<Index>(extents_.view.size() / bytes_); }
  Index num_slots() const override { return num_experts(); }
  const std::byte* slot(Index number) const override {
    return extents_.view.data() + static_cast<std::size_t>(number) * bytes_;
  }

  void begin(std::span<const ExpertId> wanted) override {
    calls_.lock();
    wanted_ = wanted;
    prefetch(wanted);
  }
  void wait(std::vector<ExpertArrival>& arrived) override {
    arrived.clear();
    for (const ExpertId expert : wanted_) {
      arrived.push_back({expert, Index{expert}});
    }
  }
  void release(std::span<const ExpertArrival>) override {}
  void end() noexcept override { calls_.unlock(); }
  void prefetch(std::span<const ExpertId> experts) override {
    for (const ExpertId expert : experts) {
      if (expert != none) {
        detail::will_need(slot(expert), bytes_);
      }
    }
  }
  StoreCounts counts() const override { return {}; }

 private:
  detail::Bytes extents_;
  std::size_t bytes_;
  std::mutex calls_;
  std::span<const ExpertId> wanted_;  // by the call
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
