// SPDX-License-Identifier: Apache-2.0
// What a call of MoELayer produces and what backward needs of it. It is the caller's; the layer
// itself is const in use.
#pragma once

#include <utility>
#include <vector>

#include "../concepts.hpp"
#include "../dispatch/plan.hpp"
#include "../experts/dense_ffn.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
class MoELayer;

/// Memory and results of a call. Reused: it allocates where the number of tokens changes. Not for
/// two threads at once; the layer itself may be shared.
template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
struct LayerScratch {
  typename RouterT::Table routing;
  DispatchPlan plan;
  Matrix<T> rows;  ///< (S, D_out) outputs of the experts, in expert order

 private:
  friend class MoELayer<T, RouterT, ExpertT>;
  Matrix<T> x_rows;  // (S, D_in) inputs of the experts, in expert order
  std::vector<typename ExpertT::Scratch> experts;
  Matrix<T> shared_out;  // (N, D_out)
  typename DenseFfn<T>::Scratch shared;
};

template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
class RecomputingLayerTape;

/// The same, and what backward needs.
template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
struct LayerTape : LayerScratch<T, RouterT, ExpertT> {
 private:
  friend class MoELayer<T, RouterT, ExpertT>;
  friend class RecomputingLayerTape<T, RouterT, ExpertT>;
  std::vector<typename ExpertT::Tape> expert_tapes;
  typename DenseFfn<T>::Tape shared_tape;
  RoutingGradient<Wide<T>> gradient;
  Matrix<T> dx_rows;        // (S, D_in) gradients of the experts' inputs
  Matrix<T> dy_rows;        // (S, D_out) and of their outputs
  Matrix<T> shared_dx;      // (N, D_in)
  std::uint64_t owner = 0;  // the identity of the layer; 0: nothing to go back from
  int num_threads = 1;
};

/// Keeps only the routing of a forward; backward takes x through the experts once more, for the
/// same gradients. Calls work in the memory of a Tape that outlives this one. The layers of a model
/// may share it, one call at a time: what it held before is lost (tape_bytes.hpp).
template <Real T, RouterLike<T> RouterT, ExpertLike<T> ExpertT>
class RecomputingLayerTape {
 public:
  using Tape = LayerTape<T, RouterT, ExpertT>;

  explicit RecomputingLayerTape(Tape& memory) : memory_(&memory) {}

  typename RouterT::Table routing;
  DispatchPlan plan;

 private:
  friend class MoELayer<T, RouterT, ExpertT>;

  /// While it lives, the memory is the tape of this one's call. An exception ends it, too.
  class Loan {
   public:
    explicit Loan(RecomputingLayerTape& tape) : tape_(tape) { exchange(); }
    ~Loan() {
      exchange();
      memory().owner = 0;
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;

    Tape& memory() { return *tape_.memory_; }

   private:
    void exchange() {
      std::swap(tape_.routing, memory().routing);
      std::swap(tape_.plan, memory().plan);
      std::swap(tape_.owner_, memory().owner);
      std::swap(tape_.num_threads_, memory().num_threads);
    }

    RecomputingLayerTape& tape_;
  };

  Tape* memory_;
  std::uint64_t owner_ = 0;
  int num_threads_ = 1;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
