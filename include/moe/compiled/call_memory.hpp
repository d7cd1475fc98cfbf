// SPDX-License-Identifier: Apache-2.0
// The user's side of a call of moe::compiled: what goes across, and the scratch or tape that it
// leaves behind.
#pragma once

#include <memory>
#include <type_traits>

#include "../routing_table.hpp"
#include "boundary.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::compiled {

/// The scalars that the library has layers of.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bf16>;

template <class T>
boundary::View<const T> view_of(const ConstMatrixRef<T>& rows) {
  return {rows.data(), rows.rows(), rows.cols(), rows.outerStride()};
}
template <class T>
boundary::View<T> view_of(MatrixRef<T>& rows) {
  return {rows.data(), rows.rows(), rows.cols(), rows.outerStride()};
}

template <class Numbers>
boundary::Bytes bytes_of(const Numbers& numbers) {
  static_assert(std::is_trivially_copyable_v<Numbers>,
                "what the compiled library is told must be numbers and pointers");
  return {&numbers, sizeof(numbers)};
}

/// Base of a scratch or a tape: the memory of a call, and a copy of its routing table, for losses
/// and whoever else reads it. Reused: it only grows. Not for two threads at once.
template <class W>
class CallMemory {
 public:
  RoutingTable<W> routing;  ///< of the last forward

  /// call(memory) is a forward of the library, which makes the memory where there is none.
  template <class Call>
  void fill(Call&& call) {
    call(memory_);
    read(memory_->table());
  }
  boundary::CallMemory<W>* memory() const { return memory_.get(); }

 private:
  void read(const boundary::Table<W>& from) {
    const auto copy = []<class Number>(const boundary::View<const Number>& tensor,
                                       GrowingMatrix<Number>& to) {
      to = Eigen::Map<const Matrix<Number>>(tensor.data, tensor.rows, tensor.cols);
    };
    auto& [expert, weight, probs, logits, clean, noise_scale, state, padding, probs_sum] = routing;
    copy(from.expert, expert);
    copy(from.weight, weight);
    copy(from.probs, probs);
    copy(from.logits, logits);
    copy(from.clean_logits, clean);
    copy(from.noise_scale, noise_scale);
    copy(from.state, state);
    padding.assign(from.padding.begin(), from.padding.end());
    probs_sum = from.probs_sum_to_one;
  }

  std::unique_ptr<boundary::CallMemory<W>> memory_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::compiled
