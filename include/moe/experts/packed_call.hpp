// SPDX-License-Identifier: Apache-2.0
// PackedCall<S>: one call of packed experts, wherever these lie. It lists the rows, takes experts
// as they come, and computes those that it was given, all together. Rows of x are read where they
// are, through a pointer each, so a gather costs nothing.
//
//   hidden (S, F) = act(x gate^T) * (x up^T)    for each part of rows and range of panels
//   rows (S, D)   = hidden down^T               likewise
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "../detail/part.hpp"
#include "../detail/reserve.hpp"
#include "../growing_matrix.hpp"
#include "../row_groups.hpp"
#include "packed_expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Memory of a call. It only grows: how many experts are computed at once makes no difference.
template <Storage S>
class PackedCall {
 public:
  using W = Wide<S>;
  using Input = typename PackedMatrix<S>::Input;

  /// x as experts with weights like `up` read it, and room for hidden rows of so many Input. Throws
  /// nothing but what the memory does.
  void begin(const ExpertInput<W>& input, const PackedMatrix<S>& up, Index hidden_size,
             int threads);
  /// The groups in parts, in the order of the experts.
  const std::vector<GroupPart>& parts() const { return parts_; }
  std::span<const GroupPart> parts_of(Index expert) const;
  /// A part of the call's groups whose expert is there.
  void add(const GroupPart& part, const PackedExpert<S>& expert, const ExpertInput<W>& input,
           MatrixRef<W> rows);
  /// rows =, of the parts that were added since.
  void compute(int threads);

 private:
  struct Worker {
    Matrix<W> sums;                                   // (part rows, tile cols)
    Matrix<typename PackedMatrix<S>::Weight> buffer;  // a block of a panel, if that is decoded
  };
  struct Job {
    const PackedExpert<S>* expert;
    typename PackedExpert<S>::Rows rows;
  };

  /// Most rows of a part: their share of a block of k, 4 KiB a row, and their sums stay in the
  /// caches while they meet one panel after the other.
  static constexpr Index part_rows = 256;

  void list_inputs(const ExpertInput<W>& input, const PackedMatrix<S>& up, int threads);
  void store_inputs(const ExpertInput<W>& input, const PackedMatrix<S>& up, int threads);
  /// body(job, part of its panels, memory) for all jobs, in enough parts to keep every thread busy.
  template <class Body>
  void for_jobs(int threads, Body&& body);

  std::vector<GroupPart> parts_;
  std::vector<Job> jobs_;                               // of the parts that were added
  std::vector<const Input*> input_rows_, hidden_rows_;  // (S) where each row lies
  std::vector<W> factors_;                              // (S) of the output gate
  GrowingMatrix<Input> stored_x_;                       // x as Input, where x itself is not
  GrowingMatrix<Input> hidden_;                         // (S, F)
  std::vector<Worker> workers_;
};

template <Storage S>
void PackedCall<S>::begin(const ExpertInput<W>& input, const PackedMatrix<S>& up, Index hidden_size,
                          int threads) {
  const Index num_rows = input.groups.num_rows();
  list_inputs(input, up, threads);
  hidden_.resize(num_rows, hidden_size);
  detail::grow(hidden_rows_, num_rows);
  detail::grow(factors_, num_rows);
  cut_groups(input.groups, part_rows, parts_);
  jobs_.clear();
  jobs_.reserve(parts_.size());
  detail::grow(workers_, threads);
  for (Worker& worker : workers_) {
    worker.sums.resize(part_rows, PackedMatrix<S>::cols);
    worker.buffer.resize(1, PackedMatrix<S>::buffer_size);
  }
}

template <Storage S>
std::span<const GroupPart> PackedCall<S>::parts_of(Index expert) const {
  const auto begins = [&](Index wanted) {  // Clang 14 cannot read the ranges of libstdc++ 12
    return std::lower_bound(parts_.begin(), parts_.end(), wanted,
                            [](const GroupPart& part, Index e) { return part.expert < e; });
  };
  return {begins(expert), begins(expert + 1)};
}

