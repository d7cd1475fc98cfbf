// SPDX-License-Identifier: Apache-2.0
// DenseFfn<T>: a feed-forward that every token takes, and that trains. The dense baseline, and the
// shared expert beside the routed ones.
#pragma once

#include <optional>
#include <vector>

#include "../detail/identity.hpp"
#include "dense.hpp"
#include "ffn_experts.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
class DenseFfn : public Dense<T, FfnExperts<T>> {
  using Base = Dense<T, FfnExperts<T>>;

 public:
  using Params = typename Expert<T>::Params;
  using Grads = typename Expert<T>::Grads;
  using Base::d_in, Base::d_out;

  /// What backward needs of a forward.
  struct Tape {
    typename FfnExperts<T>::Tape set;
    TokenRows tokens;
    GrowingMatrix<T> rows, drows,
        dx_rows;          ///< (tokens, d_out) twice, (tokens, d_in), with padding only
    detail::Owner owner;  ///< the layer whose forward it holds
    Index num_tokens = 0;
    int num_threads = 1;
  };

  DenseFfn(typename Expert<T>::Sizes sizes, const ExpertConfig& config, std::uint64_t seed)
      : DenseFfn(Expert<T>(sizes, config, seed)) {}
  explicit DenseFfn(Expert<T> expert)
      : Base(FfnExperts<T>(std::vector<Expert<T>>(1, std::move(expert)))) {}

  const Expert<T>& expert() const { return this->set()[0]; }
  /// Of so many rows.
  Flops forward_flops(Index rows) const { return expert().shape().forward_flops(rows); }
  Flops backward_flops(Index rows) const { return expert().shape().backward_flops(rows); }
  Params& params() { return this->set()[0].params(); }
  const Params& params() const { return expert().params(); }

  /// Gradients of zero, in float at least.
  Grads zero_grads() const { return zero_grads_of(*this); }
  /// visit(name, parameter, grad...) for each tensor that it has, as MoELayer has it.
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) {
    walk_params(*this, {}, detail::visit_existing(visit), grads...);
  }
  template <class Visit, class... G>
  void for_each_parameter(Visit&& visit, G&... grads) const {
    walk_params(*this, {}, detail::visit_existing(visit), grads...);
  }

  using Base::forward;
  /// Training: the same y, and a tape for backward.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape, const CallOptions& call = {}) const;

  /// dx (N, d_in) = and grads +=, from dy (N, d_out) and the tape of forward(x). Throws
  /// std::invalid_argument on other shapes, a tape of another layer or of another expert in it, or
  /// if dx overlaps x or dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Grads& grads) const;

  /// Whether the tape is of a forward of this very object.
  bool owns(const Tape& tape) const { return tape.owner.is(identity_); }
  /// Throws std::invalid_argument unless it is, and of the expert that stands in it.
  void check_tape(const Tape& tape, const ParameterName& name) const {
    detail::check_own(owns(tape), name, "the tape is of another layer, expected this one's");
    this->set().check_tape(tape.set, name);
  }

 private:
  void backward_tokens(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                       Grads& grads) const;

  detail::Identity identity_;
};

template <Real T>
void DenseFfn<T>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
                          const CallOptions& call) const {
  this->check_call(x, y, call);
  tape.num_threads = detail::num_threads(call.num_threads, this->multiply_adds(x.rows()));
  tape.owner.clear();
  this->compute(x, y, tape, call);
  tape.num_tokens = x.rows();
  tape.owner.set(identity_);
}

template <Real T>
void DenseFfn<T>::backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                           Grads& grads) const {
  check_tape(tape, {"DenseFfn"});
  detail::check_shape(x, tape.num_tokens, d_in(), "DenseFfn: x");
  detail::check_shape(dy, x.rows(), d_out(), "DenseFfn: dy");
  detail::check_shape(dx, x.rows(), d_in(), "DenseFfn: dx");
  detail::throw_unless(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                       "DenseFfn: dx overlaps x or dy, expected memory of its own");
  this->check_params({"DenseFfn"});
  check_grads(*this, {"DenseFfn"}, grads);
  detail::with_team(tape.num_threads, [&] { backward_tokens(x, dy, tape, dx, grads); });
}

template <Real T>
void DenseFfn<T>::backward_tokens(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape,
                                  MatrixRef<T> dx, Grads& grads) const {
  const int threads = tape.num_threads;
  const Index count = tape.tokens.count();
  const ExpertInput<T> input{x, tape.tokens.groups()};
  if (!tape.tokens.has_padding()) {
    return this->set().backward(input, dy, tape.set, dx, {&grads, 1}, threads);
  }
  tape.dx_rows.resize(count, d_in());
  const auto drows = gather_rows<T>({dy, tape.tokens.groups()}, tape.drows, threads);
  this->set().backward(input, drows, tape.set, tape.dx_rows, {&grads, 1}, threads);
  tape.tokens.template spread<T>(tape.dx_rows, dx, threads);
}

/// The shared expert of a config, if it has one, with random weights from the seed.
template <Real T>
std::optional<DenseFfn<T>> make_shared_expert(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  if (!config.shared) {
    return std::nullopt;
  }
  return DenseFfn<T>({config.d_model, config.shared->d_ff, config.output_width()},
                     config.shared_expert(), detail::seed_of(seed, 1));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
