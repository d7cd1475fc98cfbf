// SPDX-License-Identifier: Apache-2.0
// The slots of a Soft MoE as rows, between the order of sequences, in which they are mixed, and
// that of experts, which compute them; and the products that mix.
#pragma once

#include <concepts>
#include <vector>

#include "../detail/part.hpp"
#include "../growing_matrix.hpp"
#include "../kernels/gemm.hpp"
#include "../row_groups.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// B sequences have E experts' p slots each. Slot i of expert e in sequence b is number (b E + e) p
/// + i, and row (e B + b) p + i.
class SlotOrder {
 public:
  void set(Index num_sequences, Index num_experts, Index per_expert) {
    num_sequences_ = num_sequences;
    num_experts_ = num_experts;
    per_expert_ = per_expert;
    offset_.clear();
    for (Index e = 0; e <= num_experts; ++e) {
      offset_.push_back(e * num_sequences * per_expert);
    }
    slot_.clear();
    for (Index row = 0; !in_order() && row < num_rows(); ++row) {
      slot_.push_back(swapped(row, num_sequences_, num_experts_));
    }
  }

  Index num_rows() const { return num_sequences_ * per_sequence(); }
  Index per_sequence() const { return num_experts_ * per_expert_; }
  /// Whether the two orders are one.
  bool in_order() const { return num_sequences_ <= 1 || num_experts_ == 1; }
  Index row_of(Index slot) const { return swapped(slot, num_experts_, num_sequences_); }
  Index slot_of(Index row) const { return in_order() ? row : slot_[static_cast<std::size_t>(row)]; }
  /// Each expert's slots. It refers to this object.
  RowGroups groups() const { return {offset_, slot_}; }

 private:
  /// (a * inner + b) p + i becomes (b * outer + a) p + i.
  Index swapped(Index number, Index inner, Index outer) const {
    const Index place = number / per_expert_;
    return (place % inner * outer + place / inner) * per_expert_ + number % per_expert_;
  }

  Index num_sequences_ = 0, num_experts_ = 1, per_expert_ = 1;
  std::vector<Index> offset_, slot_;
};

namespace detail {

/// One sequence's part of matrices that have a row or a column for each token, or a row for each
/// slot in order of sequences.
struct SlotBlock {
  Index token, num_tokens, slot, num_slots;

  template <class M>
  auto tokens(M& m) const {
    return m.middleRows(token, num_tokens);
  }
  template <class M>
  auto token_columns(M& m) const {
    return m.middleCols(token, num_tokens);
  }
  template <class M>
  auto slots(M& m) const {
    return m.middleRows(slot, num_slots);
  }
};

/// Rows from_row(i) of `from`, as To: `from` itself where they are in order and it holds To, else
/// in `memory`.
template <Real To, Real From, class FromRow>
ConstMatrixRef<To> rows_as(const ConstMatrixRef<From>& from, bool in_order,
                           GrowingMatrix<To>& memory, int threads, FromRow&& from_row) {
  if constexpr (std::same_as<To, From>) {
    if (in_order) {
      return from;
    }
  }
  memory.resize(from.rows(), from.cols());
  for_rows(from.rows(), threads,
           [&](Index row) { memory.row(row) = from.row(from_row(row)).template cast<To>(); });
  return memory;
}
template <Real To, Real From>
ConstMatrixRef<To> rows_as(const ConstMatrixRef<From>& from, GrowingMatrix<To>& memory,
                           int threads) {
  return rows_as<To, From>(from, true, memory, threads, [](Index row) { return row; });
}

/// c = or += a b
template <class W>
struct Product {
  kernels::View<W> a, b;
  MatrixRef<W> c;
};

/// Computes product_of(i) for each i, threads sharing the columns.
template <class W, class ProductOf>
void multiply_each(Index count, kernels::Update update, int threads,
                   std::vector<kernels::GemmMemory<W>>& packing, ProductOf&& product_of) {
  grow(packing, threads);
  for (kernels::GemmMemory<W>& memory : packing) {
    memory.reserve();
  }
  for_parts(count, threads, [&](Index number, Part part, int worker) {
    const Product<W> product = product_of(number);
    const Index step = kernels::columns_at_once<W>(product.c.rows());
    const Index begin = part.begin(product.c.cols(), step);
    const Index cols = part.end(product.c.cols(), step) - begin;
    if (cols > 0) {
      MatrixRef<W> c = product.c;
      kernels::gemm<W>(product.a, product.b.block(0, begin, product.b.rows, cols),
                       c.middleCols(begin, cols), update,
                       packing[static_cast<std::size_t>(worker)]);
    }
  });
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
