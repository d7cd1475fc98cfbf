// SPDX-License-Identifier: Apache-2.0
// ZeroExperts<T, Set>: a set of experts, and behind them some that compute nothing or next to
// nothing, for tokens that need no more (Jin 2024, MoE++; LongCat-Flash has copies alone).
//
//   constant    y = a x + (1 - a) v, (a, 1 - a) = softmax(x mixing^T)
//   copy        y = x
//   zero        y = 0
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "../detail/random.hpp"
#include "../kernels/row_sums.hpp"
#include "../kernels/vector_math.hpp"
#include "ffn_experts.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// How many there are of each, in the order of their numbers.
struct ZeroComputation {
  Index constants = 0, copies = 0, zeros = 0;

  Index num_experts() const { return constants + copies + zeros; }
};

/// Of one constant expert: (2, D) and (1, D), or their Shape.
template <class Tensor>
struct ConstantTensors {
  Tensor mixing = {}, vector = {};

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("mixing"), p.mixing...);
    visit(std::string_view("vector"), p.vector...);
  }
};
template <Real T>
using ConstantParams = ConstantTensors<Matrix<T>>;

constexpr Index constant_expert_parameters(Index d_model) { return 3 * d_model; }
/// FLOPs of a row through a constant expert; a copy and a zero have none.
constexpr Index constant_expert_flops(Index d_model) { return 7 * d_model + 5; }
constexpr Index constant_expert_backward_flops(Index d_model) { return 18 * d_model + 9; }

template <Real T, ExpertSet<T> Set = FfnExperts<T>>
class ZeroExperts {
 public:
  using W = Wide<T>;

  struct Scratch {
    typename Set::Scratch set;
  };
  template <class S = Set>
  struct TapeOf {
    typename S::Tape set;
    std::vector<W> share,
        dlogit;  ///< (S) of the rows of constant experts: a, and its logit's gradient
  };
  using Tape = TapeOf<>;
  template <class S = Set>
  struct GradsWith {
    GradsOf<S> set;
    std::vector<ConstantParams<W>> constants;
  };
  using Grads = GradsWith<>;

  /// Takes a ready set; mixing and vector are from N(0, 1 / D). Throws std::invalid_argument for
  /// less than none, or if something is to be passed on by a set whose d_in is not its d_out.
  ZeroExperts(Set set, const ZeroComputation& zero, std::uint64_t seed)
      : set_(std::move(set)),
        zero_(zero),
        constants_(random_constants(zero.constants, set_.d_in(), seed)) {
    check_parts();
  }
  /// Also takes the parameters of the constant experts.
  ZeroExperts(Set set, const ZeroComputation& zero, std::vector<ConstantParams<T>> constants)
      : set_(std::move(set)), zero_(zero), constants_(std::move(constants)) {
    check_parts();
  }

  Index num_experts() const { return set_.num_experts() + zero_.num_experts(); }
  Index d_in() const { return set_.d_in(); }
  Index d_out() const { return set_.d_out(); }
  double multiply_adds(Index rows) const { return detail::multiply_adds(set_, rows); }
  const ZeroComputation& zero() const { return zero_; }
  Set& set() { return set_; }
  const Set& set() const { return set_; }
  std::vector<ConstantParams<T>>& constants() { return constants_; }
  const std::vector<ConstantParams<T>>& constants() const { return constants_; }

  void check_params(const ParameterName& name) const {
    moe::check_params(set_, name);
    detail::throw_unless(static_cast<Index>(constants_.size()) == zero_.constants,
                         "ZeroExperts: there are parameters of ", constants_.size(),
                         " constant experts, expected ", zero_.constants);
    for (std::size_t i = 0; i < constants_.size(); ++i) {
      check_shapes(constants_[i],
                   ConstantTensors<Shape>{.mixing = {2, d_in()}, .vector = {1, d_in()}},
                   name_of(i, name));
    }
  }

