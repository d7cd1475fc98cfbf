// SPDX-License-Identifier: Apache-2.0
// The precompiled header of the tests. The product and the classes that most tests use are compiled
// once, in instances.cpp, and not again in every program.
#pragma once

#include <gtest/gtest.h>

#include "moe/moe.hpp"

#define MOE_PRODUCT(T, C)                                                                         \
  void kernels::gemm<T, C>(kernels::View<T>, kernels::View<T>, kernels::Into<C>, kernels::Update, \
                           kernels::GemmMemory<T>&)

#define MOE_PACKED_LAYER(prefix, S)                                                            \
  prefix template void PackedLayer<S>::forward(const LayerInput<Wide<S>>&, MatrixRef<Wide<S>>, \
                                               PackedLayer<S>::Scratch&, const CallOptions&) const

#define MOE_FOR_EACH_INSTANCE(prefix)                                          \
  prefix template MOE_PRODUCT(float, float);                                   \
  prefix template MOE_PRODUCT(double, double);                                 \
  prefix template MOE_PRODUCT(bf16, bf16);                                     \
  prefix template MOE_PRODUCT(bf16, float);                                    \
  prefix template class LinearGate<float>;                                     \
  prefix template class LinearGate<double>;                                    \
  prefix template class LinearGate<bf16>;                                      \
  prefix template class TopK<float>;                                           \
  prefix template class TopK<double>;                                          \
  prefix template class GatedRouter<float, LinearGate<float>, TopK<float>>;    \
  prefix template class GatedRouter<double, LinearGate<double>, TopK<double>>; \
  prefix template class GatedRouter<bf16, LinearGate<bf16>, TopK<float>>;      \
  prefix template class Router<float>;                                         \
  prefix template class Router<double>;                                        \
  prefix template class Router<bf16>;                                          \
  prefix template class Expert<float>;                                         \
  prefix template class Expert<double>;                                        \
  prefix template class Expert<bf16>;                                          \
  prefix template class DenseFfn<float>;                                       \
  prefix template class DenseFfn<double>;                                      \
  prefix template class DenseFfn<bf16>;                                        \
  prefix template class MoELayer<float>;                                       \
  prefix template class MoELayer<double>;                                      \
  prefix template class MoELayer<bf16>;                                        \
  prefix template class PackedExperts<float>;                                  \
  prefix template class PackedExperts<double>;                                 \
  prefix template class PackedExperts<bf16>;                                   \
  MOE_PACKED_LAYER(prefix, float);                                             \
  MOE_PACKED_LAYER(prefix, double);                                            \
  MOE_PACKED_LAYER(prefix, bf16);

namespace moe {
MOE_FOR_EACH_INSTANCE(extern)
}
