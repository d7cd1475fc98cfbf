// SPDX-License-Identifier: Apache-2.0
// Dense<T, Set>: a set of one expert that every token takes. Rows of padding are no tokens: the
// expert does not see them.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../concepts.hpp"
#include "../detail/parallel.hpp"
#include "../growing_matrix.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Which rows of a batch are tokens.
class TokenRows {
 public:
  void list(Index num_rows, const Tokens& tokens) {
    has_padding_ = !tokens.padding.empty();
    token_.clear();
    for (Index row = 0; has_padding_ && row < num_rows; ++row) {
      if (!tokens.is_padding(row)) {
        token_.push_back(row);
      }
    }
    offset_[1] = has_padding_ ? static_cast<Index>(token_.size()) : num_rows;
  }

  bool has_padding() const { return has_padding_; }
  Index count() const { return offset_[1]; }
  /// One group of all tokens. It refers to this object.
  RowGroups groups() const { return {offset_, token_}; }

  /// to (N, cols) = from (tokens, cols) at the place of each token, and 0 where there is padding.
  template <Real T>
  void spread(ConstMatrixRef<T> from, MatrixRef<T> to, int threads) const {
    detail::for_rows(to.rows(), threads,
                     [&](Index row) { std::fill_n(&to.coeffRef(row, 0), to.cols(), T(0)); });
    detail::for_rows(count(), threads, [&](Index row) {
      std::copy_n(&from.coeffRef(row, 0), to.cols(),
                  &to.coeffRef(token_[static_cast<std::size_t>(row)], 0));
    });
  }

 private:
  bool has_padding_ = false;
  Index offset_[2] = {0, 0};
  std::vector<Index> token_;  // only where there is padding
};

template <Real T, ExpertSet<T> Set>
class Dense {
 public:
  /// Memory of a call. Reused: it allocates only while it grows.
  struct Scratch {
    typename Set::Scratch set;
    TokenRows tokens;
    GrowingMatrix<T> rows;  ///< (tokens, d_out), where there is padding
  };

  /// Throws std::invalid_argument unless the set has one expert.
  explicit Dense(Set set) : set_(std::move(set)) { check_set(); }

  Index d_in() const { return set_.d_in(); }
  Index d_out() const { return set_.d_out(); }
  double multiply_adds(Index rows) const { return detail::multiply_adds(set_, rows); }
  /// Throws std::invalid_argument unless the expert is there, which it is not after a move, and its
  /// parameters have their shapes.
  void check_params(const ParameterName& name) const {
    check_set();
    if constexpr (requires { set_[0]; }) {
      moe::check_params(set_[0], name);
    }
  }
  Set& set() { return set_; }
  const Set& set() const { return set_; }

  /// y (N, d_out) = f(x (N, d_in)). Throws std::invalid_argument on other shapes, also of
  /// parameters, or if y overlaps x. Of the options num_threads and tokens.padding matter.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    check_call(x, y, call);
    compute(x, y, scratch, call);
  }

 protected:
  void check_call(const ConstMatrixRef<T>& x, const MatrixRef<T>& y,
                  const CallOptions& call) const {
    check_params({"DenseFfn"});
    detail::check_shape(x, x.rows(), d_in(), "Dense: x");
    detail::check_shape(y, x.rows(), d_out(), "Dense: y");
    detail::throw_unless(!detail::overlap(x, y), "Dense: y overlaps x, expected memory of its own");
    call.tokens.validate(x.rows());
  }

  /// Memory is a Scratch, or has what it has.
  template <class Memory>
  void compute(ConstMatrixRef<T> x, MatrixRef<T> y, Memory& memory, const CallOptions& call) const {
    const int threads = detail::num_threads(call.num_threads, multiply_adds(x.rows()));
    memory.tokens.list(x.rows(), call.tokens);
    detail::with_team(threads, [&] {
      const ExpertInput<T> input{x, memory.tokens.groups()};
      if (!memory.tokens.has_padding()) {
        return set_.forward(input, y, memory.set, threads);
      }
      memory.rows.resize(memory.tokens.count(), d_out());
      set_.forward(input, memory.rows, memory.set, threads);
      memory.tokens.template spread<T>(memory.rows, y, threads);
    });
  }

 private:
  void check_set() const {
    detail::throw_unless(set_.num_experts() == 1, "Dense: the set has ", set_.num_experts(),
                         " experts, expected 1");
  }

  Set set_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
