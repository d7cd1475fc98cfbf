// SPDX-License-Identifier: Apache-2.0
// The routed rows of a call through their experts, in expert order: forward, and backward for the
// rows and for the parameters. Threads share a staged expert by columns; any other takes its tiles
// as a whole.
#pragma once

#include <vector>

#include "../concepts.hpp"
#include "../detail/part.hpp"
#include "../detail/reserve.hpp"
#include "../dispatch/plan.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// The expert works in stages that threads share by columns, as Expert does: one expert with many
/// rows, or one row, then keeps all of them busy. Its memory holds the rows of all experts.
template <class E, class T>
concept StagedExpert = TrainableExpert<E, T> &&
    requires(const E& expert, ConstMatrixRef<T> x, MatrixRef<T> y, typename E::Scratch& scratch,
             typename E::Tape& tape, typename E::Params& grads) {
  expert.reserve(scratch, Index{});
  expert.forward_hidden(x, scratch, Index{}, detail::Part{});
  expert.forward_output(scratch, Index{}, y, detail::Part{});
  expert.reserve(tape, Index{});
  expert.forward_hidden(x, tape, Index{}, detail::Part{});
  expert.forward_output(tape, Index{}, y, detail::Part{});
  expert.backward_gate(x, tape, Index{});
  expert.backward_hidden(x, tape, Index{}, detail::Part{});
  expert.backward_input(tape, Index{}, y, detail::Part{});
  expert.backward_params({x, x, Index{}}, tape, grads, detail::Part{});
};

/// Made for one call. x, dx are (S, D_in), y, dy (S, D_out); all may be higher and wider than that.
/// Memory: of a staged expert one for all rows, else a scratch for each thread or a tape for each
/// tile. It only grows.
template <Real T, ExpertLike<T> ExpertT>
class ExpertRows {
 public:
  ExpertRows(const std::vector<ExpertT>& experts, const DispatchPlan& plan, int threads)
      : experts_(experts), plan_(plan), threads_(threads) {}

  /// y = the experts' outputs for x.
  void forward(const Matrix<T>& x, Matrix<T>& y,
               std::vector<typename ExpertT::Scratch>& scratch) const {
    if constexpr (staged) {
      forward_staged(x, y, scratch);
    } else {
      reserve_for_threads(scratch);
      for_tiles([&](const Tile& tile, std::size_t, std::size_t worker) {
        expert(tile).forward(inputs(x, tile), outputs(y, tile), scratch[worker]);
      });
    }
  }

  /// The same y, and the tapes for backward.
  template <class Tape>
  void forward_taped(const Matrix<T>& x, Matrix<T>& y, std::vector<Tape>& tapes) const {
    if constexpr (staged) {
      forward_staged(x, y, tapes);
    } else {
      detail::grow(tapes, num_tiles());
      for_tiles([&](const Tile& tile, std::size_t number, std::size_t) {
        expert(tile).forward(inputs(x, tile), outputs(y, tile), tapes[number]);
      });
    }
  }

  /// dx = the gradient of x.
  template <class Tape>
  void backward(const Matrix<T>& x, const Matrix<T>& dy, Matrix<T>& dx,
                std::vector<Tape>& tapes) const;

  /// grads +=, after backward with the same tapes: each expert's tiles in their order.
  template <class Tape, class Params>
  void backward_params(const Matrix<T>& x, const Matrix<T>& dy, std::vector<Tape>& tapes,
                       std::vector<Params>& grads) const;

 private:
  static constexpr bool staged = StagedExpert<ExpertT, T>;

  Index num_tiles() const { return static_cast<Index>(plan_.tiles().size()); }
  const Tile& tile_at(Index number) const {
    return plan_.tiles()[static_cast<std::size_t>(number)];
  }
  const ExpertT& expert(const Tile& tile) const {
    return experts_[static_cast<std::size_t>(tile.expert)];
  }
  ConstMatrixRef<T> inputs(const Matrix<T>& rows, const Tile& tile) const {
    return rows.block(tile.begin, 0, tile.rows(), experts_.front().d_in());
  }
  MatrixRef<T> inputs(Matrix<T>& rows, const Tile& tile) const {
    return rows.block(tile.begin, 0, tile.rows(), experts_.front().d_in());
  }
  ConstMatrixRef<T> outputs(const Matrix<T>& rows, const Tile& tile) const {
    return rows.block(tile.begin, 0, tile.rows(), experts_.front().d_out());
  }
  MatrixRef<T> outputs(Matrix<T>& rows, const Tile& tile) const {
    return rows.block(tile.begin, 0, tile.rows(), experts_.front().d_out());
  }

