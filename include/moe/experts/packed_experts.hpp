// SPDX-License-Identifier: Apache-2.0
// PackedExperts<S>: feed-forwards as a set for inference, weights packed in storage S. Rows of x
// are read where they are, through a pointer each, so a gather costs nothing.
//
//   hidden (S, F) = act(x gate^T) * (x up^T)    for each part of rows and range of panels
//   rows (S, D)   = hidden down^T               likewise
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "dense.hpp"
#include "ffn_experts.hpp"
#include "packed_expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Storage S>
class PackedExperts {
 public:
  using W = Wide<S>;
  using Input = typename PackedMatrix<S>::Input;
  static constexpr bool weighs_hidden = true;

  /// Memory of a call. It only grows.
  struct Scratch {
    struct Worker {
      Matrix<W> sums;                                   // (part rows, tile cols)
      Matrix<typename PackedMatrix<S>::Weight> buffer;  // a block of a panel, if that is decoded
    };
    struct Job {
      const PackedExpert<S>* expert;
      typename PackedExpert<S>::Rows rows;
    };
    std::vector<GroupPart> parts;
    std::vector<Job> jobs;                              // one for each part
    std::vector<const Input*> input_rows, hidden_rows;  // (S) where each row lies
    std::vector<W> factors;                             // (S) of the output gate
    GrowingMatrix<Input> stored_x;                      // x as Input, where x itself is not
    GrowingMatrix<Input> hidden;                        // (S, F)
    std::vector<Worker> workers;
  };

  /// Packs every expert, in parallel. Throws std::invalid_argument unless their parameters have
  /// their shapes.
  template <Real T>
  explicit PackedExperts(const FfnExperts<T>& experts);
  /// Takes packed ones. Throws std::invalid_argument if there is none, or if they differ in d_in or
  /// d_out.
  explicit PackedExperts(std::vector<PackedExpert<S>> experts);

  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  const PackedExpert<S>& operator[](std::size_t expert) const { return experts_[expert]; }
  Index d_in() const { return experts_.front().up.width(); }
  Index d_out() const { return experts_.front().down.num_outputs(); }
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
  /// weights, x and hidden rows to bfloat16 once each, and storages in integers x and hidden rows
  /// to 8 bits in blocks of 32; an output gate reads x so rounded. Throws as check_set_call says.
  void forward(const ExpertInput<W>& input, MatrixRef<W> rows, Scratch& scratch, int threads) const;

 private:
  using Job = typename Scratch::Job;

  /// Most rows of a part: their share of a block of k, 4 KiB a row, and their sums stay in the
  /// caches while they meet one panel after the other.
  static constexpr Index part_rows = 256;

  void list_inputs(const ExpertInput<W>& input, int threads, Scratch& scratch) const;
  void store_inputs(const ExpertInput<W>& input, int threads, Scratch& scratch) const;
  void list_jobs(const ExpertInput<W>& input, MatrixRef<W> rows, Scratch& scratch) const;
  /// body(job, part of its panels, memory) for all jobs, in enough parts to keep every thread busy.
  template <class Body>
  static void for_jobs(Scratch& scratch, int threads, Body&& body);

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
  list_inputs(input, threads, scratch);
  list_jobs(input, rows, scratch);
  for_jobs(scratch, threads, [](const Job& job, detail::Part part, const auto& memory) {
    job.expert->multiply_up(job.rows, part, memory);
  });
  for_jobs(scratch, threads, [](const Job& job, detail::Part part, const auto& memory) {
    job.expert->multiply_down(job.rows, part, memory);
  });
}

template <Storage S>
void PackedExperts<S>::list_inputs(const ExpertInput<W>& input, int threads,
                                   Scratch& scratch) const {
  scratch.input_rows.resize(static_cast<std::size_t>(input.groups.num_rows()));
  if constexpr (std::same_as<Input, W> && std::same_as<typename PackedMatrix<S>::Precision, W>) {
    if (input.weight.empty() && experts_.front().up.depth() == d_in()) {
      for (std::size_t row = 0; row < scratch.input_rows.size(); ++row) {
        scratch.input_rows[row] = &input.x.coeffRef(input.groups.token_of(Index(row)), 0);
      }
      return;
    }
  }
  store_inputs(input, threads, scratch);
}

