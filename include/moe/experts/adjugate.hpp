// SPDX-License-Identifier: Apache-2.0
// AdjugateExperts<T, Set>: a set of experts, and smaller ones that groups of them share (Wu et al.
// 2025, Grove MoE). With G of the small ones, the expert e of E has that of its group:
//
//   y = expert_e(x) + scale * adjugate_g(x),    g = e / (E / G)
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ffn_experts.hpp"
#include "ffn_shape.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// FLOPs that the small experts add to so many rows: their own, and the sums of both outputs and,
/// backward, of both gradients.
inline Flops adjugate_flops(const FfnShape& adjugate, Index rows) {
  return adjugate.forward_flops(rows) + rows * detail::flops_of_one(0, 2 * adjugate.d_out);
}
inline Flops adjugate_backward_flops(const FfnShape& adjugate, Index rows) {
  return adjugate.backward_flops(rows) +
         rows * detail::flops_of_one(0, adjugate.d_out + adjugate.d_in);
}

/// Rows of a group's experts follow each other, so that a small expert sees those of all of them at
/// once. In 16 bits its output is rounded before it is added.
template <Real T, ExpertSet<T> Set = FfnExperts<T>>
class AdjugateExperts {
 public:
  using W = Wide<T>;

  template <class Memory>
  struct MemoryOf {
    Memory set, adjugates;
    std::vector<Index> offset;  ///< (G + 1) of the small experts' rows
    GrowingMatrix<T> rows;      ///< (S, D_out) their outputs, or in a backward their gradients
  };
  using Scratch = MemoryOf<typename Set::Scratch>;
  template <class S = Set>
  struct TapeOf : MemoryOf<typename S::Tape> {
    GrowingMatrix<T> dx_rows;  ///< (S, D_in)
  };
  using Tape = TapeOf<>;
  template <class S = Set>
  struct GradsWith {
    GradsOf<S> set, adjugates;
  };
  using Grads = GradsWith<>;

  /// Throws std::invalid_argument unless the two are of the same widths, the small ones have as
  /// many experts each, and the scale is finite.
  AdjugateExperts(Set set, Set adjugates, double scale)
      : set_(std::move(set)), adjugates_(std::move(adjugates)), scale_(scale) {
    check_params({"experts"});
  }

  Index num_experts() const { return set_.num_experts(); }
  Index d_in() const { return set_.d_in(); }
  Index d_out() const { return set_.d_out(); }
  double multiply_adds(Index rows) const {
    return detail::multiply_adds(set_, rows) + detail::multiply_adds(adjugates_, rows);
  }
  double scale() const { return scale_; }
  Set& set() { return set_; }
  const Set& set() const { return set_; }
  Set& adjugates() { return adjugates_; }
  const Set& adjugates() const { return adjugates_; }

  void check_params(const ParameterName& name) const {
    detail::throw_unless(
        adjugates_.num_experts() > 0 && set_.num_experts() % adjugates_.num_experts() == 0,
        "AdjugateExperts: there are ", adjugates_.num_experts(),
        " small experts, expected a divisor of num_experts = ", num_experts());
    detail::throw_unless(adjugates_.d_in() == d_in() && adjugates_.d_out() == d_out(),
                         "AdjugateExperts: the small experts are ", adjugates_.d_in(), " to ",
                         adjugates_.d_out(), " wide, expected ", d_in(), " to ", d_out());
    detail::throw_unless(std::isfinite(scale_), "AdjugateExperts: scale = ", scale_,
                         ", expected finite");
    moe::check_params(set_, name);
    moe::check_params(adjugates_, {.word = "adjugates", .part = name.part});
  }

  Grads zero_grads() const requires TrainableExpertSet<Set, T> {
    return {set_.zero_grads(), adjugates_.zero_grads()};
  }
  /// Names are those of the set, and adjugates.3.up, ... of the small ones beside it.
  template <class Self, class Visit, class... G>
  static void walk(Self& self, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(self.set_, name, visit, grads.set...);
    walk_params(self.adjugates_, {.word = "adjugates", .part = name.part}, visit,
                grads.adjugates...);
  }

  /// Memory is a Scratch or a Tape. Throws std::invalid_argument as check_set_call says.
  template <class Memory>
  void forward(const ExpertInput<T>& input, MatrixRef<T> rows, Memory& memory, int threads) const {
    check_set_call(*this, input, rows);
    set_.forward(input, rows, memory.set, threads);
    memory.rows.resize(rows.rows(), d_out());
    adjugates_.forward(of_groups(input, memory.offset), memory.rows, memory.adjugates, threads);
    const auto scale = static_cast<W>(scale_);
    detail::for_rows(rows.rows(), threads, [&](Index row) {
      kernels::add_rows<T>(memory.rows.row(row), &scale, &rows.coeffRef(row, 0));
    });
  }

  /// grads +=, dx_rows =. Throws std::invalid_argument as the backward of the set does.
  void backward(const ExpertInput<T>& input, ConstMatrixRef<T> drows, Tape& tape,
                MatrixRef<T> dx_rows, Grads& grads,
                int threads) const requires TrainableExpertSet<Set, T> {
    set_.backward(input, drows, tape.set, dx_rows, grads.set, threads);
    tape.rows.resize(drows.rows(), d_out());
    detail::for_rows(drows.rows(), threads, [&](Index row) {
      std::copy_n(&drows.coeffRef(row, 0), d_out(), &tape.rows.coeffRef(row, 0));
      kernels::scale_row(W(scale_), d_out(), &tape.rows.coeffRef(row, 0));
    });
    tape.dx_rows.resize(drows.rows(), d_in());
    adjugates_.backward(of_groups(input, tape.offset), tape.rows, tape.adjugates, tape.dx_rows,
                        grads.adjugates, threads);
    detail::for_rows(drows.rows(), threads, [&](Index row) {
      kernels::add_rows<T>(tape.dx_rows.row(row), nullptr, &dx_rows.coeffRef(row, 0));
    });
  }
  /// As that of the sets.
  void check_tape(const Tape& tape,
                  const ParameterName& name) const requires TrainableExpertSet<Set, T> {
    moe::check_tape(set_, tape.set, name);
    moe::check_tape(adjugates_, tape.adjugates, {.word = "adjugates", .part = name.part});
  }

 private:
  /// What the small experts get of it: the groups of each one's experts are one.
  ExpertInput<T> of_groups(const ExpertInput<T>& input, std::vector<Index>& offset) const {
    const Index groups = adjugates_.num_experts(), each = num_experts() / groups;
    offset.resize(static_cast<std::size_t>(groups) + 1);
    for (Index group = 0; group <= groups; ++group) {
      offset[static_cast<std::size_t>(group)] = input.groups.begin(group * each);
    }
    return {input.x, {offset, input.groups.token}, input.weight};
  }

  Set set_;
  Set adjugates_;
  double scale_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
