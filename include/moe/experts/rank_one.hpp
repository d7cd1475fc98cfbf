// SPDX-License-Identifier: Apache-2.0
// RankOneExperts<T>: very many experts of one hidden number each (He 2024, PEER; CDMoE of Doge).
// Tokens are not gathered by expert: a choice is a dot product and a multiple of a row.
//
//   y += weight_e act(x . down_e) up_e
#pragma once

#include <utility>
#include <vector>

#include "../detail/identity.hpp"
#include "../detail/part.hpp"
#include "../detail/random.hpp"
#include "../detail/reserve.hpp"
#include "../dispatch/plan.hpp"
#include "../flops.hpp"
#include "../kernels/row_sums.hpp"
#include "../parameters.hpp"
#include "../routing_table.hpp"
#include "activation.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// (E, D) and (E, D_out), or their Shape.
template <class Tensor>
struct RankOneTensors {
  Tensor down = {}, up = {};

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("down"), p.down...);
    visit(std::string_view("up"), p.up...);
  }
};
template <Real T>
using RankOneParams = RankOneTensors<Matrix<T>>;

/// What experts of rank one cost, by their sizes and their activation.
struct RankOneShape {
  Index d_in, d_out;
  ExpertConfig kind;

  Index parameters() const { return d_in + d_out; }
  /// Of so many choices.
  Flops forward_flops(Index choices) const {
    return with_activation(kind, [&](auto act) {
      return choices * detail::flops_of_one(2 * parameters(), act.value_flops + 1);
    });
  }
  /// Without the sums with gradients that are there, one for each expert and token.
  Flops backward_flops(Index choices) const {
    return with_activation(kind, [&](auto act) {
      return choices *
             detail::flops_of_one(4 * parameters(), act.value_flops + act.derivative_flops + 3);
    });
  }
};

/// Tokens, the experts and weights (N, K) that they have, and the threads to use.
template <Real T>
struct RankOneInput {
  ConstMatrixRef<T> x;
  const RoutingTable<Wide<T>>& table;
  int threads = 1;

  Index num_choices() const { return table.num_tokens() * table.top_k(); }
  Index token_of(Index choice) const { return choice / table.top_k(); }
};

template <Real T>
class RankOneExperts {
 public:
  using W = Wide<T>;
  using Params = RankOneParams<T>;
  using Grads = RankOneParams<W>;

  struct Scratch {
    GrowingMatrix<W> inner;  ///< (N, K) x . down
    GrowingMatrix<W> outer;  ///< (N, K) weight * act(inner)
  };
  struct Tape : Scratch {
    GrowingMatrix<W> dinner;               ///< (N, K)
    GrowingMatrix<W> dweight;              ///< (N, K)
    std::vector<W> row_outer, row_dinner;  ///< (S) in order of experts
    detail::Owner owner;                   ///< whose forward it holds
  };

  struct Sizes {
    Index d_in, num_experts, d_out;
  };

  /// Weights from N(0, 1 / D) and N(0, 1 / D_out). Of the config the activation matters, with its
  /// alpha or bound. Throws std::invalid_argument if it is not valid or a size is not above 0.
  RankOneExperts(const Sizes& sizes, const ExpertConfig& config, std::uint64_t seed)
      : RankOneExperts(random_params(checked(sizes), seed), config) {}
  /// Takes ready weights. Throws std::invalid_argument also if they are not as many each.
  RankOneExperts(Params params, const ExpertConfig& config)
      : config_(config),
        sizes_{params.down.cols(), params.down.rows(), params.up.cols()},
        params_(std::move(params)) {
    config.validate();
    checked(sizes_);
    check_params({"experts"});
  }