  Grads zero_grads() const requires TrainableExpertSet<Set, T> {
    Grads grads{.set = set_.zero_grads(), .constants = {}};
    const Matrix<W> mixing = Matrix<W>::Zero(2, d_in()), vector = Matrix<W>::Zero(1, d_in());
    grads.constants.assign(constants_.size(), {.mixing = mixing, .vector = vector});
    return grads;
  }
  /// Names are those of the set, and experts.9.mixing, experts.9.vector of the constant expert 9.
  template <class Self, class Visit, class... G>
  static void walk(Self& self, const ParameterName& name, Visit&& visit, G&... grads) {
    walk_params(self.set_, name, visit, grads.set...);
    for (std::size_t i = 0; i < self.constants_.size(); ++i) {
      const ParameterName expert = self.name_of(i, name);
      ConstantParams<T>::for_each(
          [&](std::string_view word, auto& tensor, auto&... rest) {
            visit(ParameterName{.word = word, .part = &expert}, tensor, rest...);
          },
          self.constants_[i], grads.constants.at(i)...);
    }
  }

  /// Memory is a Scratch or a Tape. Throws std::invalid_argument as check_set_call says.
  template <class Memory>
  void forward(const ExpertInput<T>& input, MatrixRef<T> rows, Memory& memory, int threads) const {
    check_set_call(*this, input, rows);
    set_.forward(of_set(input), rows.topRows(first_row(input)), memory.set, threads);
    for_rows_behind(input, threads, [&](Index row, Index number) {
      T* y = &rows.coeffRef(row, 0);
      pass_on(input, row, number, y);
      if (number < zero_.constants) {
        const ConstantParams<T>& p = constants_[static_cast<std::size_t>(number)];
        const W share = share_of(p, y), rest = W(1) - share;
        kernels::for_lanes<W>(d_in(), [&](auto at) {
          at.store(y, kernels::madd(kernels::LanesOr<W>(share), at.load(y),
                                    kernels::LanesOr<W>(rest) * at.load(p.vector.data())));
        });
      }
    });
  }

  /// grads +=, dx_rows =. Throws std::invalid_argument as the backward of the set does, and if
  /// drows, dx_rows or grads are of another number of rows or experts.
  void backward(const ExpertInput<T>& input, ConstMatrixRef<T> drows, Tape& tape,
                MatrixRef<T> dx_rows, Grads& grads,
                int threads) const requires TrainableExpertSet<Set, T>;
  /// As that of the set.
  void check_tape(const Tape& tape,
                  const ParameterName& name) const requires TrainableExpertSet<Set, T> {
    moe::check_tape(set_, tape.set, name);
  }

 private:
  static std::vector<ConstantParams<T>> random_constants(Index count, Index width,
                                                         std::uint64_t seed) {
    std::vector<ConstantParams<T>> constants(static_cast<std::size_t>((std::max)(count, Index{0})));
    std::uint64_t stream = 0;
    for (ConstantParams<T>& p : constants) {
      p = {.mixing = Matrix<T>(2, width), .vector = Matrix<T>(1, width)};
      detail::fill_normal(p.mixing, seed, stream++);
      detail::fill_normal(p.vector, seed, stream++);
    }
    return constants;
  }

  void check_parts() const {
    detail::throw_unless(zero_.constants >= 0 && zero_.copies >= 0 && zero_.zeros >= 0,
                         "ZeroExperts: (", zero_.constants, ", ", zero_.copies, ", ", zero_.zeros,
                         ") constants, copies and zeros, expected at least 0 of each");
    detail::throw_unless(zero_.constants + zero_.copies == 0 || d_in() == d_out(),
                         "ZeroExperts: the set is ", d_in(), " to ", d_out(),
                         " wide, expected as wide as its input for constants and copies");
    check_params({"experts"});
  }

  ParameterName name_of(std::size_t constant, const ParameterName& name) const {
    return {name.word, set_.num_experts() + static_cast<Index>(constant), name.part};
  }

  Index first_row(const ExpertInput<T>& input) const {
    return input.groups.begin(set_.num_experts());
  }
  /// What the experts of the set get of it.
  ExpertInput<T> of_set(const ExpertInput<T>& input) const {
    const auto rows = static_cast<std::size_t>(first_row(input));
    const auto& [offset, token] = input.groups;
    return {input.x,
            {offset.first(static_cast<std::size_t>(set_.num_experts()) + 1),
             token.empty() ? token : token.first(rows)},
            input.weight.empty() ? input.weight : input.weight.first(rows)};
  }
  /// body(row, number of its expert among these) for every row behind those of the set.
  template <class Body>
  void for_rows_behind(const ExpertInput<T>& input, int threads, Body&& body) const {
    const auto offset = input.groups.offset.subspan(static_cast<std::size_t>(set_.num_experts()));
    const Index first = offset.front();
    detail::for_rows(input.groups.num_rows() - first, threads, [&](Index i) {
      const auto next = std::upper_bound(offset.begin(), offset.end(), first + i);
      body(first + i, static_cast<Index>(next - offset.begin()) - 1);
    });
  }

