// SPDX-License-Identifier: Apache-2.0
// A token alone and in a large batch: the contract's first promise, for any layer.
#pragma once

#include <gtest/gtest.h>

#include "moe/detail/parallel.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/thorough.hpp"

namespace moe::testing {

/// Of a layer or its packed form, whose tokens are in T.
template <class T, class Layer>
void expect_the_bits_of_a_large_batch_alone(const Layer& layer) {
  // Even the fewer have experts whose rows are cut into parts.
  const Index tokens = thorough ? 8192 : 3000;
  const Matrix<T> x = random_matrix<T>(tokens, layer.d_in(), 25);
  Matrix<T> first(tokens, layer.d_out()), y = first, alone(1, layer.d_out());
  typename Layer::Scratch scratch;
  layer.forward(x, first, scratch, {.num_threads = 1});
  for (const int threads : {1, 2, 3, 8}) {
    layer.forward(x, y, scratch, {.num_threads = threads});
    for (const Index token : {Index(0), tokens / 2 - 1, tokens - 1}) {
      detail::with_team(threads, [&] { layer.forward(x.row(token), alone, scratch); });
      EXPECT_TRUE(same_bits(alone, first.row(token))) << token << " alone, threads " << threads;
      EXPECT_TRUE(same_bits(y.row(token), first.row(token))) << token << ", threads " << threads;
    }
  }
}

}  // namespace moe::testing
