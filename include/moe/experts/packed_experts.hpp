// SPDX-License-Identifier: Apache-2.0
// PackedExperts<S>: feed-forwards as a set for inference, weights packed in storage S and all of
// them in memory.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "dense.hpp"
#include "ffn_experts.hpp"
#include "packed_call.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Storage S>
class PackedExperts {
 public:
  using W = Wide<S>;
  static constexpr bool weighs_hidden = true;

  /// Memory of a call. It only grows.
  using Scratch = PackedCall<S>;

  /// Packs every expert, in parallel. Throws std::invalid_argument unless their parameters have
  /// their shapes.
  template <Real T>
  explicit PackedExperts(const FfnExperts<T>& experts);
  /// Takes packed ones. Throws std::invalid_argument if there is none, or if they differ in d_in or
  /// d_out.
  explicit PackedExperts(std::vector<PackedExpert<S>> experts);

  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  const PackedExpert<S>& operator[](std::size_t expert) const { return experts_[expert]; }
  /// 0 of a set that was moved from.
  Index d_in() const { return experts_.empty() ? 0 : experts_.front().up.width(); }
  Index d_out() const { return experts_.empty() ? 0 : experts_.front().down.num_outputs(); }
  const PackedExpert<S>& expert(Index e) const { return experts_[static_cast<std::size_t>(e)]; }
  /// Those of a forward, if all rows go to the largest expert.
  double multiply_adds(Index rows) const {
    double most = 0.0;
    for (const PackedExpert<S>& expert : experts_) {
      most = (std::max)(most, expert.multiply_adds(rows));
    }
    return most;
  }
  /// Memory of the packed weights.
  std::size_t bytes() const;
  /// The experts again, with their weights as they are stored: rounded if S is narrower.
  std::vector<Expert<W>> unpack() const;

  /// rows (S, d_out) =, bit for bit those of FfnExperts<S> for float and double; bf16 rounds
  /// weights, x and hidden rows to bfloat16 once each, fp8 x and hidden rows where the machine
  /// multiplies bfloat16, and storages in integers x and hidden rows to 8 bits in blocks of 32; an
  /// output gate reads x so rounded. Throws as check_set_call says.
  void forward(const ExpertInput<W>& input, MatrixRef<W> rows, Scratch& scratch, int threads) const;

 private:
  std::vector<PackedExpert<S>> experts_;
};

/// One packed expert that every token takes.
template <Storage S>
using PackedFfn = Dense<Wide<S>, PackedExperts<S>>;

template <Storage S>
template <Real T>
PackedExperts<S>::PackedExperts(const FfnExperts<T>& experts) {
  experts.check_params({"experts"});
  std::vector<std::optional<PackedExpert<S>>> packed(experts.size());
  detail::parallel_for(experts.num_experts(), detail::num_threads(0), [&](Index e, int) {
    packed[static_cast<std::size_t>(e)].emplace(experts[static_cast<std::size_t>(e)]);
  });
  experts_.reserve(packed.size());
  for (auto& expert : packed) {
    experts_.push_back(std::move(*expert));
  }
}

template <Storage S>
PackedExperts<S>::PackedExperts(std::vector<PackedExpert<S>> experts)
    : experts_(std::move(experts)) {
  detail::throw_unless(!experts_.empty(), "experts: there are none, expected at least 1");
  for (const PackedExpert<S>& expert : experts_) {
    detail::throw_unless(expert.up.width() == d_in() && expert.down.num_outputs() == d_out(),
                         "experts: one is ", expert.up.width(), " to ", expert.down.num_outputs(),
                         " wide, expected ", d_in(), " to ", d_out());
  }
}

template <Storage S>
std::size_t PackedExperts<S>::bytes() const {
  std::size_t sum = 0;
  for (const PackedExpert<S>& expert : experts_) {
    sum += expert.up.bytes() + expert.down.bytes();
  }
  return sum;
}

template <Storage S>
auto PackedExperts<S>::unpack() const -> std::vector<Expert<W>> {
  std::vector<Expert<W>> experts;
  experts.reserve(experts_.size());
  for (const PackedExpert<S>& expert : experts_) {
    experts.push_back(expert.unpack());
  }
  return experts;
}

template <Storage S>
void PackedExperts<S>::forward(const ExpertInput<W>& input, MatrixRef<W> rows, Scratch& scratch,
                               int threads) const {
  check_set_call(*this, input, rows);
  Index widest = 0;
  for (const PackedExpert<S>& expert : experts_) {
    widest = (std::max)(widest, expert.hidden_size());
  }
  scratch.begin(input, experts_.front().up, widest, threads);
  for (const GroupPart& part : scratch.parts()) {
    scratch.add(part, experts_[static_cast<std::size_t>(part.expert)], input, rows);
  }
  scratch.compute(threads);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