  Index num_experts() const { return sizes_.num_experts; }
  Index d_in() const { return sizes_.d_in; }
  Index d_out() const { return sizes_.d_out; }
  const ExpertConfig& config() const { return config_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }
  RankOneTensors<Shape> shapes() const {
    return {.down = {num_experts(), d_in()}, .up = {num_experts(), d_out()}};
  }
  void check_params(const ParameterName& name) const { check_shapes(params_, shapes(), name); }
  /// Throws std::invalid_argument unless the tape is of the last forward of this very object.
  void check_tape(const Tape& tape, const ParameterName& name) const {
    detail::check_own(tape.owner.is(identity_), name,
                      "the tape is of another set of experts, expected this one's");
  }
  void own(Tape& tape) const { tape.owner.set(identity_); }

  double multiply_adds(Index choices) const {
    return static_cast<double>(choices) * static_cast<double>(d_in() + d_out());
  }

  /// memory.inner and memory.outer = of each choice that is not `none`; the others are not read.
  void activate(const RankOneInput<T>& input, Scratch& memory) const;
  /// y (N, D_out) = the sum of the experts' outputs, plus base, if it is not null. After activate,
  /// when x is no longer read.
  void combine(const RankOneInput<T>& input, const Scratch& memory, const MatrixRef<T>* base,
               MatrixRef<T> y) const {
    mix(
        params_.up, input, memory.outer,
        [&](Index token) {
          return BaseRows(base == nullptr ? nullptr : &base->coeffRef(token, 0));
        },
        y);
  }

  /// tape.dweight = and grads +=, from dy (N, D_out) and the plan of all choices.
  void backward(const RankOneInput<T>& input, ConstMatrixRef<T> dy, const DispatchPlan& plan,
                Tape& tape, Grads& grads) const;
  /// dx (N, D) += after backward, and also += other, if it is not null.
  void input_backward(const RankOneInput<T>& input, const Tape& tape, const MatrixRef<T>* other,
                      MatrixRef<T> dx) const {
    mix(
        params_.down, input, tape.dinner,
        [&](Index token) {
          return BaseRows(&dx.coeffRef(token, 0),
                          other == nullptr ? nullptr : &other->coeffRef(token, 0));
        },
        dx);
  }

 private:
  using BaseRows = kernels::BaseRows<T>;

  static const Sizes& checked(const Sizes& sizes) {
    detail::throw_unless(sizes.d_in > 0 && sizes.num_experts > 0 && sizes.d_out > 0,
                         "RankOneExperts: sizes ", sizes.d_in, ", ", sizes.num_experts, ", ",
                         sizes.d_out, ", expected above 0");
    return sizes;
  }
  static Params random_params(const Sizes& sizes, std::uint64_t seed) {
    Params params{Matrix<T>(sizes.num_experts, sizes.d_in),
                  Matrix<T>(sizes.num_experts, sizes.d_out)};
    detail::fill_normal(params.down, seed, 0);
    detail::fill_normal(params.up, seed, 1);
    return params;
  }

  /// body(choice, token, expert) for each choice that is used.
  template <class Body>
  static void for_choices(const RankOneInput<T>& input, Body&& body) {
    detail::for_rows(input.num_choices(), input.threads, [&](Index choice) {
      if (const ExpertId e = input.table.expert.data()[choice]; e != none) {
        body(choice, input.token_of(choice), e);
      }
    });
  }

  /// to (N, cols) = base_of(token) + the sum of factor (N, K) times the rows of a token's experts.
  /// Few tokens are cut by columns, so that each thread has some. Padding stays as it is.
  template <class BaseOf>
  static void mix(const Matrix<T>& rows, const RankOneInput<T>& input,
                  const GrowingMatrix<W>& factor, BaseOf&& base_of, MatrixRef<T> to) {
    constexpr Index step = 64;  // columns
    const Index tokens = input.table.num_tokens(), top_k = input.table.top_k();
    const Index parts = detail::parts_of_each(tokens, input.threads, 1);
    detail::parallel_for(tokens * parts, input.threads, [&](Index item, int) {
      const Index token = item / parts;
      const detail::Part part{item % parts, parts};
      const Index begin = part.begin(rows.cols(), step), cols = part.end(rows.cols(), step) - begin;
      if (cols <= 0 || input.table.is_padding(token)) {
        return;
      }
      BaseRows base = base_of(token);
      base.first = base.first == nullptr ? nullptr : base.first + begin;
      base.second = base.second == nullptr ? nullptr : base.second + begin;
      kernels::mix_rows<T, ExpertId, T>(
          rows.middleCols(begin, cols),
          {&input.table.expert.coeffRef(token, 0), static_cast<std::size_t>(top_k)},
          &factor.coeffRef(token, 0), base, &to.coeffRef(token, begin));
    });
  }

