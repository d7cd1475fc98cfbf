// SPDX-License-Identifier: Apache-2.0
// The precompiled header of the tests. The products and the classes that most tests use are
// compiled once, in instances.cpp, and not again in every program. What is not a class, or a member
// template of one, has to be named for itself.
#pragma once

#include <gtest/gtest.h>

#include "moe/moe.hpp"

#define MOE_PRODUCT(prefix, T, C)                                                                \
  prefix template void kernels::gemm<T, C>(kernels::View<T>, kernels::View<T>, kernels::Into<C>, \
                                           kernels::Update, kernels::GemmMemory<T>&);

/// What is computed for each token, in a Wide<T>.
#define MOE_ROUTING(prefix, W)                                                                     \
  prefix template Index kernels::top_k<W>(const W*, const std::uint8_t*, Index, Index, ExpertId*); \
  prefix template void kernels::softmax<W>(const W*, Index, W*);                                   \
  prefix template void write_weights<W>(const WeightConfig&, Index, const TokenRoute<W>&,          \
                                        const std::type_identity_t<WeightTensors<W>>&);            \
  prefix template class TopK<W>;                                                                   \
  prefix template void KeptChoices::select<W>(const RoutingTable<W>&, Index, const Capacity&,      \
                                              const Tokens&);                                      \
  prefix template void DispatchPlan::build<W>(const RoutingTable<W>&, const KeptChoices&, Index);

/// A Scratch or a Tape of the experts.
#define MOE_EXPERTS_WITH(prefix, T, Memory)                                                    \
  prefix template void Expert<T>::forward_hidden(ConstMatrixRef<T>, Expert<T>::Memory&, Index, \
                                                 detail::Part, int) const;                     \
  prefix template void Expert<T>::forward_output(Expert<T>::Memory&, Index, MatrixRef<T>,      \
                                                 detail::Part, int) const;                     \
  prefix template void FfnExperts<T>::forward(const ExpertInput<T>&, MatrixRef<T>,             \
                                              FfnExperts<T>::Memory&, int) const;

#define MOE_LAYER(prefix, T)                                                                       \
  prefix template void activate_rows<T>(const ExpertConfig&, ConstMatrixRef<T>, ConstMatrixRef<T>, \
                                        MatrixRef<T>);                                             \
  prefix template void activate_rows_backward<T>(const ExpertConfig&, ConstMatrixRef<T>,           \
                                                 ConstMatrixRef<T>, MatrixRef<T>, MatrixRef<T>);   \
  prefix template class LinearGate<T>;                                                             \
  prefix template class GatedRouter<T, LinearGate<T>, TopK<Wide<T>>>;                              \
  prefix template class Router<T>;                                                                 \
  prefix template class Expert<T>;                                                                 \
  prefix template class FfnExperts<T>;                                                             \
  MOE_EXPERTS_WITH(prefix, T, Scratch)                                                             \
  MOE_EXPERTS_WITH(prefix, T, Tape)                                                                \
  prefix template std::vector<Expert<T>> make_experts<T>(const MoEConfig&, std::uint64_t);         \
  prefix template class DenseFfn<T>;                                                               \
  prefix template class Latent<T>;                                                                 \
  prefix template class MoELayer<T>;                                                               \
  prefix template void MoELayer<T>::compute(ConstMatrixRef<T>, const Routed<T, Router<T>>&,        \
                                            MoELayer<T>::Scratch&, int) const;                     \
  prefix template void MoELayer<T>::compute(ConstMatrixRef<T>, const Routed<T, Router<T>>&,        \
                                            LayerWork<T, FfnExperts<T>>&, int) const;              \
  prefix template void MoELayer<T>::run_back(                                                      \
      const LayerInput<T>&, ConstMatrixRef<T>, const TapedRouting<T, Router<T>>&,                  \
      LayerWork<T, FfnExperts<T>>&, const LayerInputGrads<T>&, MoELayer<T>::Grads&) const;

#define MOE_PACKED(prefix, S)                                                                  \
  prefix template class PackedExperts<S>;                                                      \
  prefix template PackedExperts<S>::PackedExperts(const FfnExperts<Wide<S>>&);                 \
  prefix template void PackedLayer<S>::forward(const LayerInput<Wide<S>>&, MatrixRef<Wide<S>>, \
                                               PackedLayer<S>::Scratch&, const CallOptions&)   \
      const;

#define MOE_FOR_EACH_INSTANCE(prefix)           \
  MOE_PRODUCT(prefix, float, float)             \
  MOE_PRODUCT(prefix, double, double)           \
  MOE_PRODUCT(prefix, bf16, bf16)               \
  MOE_PRODUCT(prefix, bf16, float)              \
  MOE_PRODUCT(prefix, Eigen::half, Eigen::half) \
  MOE_PRODUCT(prefix, Eigen::half, float)       \
  MOE_ROUTING(prefix, float)                    \
  MOE_ROUTING(prefix, double)                   \
  MOE_LAYER(prefix, float)                      \
  MOE_LAYER(prefix, double)                     \
  MOE_LAYER(prefix, bf16)                       \
  MOE_LAYER(prefix, Eigen::half)                \
  MOE_PACKED(prefix, float)                     \
  MOE_PACKED(prefix, double)                    \
  MOE_PACKED(prefix, bf16)

namespace moe {
MOE_FOR_EACH_INSTANCE(extern)
}
