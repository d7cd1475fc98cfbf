// SPDX-License-Identifier: Apache-2.0
// SlotRouter: the decision of Soft MoE. A gate gives every token a logit for each slot; a slot is
// the mean of all tokens of its sequence by a softmax over them, and a token the mean of all slots
// by a softmax over these (Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts).
//
// Looks across the batch, and is not causal: each token is in all slots of its sequence. Nothing is
// dropped, and nothing has to be balanced.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../detail/identity.hpp"
#include "../kernels/softmax.hpp"
#include "concepts.hpp"
#include "score.hpp"
#include "unit_gate.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// What each token gives to each slot, and takes of it. Sequence b has the tokens [begin[b],
/// begin[b + 1]), and S slots of its own.
template <class GateTable, Real W>
struct SlotTable {
  GateTable gate;             ///< its logits are (N, S)
  std::vector<Index> begin;   ///< (B + 1)
  GrowingMatrix<W> dispatch;  ///< (S, N) the part of a token in each slot; sums to 1 over those
                              ///< of its sequence
  GrowingMatrix<W> combine;   ///< (N, S) the part of a slot in each token; sums to 1 over slots
  int num_threads = 1;        ///< of the call, for its backward
  detail::Owner owner;        ///< the router that wrote it, to go back from

  Index num_tokens() const { return combine.rows(); }
  Index num_sequences() const { return static_cast<Index>(begin.size()) - 1; }
  Sequence sequence(Index number) const {
    const auto b = static_cast<std::size_t>(number);
    return {begin[b], begin[b + 1]};
  }
};

/// The gradient of a scalar with respect to a SlotTable. Backward uses it up.
template <Real W>
struct SlotGradient {
  GrowingMatrix<W> dispatch;  ///< (S, N)
  GrowingMatrix<W> combine;   ///< (N, S)
  RoutingGradient<W> gate;    ///< memory of backward
};

/// FLOPs of a SlotRouter of this gate: both softmaxes are over as many logits.
template <class Gate>
Flops slot_router_forward_flops(const Gate& gate, Index tokens) {
  return gate.forward_flops(tokens) +
         tokens * detail::flops_of_one(0, 2 * score_flops(Score::softmax, gate.num_experts()));
}
template <class Gate>
Flops slot_router_backward_flops(const Gate& gate, Index tokens) {
  const Index logits = 2 * score_gradient_flops(Score::softmax, gate.num_experts());
  return gate.backward_flops(tokens) +
         tokens * detail::flops_of_one(0, logits - gate.num_experts());
}

/// T is the scalar of the tokens. Parameters, and everything computed, are Wide<T>: float at least.
/// The num_experts() of the gate are slots.
template <Real T, GateLike<T> Gate = UnitGate<T>>
class SlotRouter {
 public:
  using W = Wide<T>;
  using Params = typename Gate::Params;
  using Table = SlotTable<typename Gate::Table, W>;

  /// Takes ready parts. Throws std::invalid_argument unless the parameters have their shapes.
  SlotRouter(Gate gate, Params params) : gate_(std::move(gate)), params_(std::move(params)) {
    check_params({"SlotRouter"});
  }

