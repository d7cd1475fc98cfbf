// SPDX-License-Identifier: Apache-2.0
// The product with memory of its own, for tests of what it computes.
#pragma once

#include "moe/kernels/gemm.hpp"

namespace moe::testing {

/// c = or += a * b. Allocates in the first call only.
template <class T>
void multiply(kernels::View<T> a, kernels::View<T> b, MatrixRef<T> c, kernels::Update update) {
  static kernels::GemmMemory<T> memory;
  kernels::gemm<T>(a, b, c, update, memory);
}

}  // namespace moe::testing