/// x as Input: rounded once for each token or, with a weight, for each row.
template <Storage S>
void PackedExperts<S>::store_inputs(const ExpertInput<W>& input, int threads,
                                    Scratch& scratch) const {
  const RowGroups& groups = input.groups;
  const bool weighted = !input.weight.empty();
  const Index depth = experts_.front().up.depth();
  const Index stored_rows = weighted ? groups.num_rows() : input.x.rows();
  scratch.stored_x.resize(stored_rows,
                          detail::spread_width<Input>(depth / kernels::numbers_in<Input>));
  detail::for_rows(stored_rows, threads, [&](Index row) {
    const W weight = weighted ? input.weight[static_cast<std::size_t>(row)] : W(1);
    const W* from = &input.x.coeffRef(weighted ? groups.token_of(row) : row, 0);
    Input* to = &scratch.stored_x.coeffRef(row, 0);
    if constexpr (kernels::numbers_in < Input >> 1) {
      PackedMatrix<S>::store(from, d_in(), weight, 0, to);
    } else {
      for (Index col = 0; col < d_in(); ++col) {
        to[col] = kernels::convert<Input>(
            kernels::convert<typename PackedMatrix<S>::Precision>(weight * from[col]));
      }
      std::fill(to + d_in(), to + depth, Input(0));
    }
  });
  for (std::size_t row = 0; row < scratch.input_rows.size(); ++row) {
    const Index stored = weighted ? Index(row) : groups.token_of(Index(row));
    scratch.input_rows[row] = &scratch.stored_x.coeffRef(stored, 0);
  }
}

template <Storage S>
void PackedExperts<S>::list_jobs(const ExpertInput<W>& input, MatrixRef<W> rows,
                                 Scratch& scratch) const {
  const RowGroups& groups = input.groups;
  const W* weight = input.hidden_weight.empty() ? nullptr : input.hidden_weight.data();
  const Index num_rows = groups.num_rows();
  Index widest = 0;
  for (const PackedExpert<S>& expert : experts_) {
    widest = (std::max)(widest, expert.hidden_size());
  }
  scratch.hidden.resize(num_rows, widest);
  detail::grow(scratch.hidden_rows, num_rows);
  detail::grow(scratch.factors, num_rows);
  cut_groups(groups, part_rows, scratch.parts);
  scratch.jobs.clear();
  for (const GroupPart& part : scratch.parts) {
    const PackedExpert<S>& expert = experts_[static_cast<std::size_t>(part.expert)];
    const Index group = groups.begin(part.expert);
    // The hidden rows of an expert follow each other, as wide as they are.
    Input* hidden =
        scratch.hidden.data() + group * widest + (part.begin - group) * expert.hidden_size();
    const auto first = static_cast<std::size_t>(part.begin);
    const auto size = static_cast<std::size_t>(part.rows());
    for (Index row = 0; row < part.rows(); ++row) {
      scratch.hidden_rows[first + static_cast<std::size_t>(row)] =
          hidden + row * expert.hidden_size();
    }
    scratch.jobs.push_back({&expert,
                            {.input = {scratch.input_rows.data() + first, size},
                             .hidden = {scratch.hidden_rows.data() + first, size},
                             .first_hidden = hidden,
                             .weight = weight == nullptr ? nullptr : weight + part.begin,
                             .factor = scratch.factors.data() + first,
                             .first_out = &rows.coeffRef(part.begin, 0),
                             .out_stride = rows.outerStride()}});
  }
}

template <Storage S>
template <class Body>
void PackedExperts<S>::for_jobs(Scratch& scratch, int threads, Body&& body) {
  detail::grow(scratch.workers, threads);
  for (auto& worker : scratch.workers) {
    worker.sums.resize(part_rows, PackedMatrix<S>::cols);
    worker.buffer.resize(1, PackedMatrix<S>::buffer_size);
  }
  detail::for_parts(
      static_cast<Index>(scratch.jobs.size()), threads,
      [&](Index job, detail::Part part, int number) {
        auto& worker = scratch.workers[static_cast<std::size_t>(number)];
        body(scratch.jobs[static_cast<std::size_t>(job)], part,
             typename PackedExpert<S>::Memory{worker.sums.data(), worker.buffer.data()});
      });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
