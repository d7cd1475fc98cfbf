// SPDX-License-Identifier: Apache-2.0
// A vector of experts of one type, with what every set around such a vector needs: sizes, access
// as to the vector, and the walk over parameters.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../concepts.hpp"
#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <class E>
class ExpertList {
 public:
  /// Throws std::invalid_argument if there is none, or if they differ in d_in or d_out.
  explicit ExpertList(std::vector<E> experts) : experts_(std::move(experts)) {
    detail::throw_unless(!experts_.empty(), "experts: there are none, expected at least 1");
    check_params({"experts"});
  }

  /// Throws std::invalid_argument unless every expert is as wide as the first and has parameters of
  /// its shapes; they are named by `name` and the expert's number.
  void check_params(const ParameterName& name) const {
    for (Index e = 0; e < num_experts(); ++e) {
      check_expert(e, name);
    }
  }

  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  /// 0 of a list that was moved from.
  Index d_in() const { return experts_.empty() ? 0 : experts_.front().d_in(); }
  Index d_out() const { return experts_.empty() ? 0 : experts_.front().d_out(); }
  /// Those of a forward, if all rows go to the largest expert.
  double multiply_adds(Index rows) const {
    double most = 0.0;
    for (const E& expert : experts_) {
      most = (std::max)(most, detail::multiply_adds(expert, rows));
    }
    return most;
  }

  std::size_t size() const { return experts_.size(); }
  E& operator[](std::size_t expert) { return experts_[expert]; }
  const E& operator[](std::size_t expert) const { return experts_[expert]; }
  auto begin() { return experts_.begin(); }
  auto begin() const { return experts_.begin(); }
  auto end() { return experts_.end(); }
  auto end() const { return experts_.end(); }

 protected:
  ~ExpertList() = default;
  ExpertList(const ExpertList&) = default;
  ExpertList(ExpertList&&) noexcept = default;
  ExpertList& operator=(const ExpertList&) = default;
  ExpertList& operator=(ExpertList&&) noexcept = default;

  const E& of(Index expert) const { return experts_[static_cast<std::size_t>(expert)]; }

  /// As check_params, of the experts that have rows only: a token may have few of thousands.
  void check_used(const RowGroups& groups) const {
    for (Index e = 0; e < num_experts(); ++e) {
      if (groups.begin(e) < groups.end(e)) {
        check_expert(e, {"experts"});
      }
    }
  }

 private:
  void check_expert(Index e, const ParameterName& name) const {
    const E& expert = of(e);
    detail::throw_unless(expert.d_in() == d_in() && expert.d_out() == d_out(), "experts: one is ",
                         expert.d_in(), " to ", expert.d_out(), " wide, expected ", d_in(), " to ",
                         d_out());
    moe::check_params(expert, {name.word, e, name.part});
  }

  std::vector<E> experts_;
};

/// A vector of experts that train: has what WalksParams asks for.
template <class E>
class TrainableExpertList : public ExpertList<E> {
 public:
  using Grads = std::vector<GradsOf<E>>;  ///< of each expert

  using ExpertList<E>::ExpertList;

  Grads zero_grads() const {
    Grads grads;
    grads.reserve(this->size());
    for (const E& expert : *this) {
      grads.push_back(zero_grads_of(expert));
    }
    return grads;
  }

  /// Names are those of an expert's tensors behind `name` and its number. Throws
  /// std::invalid_argument if one of `params` is of another number of experts.
  template <class List, class Visit, class... P>
  static void walk(List& list, const ParameterName& name, Visit&& visit, P&... params) {
    (detail::throw_unless(params.size() == list.size(), "gradient ", name.word, " has ",
                          params.size(), " experts, expected ", list.size()),
     ...);
    for (std::size_t e = 0; e < list.size(); ++e) {
      const ParameterName expert{name.word, static_cast<Index>(e), name.part};
      walk_params(list[e], expert, visit, params[e]...);
    }
  }

 protected:
  /// What backward asks beside a tape of its own: the groups of the forward to which the tape's
  /// parts belong, and gradients of the shapes of what they are of. Throws std::invalid_argument
  /// otherwise.
  template <Real T, class Tape, class Grads>
  void check_set_backward(const ExpertInput<T>& input, const ConstMatrixRef<T>& drows,
                          const Tape& tape, MatrixRef<T>& dx_rows, const Grads& grads) const {
    input.groups.validate(this->num_experts(), input.x.rows());
    const Index rows = input.groups.num_rows(), width = this->d_in();
    detail::check_shape(input.x, input.x.rows(), width, "experts: x");
    detail::check_shape(drows, rows, this->d_out(), "experts: drows");
    detail::check_shape(dx_rows, rows, width, "experts: dx_rows");
    detail::throw_unless(grads.size() == this->size(), "gradient experts has ", grads.size(),
                         " experts, expected ", this->size());
    const Index taped = tape.parts.empty() ? 0 : tape.parts.back().end;
    detail::throw_unless(taped == rows && tape.gathered.rows() == (input.in_order() ? 0 : rows),
                         "experts: the tape is of ", taped, " rows of another input, expected the ",
                         rows, " of this one");
    check_owner(tape.owner, {"experts"});
    detail::throw_unless(
        are_parts_of(tape.parts, input.groups),
        "experts: the tape is of other groups of rows, expected those of this input");
    this->check_used(input.groups);
    for (const GroupPart& part : tape.parts) {
      check_grads(this->of(part.expert), {"experts", part.expert},
                  grads[static_cast<std::size_t>(part.expert)]);
    }
  }

  void check_owner(const detail::Owner& owner, const ParameterName& name) const {
    detail::check_own(owner.is(identity_), name,
                      "the tape is of another set of experts, expected this one's");
  }
  void own(detail::Owner& owner) const { owner.set(identity_); }

 private:
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
