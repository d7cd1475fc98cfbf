// SPDX-License-Identifier: Apache-2.0
// Flops: what a part of a layer states that it computes, in its own file. cost.hpp adds up.
//
// The rule: each + - * / and each call of exp, erf, tanh, log or sqrt is one FLOP (a fused
// multiply-add is two); comparisons, signs, copies and conversions are none. By this rule the
// counts are exact, not estimates: a part instantiated with a counting scalar performs just these,
// without masks, padding and noise.
#pragma once

#include "types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// FLOPs of a step, split by what matters for speed. Exact below 2^53; beyond, where a whole
/// training run lies, to the rounding of a double.
struct Flops {
  double matmul = 0;  ///< in matrix products, 2 m n k each
  double other = 0;   ///< everything else

  double total() const { return matmul + other; }
  Flops& operator+=(const Flops& o) {
    matmul += o.matmul;
    other += o.other;
    return *this;
  }
  friend Flops operator+(Flops a, const Flops& b) { return a += b; }
  friend Flops operator*(Index n, const Flops& f) {
    return {static_cast<double>(n) * f.matmul, static_cast<double>(n) * f.other};
  }
};

/// A part that states those of so many rows.
template <class P>
concept StatesFlops = requires(const P& part, Index rows) {
  part.forward_flops(rows);
};
template <class P>
concept StatesBackwardFlops = requires(const P& part, Index rows) {
  part.backward_flops(rows);
};
/// A part whose count depends on what it chose: it states that of the call which wrote a table.
template <class P, class Table>
concept StatesFlopsOf = requires(const P& part, const Table& table) {
  part.forward_flops(table);
};
template <class P, class Table>
concept StatesBackwardFlopsOf = requires(const P& part, const Table& table) {
  part.backward_flops(table);
};

namespace detail {

/// FLOPs of one row or token, which an integer holds.
inline Flops flops_of_one(Index matmul, Index other) {
  return {static_cast<double>(matmul), static_cast<double>(other)};
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
