// SPDX-License-Identifier: Apache-2.0
// FfnExperts<T>: feed-forwards as a set that trains. Threads share each expert by columns, stage by
// stage, so that one expert with many rows, or one row, keeps all of them busy. One memory holds
// the rows of all experts.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "expert.hpp"
#include "expert_list.hpp"
#include "gather.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
class FfnExperts : public TrainableExpertList<Expert<T>> {
 public:
  /// Most rows in a part of a group: enough to pay for reading a weight from memory and packing it.
  static constexpr Index part_rows = 1024;
  /// Least rows of a weight's gradient in a part of it, if these are still one for each thread:
  /// every part packs the rows of all tokens again.
  static constexpr Index least_gradient_rows = 48;

  static constexpr bool weighs_hidden = true;

  /// Rows of all experts. It only grows.
  template <class Memory>
  struct MemoryOf {
    GrowingMatrix<T> gathered;  ///< (S, D_in) rows of x, where they are not x itself
    Memory rows;
    std::vector<GroupPart> parts;
  };
  using Scratch = MemoryOf<typename Expert<T>::Scratch>;
  struct Tape : MemoryOf<typename Expert<T>::Tape> {
    detail::Owner owner;                      ///< the set whose forward it holds
    std::vector<detail::Owner> expert_owner;  ///< (E), of those that have rows
    std::span<const Wide<T>> dhidden_weight;  ///< (S) if hidden rows have weights
  };

  using TrainableExpertList<Expert<T>>::TrainableExpertList;

  /// Memory is a Scratch or a Tape. Throws std::invalid_argument as check_set_call says, and unless
  /// the parameters of the experts that have rows have their shapes.
  template <class Memory>
  void forward(const ExpertInput<T>& input, MatrixRef<T> rows, Memory& memory, int threads) const {
    check_set_call(*this, input, rows);
    this->check_used(input.groups);
    if constexpr (std::same_as<Memory, Tape>) {
      memory.owner.clear();
    }
    cut_groups(input.groups, part_rows, memory.parts);
    const ConstMatrixRef<T> x = gather_rows(input, memory.gathered, threads);
    memory.rows.hidden_weight = input.hidden_weight;
    for (const Expert<T>& expert : *this) {  // they may differ in width
      expert.reserve(memory.rows, input.groups.num_rows(), threads);
    }
    for_stage(memory.parts, threads, [&](const GroupPart& group, detail::Part part, int worker) {
      this->of(group.expert).forward_hidden(of(x, group), memory.rows, group.begin, part, worker);
    });
    for_stage(memory.parts, threads, [&](const GroupPart& group, detail::Part part, int worker) {
      this->of(group.expert)
          .forward_output(memory.rows, group.begin, of(rows, group), part, worker);
    });
    if constexpr (std::same_as<Memory, Tape>) {
      own(memory);
    }
  }

  /// grads (E) +=, dx_rows =. Throws std::invalid_argument on other shapes, other groups than those
  /// of forward, or a tape of another set or of another expert that stood in it.
  void backward(const ExpertInput<T>& input, ConstMatrixRef<T> drows, Tape& tape,
                MatrixRef<T> dx_rows, std::span<ExpertParams<Wide<T>>> grads, int threads) const;
  /// Throws std::invalid_argument unless the tape is of a forward of this very set, and of the
  /// experts that stand in it.
  void check_tape(const Tape& tape, const ParameterName& name) const {
    this->check_owner(tape.owner, name);
    for (const GroupPart& part : tape.parts) {
      of(part.expert)
          .check_owner(tape.expert_owner[static_cast<std::size_t>(part.expert)],
                       {name.word, part.expert, name.part});
    }
  }

 private:
  using TrainableExpertList<Expert<T>>::of;

  void own(Tape& tape) const {
    detail::grow(tape.expert_owner, this->num_experts());
    for (const GroupPart& part : tape.parts) {
      of(part.expert).own(tape.expert_owner[static_cast<std::size_t>(part.expert)]);
    }
    TrainableExpertList<Expert<T>>::own(tape.owner);
  }

  static auto of(const ConstMatrixRef<T>& rows, const GroupPart& part) {
    return rows.middleRows(part.begin, part.rows());
  }
  static auto of(MatrixRef<T>& rows, const GroupPart& part) {
    return rows.middleRows(part.begin, part.rows());
  }

  /// body(rows of an expert, part of its columns, worker) for every part of them.
  template <class Body>
  static void for_stage(const std::vector<GroupPart>& groups, int threads, Body&& body) {
    detail::for_parts(static_cast<Index>(groups.size()), threads,
                      [&](Index number, detail::Part part, int worker) {
                        body(groups[static_cast<std::size_t>(number)], part, worker);
                      });
  }