template <Storage S>
void PackedCall<S>::add(const GroupPart& part, const PackedExpert<S>& expert,
                        const ExpertInput<W>& input, MatrixRef<W> rows) {
  const W* weight = input.hidden_weight.empty() ? nullptr : input.hidden_weight.data();
  const Index group = input.groups.begin(part.expert), hidden_size = expert.hidden_size();
  // The hidden rows of an expert follow each other, as wide as they are.
  Input* hidden = hidden_.data() + group * hidden_.cols() + (part.begin - group) * hidden_size;
  const auto first = static_cast<std::size_t>(part.begin);
  const auto size = static_cast<std::size_t>(part.rows());
  for (Index row = 0; row < part.rows(); ++row) {
    hidden_rows_[first + static_cast<std::size_t>(row)] = hidden + row * hidden_size;
  }
  jobs_.push_back({&expert,
                   {.input = {input_rows_.data() + first, size},
                    .hidden = {hidden_rows_.data() + first, size},
                    .first_hidden = hidden,
                    .weight = weight == nullptr ? nullptr : weight + part.begin,
                    .factor = factors_.data() + first,
                    .first_out = &rows.coeffRef(part.begin, 0),
                    .out_stride = rows.outerStride()}});
}

template <Storage S>
void PackedCall<S>::compute(int threads) {
  for_jobs(threads, [](const Job& job, detail::Part part, const auto& memory) {
    job.expert->multiply_up(job.rows, part, memory);
  });
  for_jobs(threads, [](const Job& job, detail::Part part, const auto& memory) {
    job.expert->multiply_down(job.rows, part, memory);
  });
  jobs_.clear();
}

template <Storage S>
void PackedCall<S>::list_inputs(const ExpertInput<W>& input, const PackedMatrix<S>& up,
                                int threads) {
  input_rows_.resize(static_cast<std::size_t>(input.groups.num_rows()));
  if constexpr (std::same_as<Input, W> && std::same_as<typename PackedMatrix<S>::Precision, W>) {
    if (input.weight.empty() && up.depth() == up.width()) {
      for (std::size_t row = 0; row < input_rows_.size(); ++row) {
        input_rows_[row] = &input.x.coeffRef(input.groups.token_of(Index(row)), 0);
      }
      return;
    }
  }
  store_inputs(input, up, threads);
}

/// x as Input: rounded once for each token or, with a weight, for each row.
template <Storage S>
void PackedCall<S>::store_inputs(const ExpertInput<W>& input, const PackedMatrix<S>& up,
                                 int threads) {
  const RowGroups& groups = input.groups;
  const bool weighted = !input.weight.empty();
  const Index width = up.width(), depth = up.depth();
  const Index stored_rows = weighted ? groups.num_rows() : input.x.rows();
  stored_x_.resize(stored_rows, detail::spread_width<Input>(depth / kernels::numbers_in<Input>));
  detail::for_rows(stored_rows, threads, [&](Index row) {
    const W weight = weighted ? input.weight[static_cast<std::size_t>(row)] : W(1);
    const W* from = &input.x.coeffRef(weighted ? groups.token_of(row) : row, 0);
    Input* to = &stored_x_.coeffRef(row, 0);
    if constexpr (kernels::numbers_in < Input >> 1) {
      PackedMatrix<S>::store(from, width, weight, 0, to);
    } else {
      for (Index col = 0; col < width; ++col) {
        to[col] = kernels::convert<Input>(
            kernels::convert<typename PackedMatrix<S>::Precision>(weight * from[col]));
      }
      std::fill(to + width, to + depth, Input(0));
    }
  });
  for (std::size_t row = 0; row < input_rows_.size(); ++row) {
    const Index stored = weighted ? Index(row) : groups.token_of(Index(row));
    input_rows_[row] = &stored_x_.coeffRef(stored, 0);
  }
}

template <Storage S>
template <class Body>
void PackedCall<S>::for_jobs(int threads, Body&& body) {
  detail::for_parts(
      static_cast<Index>(jobs_.size()), threads, [&](Index job, detail::Part part, int number) {
        auto& worker = workers_[static_cast<std::size_t>(number)];
        body(jobs_[static_cast<std::size_t>(job)], part,
             typename PackedExpert<S>::Memory{worker.sums.data(), worker.buffer.data()});
      });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
