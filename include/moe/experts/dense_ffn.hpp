// SPDX-License-Identifier: Apache-2.0
// DenseFfn<T>: one expert that every token takes, shared among threads by tiles of tokens and by
// columns. The dense baseline, and the shared expert beside the routed ones.
#pragma once

#include <optional>

#include "../concepts.hpp"
#include "../detail/identity.hpp"
#include "../detail/parallel.hpp"
#include "../dispatch/plan.hpp"
#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
class DenseFfn {
 public:
  using Params = typename Expert<T>::Params;

  /// Memory of a call. Reused: it allocates only while it grows.
  struct Scratch {
    typename Expert<T>::Scratch rows;
  };

  /// What backward needs of a forward.
  struct Tape {
    typename Expert<T>::Tape rows;
    std::uint64_t owner = 0;  ///< the identity of the layer
    Index num_tokens = 0;
    int num_threads = 1;
  };

  DenseFfn(typename Expert<T>::Sizes sizes, const ExpertConfig& config, std::uint64_t seed)
      : expert_(sizes, config, seed) {}
  explicit DenseFfn(Expert<T> expert) : expert_(std::move(expert)) {}

  Index d_in() const { return expert_.d_in(); }
  Index d_out() const { return expert_.d_out(); }
  const Expert<T>& expert() const { return expert_; }
  Params& params() { return expert_.params(); }
  const Params& params() const { return expert_.params(); }

  /// y (N, d_out) = f(x (N, d_in)). Throws std::invalid_argument on other shapes or if y overlaps
  /// x. Of the options only num_threads matters.
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
               const CallOptions& call = {}) const;
  void forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape, const CallOptions& call = {}) const;

  /// dx (N, d_in) = and grads +=, from dy (N, d_out) and the tape of forward(x). Throws
  /// std::invalid_argument on other shapes, a tape of another layer, or if dx overlaps x or dy.
  void backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                Params& grads) const;

 private:
  static constexpr Index tile_rows = DispatchPlan::tile_rows;

  void check_forward(const ConstMatrixRef<T>& x, const MatrixRef<T>& y) const {
    detail::check_shape(x, x.rows(), d_in(), "DenseFfn: x");
    detail::check_shape(y, x.rows(), d_out(), "DenseFfn: y");
    detail::check(!detail::overlap(x, y), "DenseFfn: y overlaps x, expected memory of its own");
  }

  /// body(begin, rows, part) for every part of every tile of num_tokens.
  template <class Body>
  static void for_stage(Index num_tokens, int threads, Body&& body) {
    detail::for_parts((num_tokens + tile_rows - 1) / tile_rows, threads,
                      [&](Index tile, detail::Part part, int) {
                        const Index begin = tile * tile_rows;
                        body(begin, std::min(tile_rows, num_tokens - begin), part);
                      });
  }

  /// Memory is a Scratch or a Tape.
  template <class Memory>
  void forward_tiles(ConstMatrixRef<T> x, MatrixRef<T> y, int threads, Memory& memory) const {
    expert_.reserve(memory.rows, x.rows());
    detail::in_one_region(threads, [&] {
      for_stage(x.rows(), threads, [&](Index begin, Index rows, detail::Part part) {
        expert_.forward_hidden(x.middleRows(begin, rows), memory.rows, begin, part);
      });
      for_stage(x.rows(), threads, [&](Index begin, Index rows, detail::Part part) {
        expert_.forward_output(memory.rows, begin, y.middleRows(begin, rows), part);
      });
    });
  }

  Expert<T> expert_;
  detail::Identity identity_;
};

template <Real T>
void DenseFfn<T>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Scratch& scratch,
                          const CallOptions& call) const {
  check_forward(x, y);
  forward_tiles(x, y, detail::num_threads(call.num_threads), scratch);
}

template <Real T>
void DenseFfn<T>::forward(ConstMatrixRef<T> x, MatrixRef<T> y, Tape& tape,
                          const CallOptions& call) const {
  check_forward(x, y);
  tape.owner = 0;
  tape.num_tokens = x.rows();
  tape.num_threads = detail::num_threads(call.num_threads);
  forward_tiles(x, y, tape.num_threads, tape);
  tape.owner = identity_.number();
}

template <Real T>
void DenseFfn<T>::backward(ConstMatrixRef<T> x, ConstMatrixRef<T> dy, Tape& tape, MatrixRef<T> dx,
                           Params& grads) const {
  detail::check(tape.owner == identity_.number(),
                "DenseFfn: the tape is of another layer, expected this one's");
  detail::check_shape(x, tape.num_tokens, d_in(), "DenseFfn: x");
  detail::check_shape(dy, x.rows(), d_out(), "DenseFfn: dy");
  detail::check_shape(dx, x.rows(), d_in(), "DenseFfn: dx");
  detail::check(!detail::overlap(x, dx) && !detail::overlap(dy, dx),
                "DenseFfn: dx overlaps x or dy, expected memory of its own");
  check_like(params(), grads, "DenseFfn: grads");
  const int threads = tape.num_threads;
  detail::in_one_region(threads, [&] {
    for_stage(x.rows(), threads, [&](Index begin, Index rows, detail::Part part) {
      const Index first = part.begin(rows), size = part.end(rows) - first;
      expert_.backward_gate(dy.middleRows(begin + first, size), tape.rows, begin + first);
    });
    for_stage(x.rows(), threads, [&](Index begin, Index rows, detail::Part part) {
      expert_.backward_hidden(dy.middleRows(begin, rows), tape.rows, begin, part);
    });
    for_stage(x.rows(), threads, [&](Index begin, Index rows, detail::Part part) {
      expert_.backward_input(tape.rows, begin, dx.middleRows(begin, rows), part);
    });
    detail::for_parts(1, threads, [&](Index, detail::Part part, int) {
      expert_.backward_params({x, dy, 0}, tape.rows, grads, part);
    });
  });
}

/// The shared expert of a config, if it has one, with random weights from the seed.
template <Real T>
std::optional<DenseFfn<T>> make_shared_expert(const MoEConfig& config, std::uint64_t seed) {
  config.validate();
  if (!config.shared) {
    return std::nullopt;
  }
  ExpertConfig expert = config.expert;
  expert.output_gate = config.shared->output_gate;
  return DenseFfn<T>({config.d_model, config.shared->d_ff, config.output_width()}, expert,
                     detail::seed_of(seed, 1));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