  void add_gradients(const RankOneInput<T>& input, const ConstMatrixRef<T>& dy,
                     const DispatchPlan& plan, Tape& tape, Grads& grads) const;

  ExpertConfig config_;
  Sizes sizes_;
  Params params_;
  detail::Identity identity_;
};

template <Real T>
void RankOneExperts<T>::activate(const RankOneInput<T>& input, Scratch& memory) const {
  const auto& table = input.table;
  memory.inner.resize(table.num_tokens(), table.top_k());
  memory.outer.resize(table.num_tokens(), table.top_k());
  with_activation(config_, [&](auto kind) {
    for_choices(input, [&](Index choice, Index token, Index e) {
      const W inner =
          kernels::dot(&input.x.coeffRef(token, 0), &params_.down.coeffRef(e, 0), d_in());
      memory.inner.data()[choice] = inner;
      memory.outer.data()[choice] = table.weight.data()[choice] * kind.value(inner);
    });
  });
}

template <Real T>
void RankOneExperts<T>::backward(const RankOneInput<T>& input, ConstMatrixRef<T> dy,
                                 const DispatchPlan& plan, Tape& tape, Grads& grads) const {
  const auto& table = input.table;
  tape.dinner.resize(table.num_tokens(), table.top_k());
  tape.dweight.setZero(table.num_tokens(), table.top_k());
  with_activation(config_, [&](auto kind) {
    for_choices(input, [&](Index choice, Index token, Index e) {
      const W inner = tape.inner.data()[choice], weight = table.weight.data()[choice];
      const W slope = kernels::dot(&dy.coeffRef(token, 0), &params_.up.coeffRef(e, 0), d_out());
      tape.dweight.data()[choice] = slope * kind.value(inner);
      tape.dinner.data()[choice] = weight * slope * kind.derivative(inner);
    });
  });
  add_gradients(input, dy, plan, tape, grads);
}

/// Whoever has an expert adds up its tokens, in their order.
template <Real T>
void RankOneExperts<T>::add_gradients(const RankOneInput<T>& input, const ConstMatrixRef<T>& dy,
                                      const DispatchPlan& plan, Tape& tape, Grads& grads) const {
  detail::grow(tape.row_outer, plan.num_rows());
  detail::grow(tape.row_dinner, plan.num_rows());
  detail::for_rows(plan.num_rows(), input.threads, [&](Index row) {
    const auto at = static_cast<std::size_t>(row);
    const Index token = plan.token()[at], k = plan.choice()[at];
    tape.row_outer[at] = tape.outer(token, k);
    tape.row_dinner[at] = tape.dinner(token, k);
  });
  detail::for_rows(num_experts(), input.threads, [&](Index e) {
    const auto first = static_cast<std::size_t>(plan.offset()[static_cast<std::size_t>(e)]);
    const auto tokens = plan.token().subspan(first, static_cast<std::size_t>(plan.kept(e)));
    if (tokens.empty()) {
      return;
    }
    W* const ddown = &grads.down.coeffRef(e, 0);
    W* const dup = &grads.up.coeffRef(e, 0);
    kernels::mix_rows<T, Index, W>(input.x, tokens, tape.row_dinner.data() + first, ddown, ddown);
    kernels::mix_rows<T, Index, W>(dy, tokens, tape.row_outer.data() + first, dup, dup);
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
