// SPDX-License-Identifier: Apache-2.0
// EachExpert<T, E>: the user's own experts as a set. Each gets its rows side by side, in parts that
// the threads take as a whole; backward goes through the parts of one expert in their order, so
// that the gradients do not depend on the threads.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "expert_list.hpp"
#include "gather.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T, ExpertLike<T> E>
class EachExpert
    : public std::conditional_t<TrainableExpert<E, T>, TrainableExpertList<E>, ExpertList<E>> {
  using Base = std::conditional_t<TrainableExpert<E, T>, TrainableExpertList<E>, ExpertList<E>>;

 public:
  /// Most rows that an expert gets at once.
  static constexpr Index part_rows = 1024;

  struct Rows {
    GrowingMatrix<T> gathered;
    std::vector<GroupPart> parts;
  };
  /// Memory of a call: an expert's scratch for each thread.
  struct Scratch : Rows {
    std::vector<typename E::Scratch> workers;
  };
  /// What backward needs: an expert's tape for each part.
  template <class Expert = E>
  struct TapeOf : Rows {
    std::vector<typename Expert::Tape> tapes;
    detail::Owner owner;  ///< the set whose forward it holds
  };
  using Tape = TapeOf<>;

  using Base::Base;

  void forward(const ExpertInput<T>& input, MatrixRef<T> rows, Scratch& scratch,
               int threads) const {
    check_call(input, rows);
    const ConstMatrixRef<T> x = prepare(input, scratch, threads);
    reserve_for_threads(input.groups.num_rows(), threads, scratch.workers);
    for_parts_of_groups(scratch, threads, [&](const GroupPart& part, std::size_t, int worker) {
      this->of(part.expert)
          .forward(x.middleRows(part.begin, part.rows()), rows.middleRows(part.begin, part.rows()),
                   scratch.workers[static_cast<std::size_t>(worker)]);
    });
  }

  void forward(const ExpertInput<T>& input, MatrixRef<T> rows, Tape& tape,
               int threads) const requires TrainableExpert<E, T> {
    check_call(input, rows);
    tape.owner.clear();
    const ConstMatrixRef<T> x = prepare(input, tape, threads);
    detail::grow(tape.tapes, static_cast<Index>(tape.parts.size()));
    for_parts_of_groups(tape, threads, [&](const GroupPart& part, std::size_t number, int) {
      this->of(part.expert)
          .forward(x.middleRows(part.begin, part.rows()), rows.middleRows(part.begin, part.rows()),
                   tape.tapes[number]);
    });
    this->own(tape.owner);
  }

  /// Throws std::invalid_argument on other shapes, other groups than those of forward, or a tape of
  /// another set, also of another expert that stood in it if that has check_tape(tape, name).
  template <class Params>
  void backward(const ExpertInput<T>& input, ConstMatrixRef<T> drows, Tape& tape,
                MatrixRef<T> dx_rows, Params& grads,
                int threads) const requires TrainableExpert<E, T> {
    this->check_set_backward(input, drows, tape, dx_rows, grads);
    check_tape(tape, {"experts"});
    const ConstMatrixRef<T> x =
        input.in_order() ? input.x : ConstMatrixRef<T>(tape.gathered.leftCols(this->d_in()));
    detail::parallel_for(this->num_experts(), threads, [&](Index expert, int) {
      // Clang 14 cannot read the ranges of libstdc++ 12.
      const auto first = std::lower_bound(
          tape.parts.begin(), tape.parts.end(), expert,
          [](const GroupPart& part, Index wanted) { return part.expert < wanted; });
      auto expert_tape = tape.tapes.begin() + (first - tape.parts.begin());
      for (auto part = first; part != tape.parts.end() && part->expert == expert; ++part) {
        this->of(expert).backward(x.middleRows(part->begin, part->rows()),
                                  drows.middleRows(part->begin, part->rows()), *expert_tape++,
                                  dx_rows.middleRows(part->begin, part->rows()),
                                  grads[static_cast<std::size_t>(expert)]);
      }
    });
  }
  /// Throws std::invalid_argument unless the tape is of a forward of this very set, and of the
  /// experts that stand in it, as far as these have check_tape(tape, name).
  void check_tape(const Tape& tape,
                  const ParameterName& name) const requires TrainableExpert<E, T> {
    this->check_owner(tape.owner, name);
    for (std::size_t i = 0; i < tape.parts.size(); ++i) {
      const Index e = tape.parts[i].expert;
      moe::check_tape(this->of(e), tape.tapes[i], {name.word, e, name.part});
    }
  }

 private:
  void check_call(const ExpertInput<T>& input, const MatrixRef<T>& rows) const {
    check_set_call(*this, input, rows);
    this->check_used(input.groups);
  }
  ConstMatrixRef<T> prepare(const ExpertInput<T>& input, Rows& memory, int threads) const {
    cut_groups(input.groups, part_rows, memory.parts);
    return gather_rows(input, memory.gathered, threads);
  }

  /// body(part, its number, worker).
  template <class Body>
  static void for_parts_of_groups(const Rows& rows, int threads, Body&& body) {
    detail::parallel_for(static_cast<Index>(rows.parts.size()), threads,
                         [&](Index item, int worker) {
                           const auto number = static_cast<std::size_t>(item);
                           body(rows.parts[number], number, worker);
                         });
  }

  /// All at once: a worker may meet its largest part many calls from now.
  void reserve_for_threads(Index num_rows, int threads,
                           std::vector<typename E::Scratch>& workers) const {
    detail::grow(workers, threads);
    if constexpr (requires(typename E::Scratch & scratch) {
                    this->of(0).reserve(scratch, Index{});
                  }) {
      for (const E& expert : *this) {  // they may differ in width
        for (auto& scratch : workers) {
          expert.reserve(scratch, (std::min)(num_rows, part_rows));
        }
      }
    }
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
