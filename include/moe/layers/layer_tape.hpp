// SPDX-License-Identifier: Apache-2.0
// What a call of MoELayer produces, and what backward needs of it: who goes where (Routed), and the
// rows at work (LayerWork). It is the caller's; the layer itself is const in use.
#pragma once

#include <vector>

#include "../detail/identity.hpp"
#include "../dispatch/plan.hpp"
#include "layer_parts.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Who goes where: what losses, monitors and policies read.
template <Real T, RouterLike<T> RouterT>
struct Routed {
  typename RouterT::Table routing;
  KeptChoices kept;
  DispatchPlan plan;
  double weight_factor = 1.0;  ///< of the weights of the rows, where other choices were left out
  detail::Owner owner;  ///< the layer whose forward it is of, to go back from; nobody: of none
};

/// Memory and results of an inference. Reused: it only grows. Not for two threads at once; the
/// layer itself may be shared.
template <Real T, RouterLike<T> RouterT, ExpertSet<T> Set>
struct LayerScratch : Routed<T, RouterT> {
  GrowingMatrix<T> rows;            ///< (S, D_out) outputs of the experts, in expert order
  std::vector<Wide<T>> row_weight;  ///< (S) of each row
  typename Set::Scratch experts;
  GrowingMatrix<T> shared_out;  ///< (N, D_out)
  typename SharedOf<T, Set>::type::Scratch shared;
  typename Latent<T>::Scratch latent;
  typename Coefficients<T>::Scratch coefficients;
  typename OutputNorm<T>::Scratch output_norm;
};

/// The rows of a call that trains.
template <Real T, ExpertSet<T> Set>
struct LayerWork {
  GrowingMatrix<T> rows;            ///< (S, D_out) outputs of the experts, in expert order
  std::vector<Wide<T>> row_weight;  ///< (S) of each row
  typename Set::Tape experts;
  GrowingMatrix<T> shared_out;  ///< (N, D_out)
  typename SharedOf<T, Set>::type::Tape shared;
  typename Latent<T>::Tape latent;
  typename Coefficients<T>::Tape coefficients;
  typename OutputNorm<T>::Tape output_norm;
  GrowingMatrix<T> clean_x, clean_dy;  ///< where there is padding that these may not look at
  RoutingGradient<Wide<T>> gradient;
  GrowingMatrix<T> drows, dx_rows;        ///< (S, D_out), (S, D_in) gradients of the rows
  GrowingMatrix<T> shared_dx;             ///< (N, D_in)
  GrowingMatrix<T> routed_dy, shared_dy;  ///< (N, D_out), where they are not dy itself
  GrowingMatrix<T> router_x;  ///< (N, D_in), where there is padding that the router may look at
  detail::Owner owner;        ///< the layer whose forward it holds
};

/// Who went where in a forward that trains.
template <Real T, RouterLike<T> RouterT>
struct TapedRouting : Routed<T, RouterT> {
  int num_threads = 1;
};

template <Real T, RouterLike<T> RouterT, ExpertSet<T> Set>
struct LayerTape : TapedRouting<T, RouterT> {
  LayerWork<T, Set> work;
};

/// Keeps only the routing of a forward; backward takes x through the experts once more, for the
/// same gradients. Calls work in the memory of a Tape that outlives this one. The layers of a model
/// may share it, one call at a time: what it held before is lost (tape_bytes.hpp).
template <Real T, RouterLike<T> RouterT, ExpertSet<T> Set>
class RecomputingLayerTape : public TapedRouting<T, RouterT> {
 public:
  explicit RecomputingLayerTape(LayerTape<T, RouterT, Set>& memory) : work_(&memory.work) {}

  LayerWork<T, Set>& work() const { return *work_; }

 private:
  LayerWork<T, Set>* work_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET
