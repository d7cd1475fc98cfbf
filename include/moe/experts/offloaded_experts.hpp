// SPDX-License-Identifier: Apache-2.0
// OffloadedExperts<S>: packed experts as a set for inference that need not all be in memory. A
// store has them brought there as soon as the groups are known; they are computed in the order in
// which they arrive. Rows are separate, so that the bits are those of PackedExperts<S>.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "expert_extent.hpp"
#include "expert_store.hpp"
#include "packed_call.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Two threads that call one set take turns.
template <Storage S>
class OffloadedExperts {
  static_assert(in_file_storage<S>());

 public:
  using W = Wide<S>;
  static constexpr bool weighs_hidden = true;

  /// Memory of a call. It only grows.
  struct Scratch {
    PackedCall<S> call;
    std::vector<ExpertId> wanted;
    std::vector<ExpertArrival> arrived;
  };

  /// Takes a store of experts that lie in it as the extent says.
  OffloadedExperts(const ExpertExtent<S>& extent, std::unique_ptr<ExpertStore> store)
      : extent_(extent), store_(std::move(store)) {
    slots_.reserve(static_cast<std::size_t>(store_->num_slots()));
    for (Index number = 0; number < store_->num_slots(); ++number) {
      slots_.push_back(extent_.view(store_->slot(number)));
    }
  }

  Index num_experts() const { return store_->num_experts(); }
  Index d_in() const { return extent_.d_in(); }
  Index d_out() const { return extent_.d_out(); }
  double multiply_adds(Index rows) const { return slots_.front().multiply_adds(rows); }
  /// Of its experts, each as large as any other.
  const ExpertExtent<S>& extent() const { return extent_; }
  /// Memory of the slots.
  std::size_t bytes() const { return slots_.size() * extent_.bytes(); }
  StoreCounts counts() const { return store_->counts(); }

  /// A hint that a later call may need these experts, for instance those that a guess of its tokens
  /// was routed to; `none` is nobody. It returns at once. Throws std::invalid_argument for an
  /// expert that there is not.
  void prefetch(std::span<const ExpertId> experts) const;

  /// rows (S, d_out) =, bit for bit those of PackedExperts<S>. Throws as check_set_call says, and
  /// what the store throws where an expert cannot be read: the set may be called again then.
  void forward(const ExpertInput<W>& input, MatrixRef<W> rows, Scratch& scratch, int threads) const;

 private:
  /// The store's call, which ends with this object.
  class Call {
   public:
    Call(ExpertStore& store, std::span<const ExpertId> wanted) : store_(store) {
      store_.begin(wanted);
    }
    ~Call() { store_.end(); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    ExpertStore& store_;
  };

  void list_wanted(const RowGroups& groups, Scratch& scratch) const {
    const auto most = static_cast<std::size_t>(num_experts());
    scratch.wanted.clear();
    scratch.wanted.reserve(most);
    scratch.arrived.reserve(most);
    for (Index e = 0; e < num_experts(); ++e) {
      if (groups.end(e) > groups.begin(e)) {
        scratch.wanted.push_back(static_cast<ExpertId>(e));
      }
    }
  }

  ExpertExtent<S> extent_;
  std::unique_ptr<ExpertStore> store_;
  mutable std::vector<PackedExpert<S>> slots_;  // views; the vectors are those of the call
};

template <Storage S>
void OffloadedExperts<S>::prefetch(std::span<const ExpertId> experts) const {
  for (const ExpertId expert : experts) {
    detail::throw_unless(expert >= none && expert < num_experts(), "prefetch: expert ", expert,
                         ", expected in [-1, num_experts = ", num_experts(), ")");
  }
  store_->prefetch(experts);
}

template <Storage S>
void OffloadedExperts<S>::forward(const ExpertInput<W>& input, MatrixRef<W> rows, Scratch& scratch,
                                  int threads) const {
  check_set_call(*this, input, rows);
  list_wanted(input.groups, scratch);
  const Call call(*store_, scratch.wanted);
  const PackedExpert<S>& any = slots_.front();
  scratch.call.begin(input, any.up, any.hidden_size(), threads);
  for (std::size_t computed = 0; computed < scratch.wanted.size();
       computed += scratch.arrived.size()) {
    store_->wait(scratch.arrived);
    for (const ExpertArrival& arrival : scratch.arrived) {
      PackedExpert<S>& expert = slots_[static_cast<std::size_t>(arrival.slot)];
      extent_.read_vectors(store_->slot(arrival.slot), expert);
      for (const GroupPart& part : scratch.call.parts_of(arrival.expert)) {
        scratch.call.add(part, expert, input, rows);
      }
    }
    scratch.call.compute(threads);
    store_->release(scratch.arrived);
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