  W weight_of(const ExpertInput<T>& input, Index row) const {
    return input.weight.empty() ? W(1) : input.weight[static_cast<std::size_t>(row)];
  }
  /// to (D) = the row's x with its weight, or 0 for an expert that is zero.
  void pass_on(const ExpertInput<T>& input, Index row, Index number, T* to) const {
    if (number >= zero_.constants + zero_.copies) {
      std::fill_n(to, d_out(), T(0));
      return;
    }
    std::copy_n(&input.x.coeffRef(input.groups.token_of(row), 0), d_in(), to);
    if (!input.weight.empty()) {
      kernels::scale_row(weight_of(input, row), d_in(), to);
    }
  }
  /// The a of a constant expert.
  W share_of(const ConstantParams<T>& p, const T* x) const {
    return kernels::sigmoid(W(kernels::dot(x, p.mixing.data(), d_in()) -
                              kernels::dot(x, p.mixing.data() + d_in(), d_in())));
  }

  Set set_;
  ZeroComputation zero_;
  std::vector<ConstantParams<T>> constants_;
};

template <Real T, ExpertSet<T> Set>
void ZeroExperts<T, Set>::backward(const ExpertInput<T>& input, ConstMatrixRef<T> drows, Tape& tape,
                                   MatrixRef<T> dx_rows, Grads& grads,
                                   int threads) const requires TrainableExpertSet<Set, T> {
  input.groups.validate(num_experts(), input.x.rows());
  const Index num_rows = input.groups.num_rows();
  detail::check_shape(drows, num_rows, d_out(), "experts: drows");
  detail::check_shape(dx_rows, num_rows, d_in(), "experts: dx_rows");
  detail::throw_unless(grads.constants.size() == constants_.size(), "gradient experts has ",
                       grads.constants.size(), " constant experts, expected ", constants_.size());
  const Index first = first_row(input);
  set_.backward(of_set(input), drows.topRows(first), tape.set, dx_rows.topRows(first), grads.set,
                threads);
  detail::grow(tape.share, num_rows);
  detail::grow(tape.dlogit, num_rows);
  for_rows_behind(input, threads, [&](Index row, Index number) {
    T* dx = &dx_rows.coeffRef(row, 0);
    const T* dy = &drows.coeffRef(row, 0);
    if (number >= zero_.constants) {
      const bool copies = number < zero_.constants + zero_.copies;
      copies ? std::copy_n(dy, d_in(), dx) : std::fill_n(dx, d_in(), T(0));
      return;
    }
    const ConstantParams<T>& p = constants_[static_cast<std::size_t>(number)];
    pass_on(input, row, number, dx);
    const W share = share_of(p, dx);
    const W dshare = kernels::dot(dy, dx, d_in()) - kernels::dot(dy, p.vector.data(), d_in());
    const W dlogit = share * (W(1) - share) * dshare;
    tape.share[static_cast<std::size_t>(row)] = share;
    tape.dlogit[static_cast<std::size_t>(row)] = dlogit;
    kernels::for_lanes<W>(d_in(), [&](auto at) {
      const auto slope = at.load(p.mixing.data()) - at.load(p.mixing.data() + d_in());
      at.store(dx, kernels::madd(kernels::LanesOr<W>(dlogit), slope,
                                 kernels::LanesOr<W>(share) * at.load(dy)));
    });
  });
  detail::parallel_for(zero_.constants, threads, [&](Index number, int) {
    ConstantParams<W>& g = grads.constants[static_cast<std::size_t>(number)];
    const Index expert = set_.num_experts() + number;
    for (Index row = input.groups.begin(expert); row < input.groups.end(expert); ++row) {
      const auto slot = static_cast<std::size_t>(row);
      const auto x = input.x.row(input.groups.token_of(row));
      const W dlogit =
          input.weight.empty() ? tape.dlogit[slot] : tape.dlogit[slot] * input.weight[slot];
      const W minus_dlogit = -dlogit, rest = W(1) - tape.share[slot];
      kernels::add_rows<T>(x, &dlogit, &g.mixing(0, 0));
      kernels::add_rows<T>(x, &minus_dlogit, &g.mixing(1, 0));
      kernels::add_rows<T>(drows.row(row), &rest, &g.vector(0, 0));
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