  /// body(tile, part) for every part of every tile.
  template <class Body>
  void for_stage(Body&& body) const {
    detail::for_parts(num_tiles(), threads_,
                      [&](Index number, detail::Part part, int) { body(tile_at(number), part); });
  }
  /// body(tile, its number, worker) for every tile.
  template <class Body>
  void for_tiles(Body&& body) const {
    detail::parallel_for(num_tiles(), threads_, [&](Index number, int worker) {
      body(tile_at(number), static_cast<std::size_t>(number), static_cast<std::size_t>(worker));
    });
  }

  template <class Memory>
  void forward_staged(const Matrix<T>& x, Matrix<T>& y, std::vector<Memory>& memory) const;
  void reserve_for_threads(std::vector<typename ExpertT::Scratch>& scratch) const;

  const std::vector<ExpertT>& experts_;
  const DispatchPlan& plan_;
  int threads_;
};

template <Real T, ExpertLike<T> ExpertT>
template <class Memory>
void ExpertRows<T, ExpertT>::forward_staged(const Matrix<T>& x, Matrix<T>& y,
                                            std::vector<Memory>& memory) const {
  memory.resize(1);
  Memory& rows = memory.front();
  for (const ExpertT& e : experts_) {  // they may differ in width
    e.reserve(rows, plan_.slot().size());
  }
  for_stage([&](const Tile& tile, detail::Part part) {
    expert(tile).forward_hidden(inputs(x, tile), rows, tile.begin, part);
  });
  for_stage([&](const Tile& tile, detail::Part part) {
    expert(tile).forward_output(rows, tile.begin, outputs(y, tile), part);
  });
}

/// All at once: a worker may meet its largest tile many calls from now.
template <Real T, ExpertLike<T> ExpertT>
void ExpertRows<T, ExpertT>::reserve_for_threads(
    std::vector<typename ExpertT::Scratch>& scratch) const {
  detail::grow(scratch, threads_);
  if constexpr (requires { experts_.front().reserve(scratch.front(), Index{}); }) {
    for (auto& memory : scratch) {
      experts_.front().reserve(memory, std::min(plan_.slot().rows(), DispatchPlan::tile_rows));
    }
  }
}

template <Real T, ExpertLike<T> ExpertT>
template <class Tape>
void ExpertRows<T, ExpertT>::backward(const Matrix<T>& x, const Matrix<T>& dy, Matrix<T>& dx,
                                      std::vector<Tape>& tapes) const {
  if constexpr (staged) {
    Tape& rows = tapes.front();
    for_tiles([&](const Tile& tile, std::size_t, std::size_t) {
      expert(tile).backward_gate(outputs(dy, tile), rows, tile.begin);
    });
    for_stage([&](const Tile& tile, detail::Part part) {
      expert(tile).backward_hidden(outputs(dy, tile), rows, tile.begin, part);
    });
    for_stage([&](const Tile& tile, detail::Part part) {
      expert(tile).backward_input(rows, tile.begin, inputs(dx, tile), part);
    });
  } else {
    for_tiles([&](const Tile& tile, std::size_t number, std::size_t) {
      expert(tile).backward_input(inputs(x, tile), outputs(dy, tile), tapes[number],
                                  inputs(dx, tile));
    });
  }
}

template <Real T, ExpertLike<T> ExpertT>
template <class Tape, class Params>
void ExpertRows<T, ExpertT>::backward_params(const Matrix<T>& x, const Matrix<T>& dy,
                                             std::vector<Tape>& tapes,
                                             std::vector<Params>& grads) const {
  // Idle experts have nothing to divide.
  const Index parts = staged ? detail::parts_of_each(plan_.num_active(), threads_) : 1;
  detail::parallel_for(plan_.num_experts() * parts, threads_, [&](Index item, int) {
    const auto [first, last] = plan_.tiles_of(item / parts);
    auto& grad = grads[static_cast<std::size_t>(item / parts)];
    for (std::size_t number = first; number < last; ++number) {
      const Tile& tile = plan_.tiles()[number];
      if constexpr (staged) {
        expert(tile).backward_params({inputs(x, tile), outputs(dy, tile), tile.begin},
                                     tapes.front(), grad, detail::Part{item % parts, parts});
      } else {
        expert(tile).backward_params(inputs(x, tile), outputs(dy, tile), tapes[number], grad);
      }
    }
  });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