  void backward_params(ConstMatrixRef<T> x, ConstMatrixRef<T> drows, Tape& tape,
                       std::span<ExpertParams<Wide<T>>> grads, int threads) const;

  /// For a backward on more threads than its forward had.
  void reserve_threads(Tape& tape, int threads) const {
    if (!tape.parts.empty() && std::ssize(tape.rows.packing) < threads) {
      of(tape.parts.back().expert).reserve(tape.rows, tape.parts.back().end, threads);
    }
  }
};

template <Real T>
void FfnExperts<T>::backward(const ExpertInput<T>& input, ConstMatrixRef<T> drows, Tape& tape,
                             MatrixRef<T> dx_rows, std::span<ExpertParams<Wide<T>>> grads,
                             int threads) const {
  this->check_set_backward(input, drows, tape, dx_rows, grads);
  check_tape(tape, {"experts"});
  detail::throw_unless(input.hidden_weight.empty() == tape.rows.hidden_weight.empty(),
                       "experts: hidden_weight is not as in the forward, expected in both or none");
  reserve_threads(tape, threads);
  const ConstMatrixRef<T> x =
      input.in_order() ? input.x : ConstMatrixRef<T>(tape.gathered.leftCols(this->d_in()));
  tape.rows.hidden_weight = input.hidden_weight;
  for_stage(tape.parts, threads, [&](const GroupPart& group, detail::Part part, int) {
    const Index first = part.begin(group.rows()), rows = part.end(group.rows()) - first;
    of(group.expert)
        .backward_gate(drows.middleRows(group.begin + first, rows), tape.rows, group.begin + first);
  });
  for_stage(tape.parts, threads, [&](const GroupPart& group, detail::Part part, int worker) {
    of(group.expert).backward_hidden(of(drows, group), tape.rows, group.begin, part, worker);
  });
  if (!input.hidden_weight.empty()) {
    for_stage(tape.parts, threads, [&](const GroupPart& group, detail::Part part, int) {
      const Index first = part.begin(group.rows()), rows = part.end(group.rows()) - first;
      of(group.expert)
          .backward_weight(drows.middleRows(group.begin + first, rows), tape.rows,
                           group.begin + first);
    });
    tape.dhidden_weight = tape.rows.dweight;
  }
  for_stage(tape.parts, threads, [&](const GroupPart& group, detail::Part part, int worker) {
    of(group.expert).backward_input(tape.rows, group.begin, of(dx_rows, group), part, worker);
  });
  backward_params(x, drows, tape, grads, threads);
}

/// Each expert's parts of rows one after the other, as its gradients are sums over them.
template <Real T>
void FfnExperts<T>::backward_params(ConstMatrixRef<T> x, ConstMatrixRef<T> drows, Tape& tape,
                                    std::span<ExpertParams<Wide<T>>> grads, int threads) const {
  const auto is_first = [&](std::size_t i) {
    return i == 0 || tape.parts[i].expert != tape.parts[i - 1].expert;
  };
  Index active = 0, widest = 0;
  for (std::size_t i = 0; i < tape.parts.size(); ++i) {
    const Expert<T>& expert = of(tape.parts[i].expert);
    active += is_first(i) ? 1 : 0;
    widest = (std::max)({widest, expert.d_ff(), expert.d_out()});
  }
  const Index count = detail::parts_of_each(active, threads, widest / least_gradient_rows);
  const Index items = static_cast<Index>(tape.parts.size()) * count;
  detail::parallel_for(items, threads, [&](Index item, int worker) {
    const auto first = static_cast<std::size_t>(item / count);
    for (std::size_t i = first; is_first(first) && i < tape.parts.size(); ++i) {
      const GroupPart& group = tape.parts[i];
      if (group.expert != tape.parts[first].expert) {
        break;
      }
      of(group.expert)
          .backward_params({of(x, group), of(drows, group), group.begin}, tape.rows,
                           grads[static_cast<std::size_t>(group.expert)],
                           detail::Part{item % count, count}, worker);
    }
  });
}

/// The routed experts of a config, with random weights from the seed.
template <Real T>
std::vector<Expert<T>> make_experts(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  std::vector<std::optional<Expert<T>>> made(static_cast<std::size_t>(config.num_experts));
  detail::parallel_for(config.num_experts, detail::num_threads(0), [&](Index e, int) {
    made[static_cast<std::size_t>(e)].emplace(
        typename Expert<T>::Sizes{config.expert_d_in(), config.d_ff, config.expert_d_out()},
        config.expert, detail::seed_of(seed, 2 + static_cast<std::uint64_t>(e)));
  });
  std::vector<Expert<T>> experts;
  experts.reserve(made.size());
  for (std::optional<Expert<T>>& expert : made) {
    experts.push_back(std::move(*expert));
  }
  return experts;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