  Index d_model() const { return gate_.d_model(); }
  Index num_slots() const { return gate_.num_experts(); }
  double multiply_adds(Index rows) const {
    return detail::multiply_adds(gate_, rows) +
           16.0 * static_cast<double>(rows) * static_cast<double>(num_slots());
  }
  /// Of so many tokens, where the gate states its own.
  template <StatesFlops G = Gate>
  Flops forward_flops(Index tokens) const {
    return slot_router_forward_flops(gate_, tokens);
  }
  template <StatesBackwardFlops G = Gate>
  Flops backward_flops(Index tokens) const {
    return slot_router_backward_flops(gate_, tokens);
  }
  const Gate& gate() const { return gate_; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  /// Throws std::invalid_argument unless the parameters have the shapes() of the gate, if it has
  /// any; `name` is the router's.
  void check_params(const ParameterName& name) const {
    if constexpr (requires { gate_.shapes(); }) {
      check_shapes(params_, gate_.shapes(), name);
    }
  }

  /// Throws std::invalid_argument unless this very object wrote the table.
  void check_tape(const Table& table, const ParameterName& name) const {
    detail::check_own(table.owner.is(identity_), name,
                      "the table is of another router, expected this one's");
  }

  /// Writes the table for x (N, D), of which all rows are tokens, in the sequences of table.begin,
  /// each of at least one, on table.num_threads threads.
  void route(ConstMatrixRef<T> x, const CallOptions& call, Table& table) const {
    const Index num_tokens = x.rows();
    table.owner.clear();
    table.gate.num_threads = table.num_threads;
    table.gate.noise_seed = call.noise_seed;
    gate_.forward(params_, x, call, table.gate);
    detail::check_shape(table.gate.logits, num_tokens, num_slots(), "SlotRouter: logits");
    table.combine.resize(num_tokens, num_slots());
    table.dispatch.resize(num_slots(), num_tokens);
    transpose(table.gate.logits, table.num_threads, table.dispatch);
    detail::for_rows(num_tokens, table.num_threads, [&](Index token) {
      kernels::softmax(&table.gate.logits.coeffRef(token, 0), num_slots(),
                       &table.combine.coeffRef(token, 0));
    });
    for_each_softmax(table, [&](Index slot, const Sequence& sequence) {
      W* const row = &table.dispatch.coeffRef(slot, sequence.begin);
      kernels::softmax(row, sequence.end - sequence.begin, row);
    });
    table.owner.set(identity_);
  }

  /// dx (N, D) = and grads +=, from the gradient of the table of a route of x.
  void backward(ConstMatrixRef<T> x, const Table& table, SlotGradient<W>& gradient, MatrixRef<T> dx,
                Params& grads) const requires TrainableGate<Gate, T> {
    const int threads = table.num_threads;
    GrowingMatrix<W>& dlogits = gradient.gate.logits;
    dlogits.resize(x.rows(), num_slots());
    for_each_softmax(table, [&](Index slot, const Sequence& sequence) {
      kernels::softmax_backward(&table.dispatch.coeffRef(slot, sequence.begin),
                                sequence.end - sequence.begin,
                                &gradient.dispatch.coeffRef(slot, sequence.begin));
    });
    transpose(gradient.dispatch, threads, dlogits);
    detail::for_rows(x.rows(), threads, [&](Index token) {
      W* const of_combine = &gradient.combine.coeffRef(token, 0);
      kernels::softmax_backward(&table.combine.coeffRef(token, 0), num_slots(), of_combine);
      for (Index slot = 0; slot < num_slots(); ++slot) {
        dlogits(token, slot) += of_combine[slot];
      }
    });
    gradient.gate.noise_scale.setZero(table.gate.noise_scale.rows(), table.gate.noise_scale.cols());
    gate_.backward_input(params_, x, table.gate, gradient.gate, dx);
    gate_.backward_params(params_, x, table.gate, gradient.gate, grads);
  }

 private:
  /// to = from^T, in squares that stay in a cache.
  static void transpose(const GrowingMatrix<W>& from, int threads, GrowingMatrix<W>& to) {
    constexpr Index size = 32;
    const Index rows = to.rows(), cols = to.cols(), across = (cols + size - 1) / size;
    detail::parallel_for((rows + size - 1) / size * across, threads, [&](Index item, int) {
      const Index row = item / across * size, col = item % across * size;
      const Index last_row = (std::min)(row + size, rows), last_col = (std::min)(col + size, cols);
      for (Index r = row; r < last_row; ++r) {
        for (Index c = col; c < last_col; ++c) {
          to(r, c) = from(c, r);
        }
      }
    });
  }

  /// body(slot, sequence) for each slot of each sequence.
  template <class Body>
  void for_each_softmax(const Table& table, Body&& body) const {
    detail::for_rows(num_slots() * table.num_sequences(), table.num_threads, [&](Index item) {
      body(item % num_slots(), table.sequence(item / num_slots()));
    });
  }

  Gate gate_;
  Params params_;
  detail::Identity identity_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
