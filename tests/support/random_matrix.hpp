// SPDX-License-Identifier: Apache-2.0
// Numbers for tests: the same on every platform, from the library's own counter.
#pragma once

#include <string_view>

#include "moe/detail/random.hpp"
#include "moe/types.hpp"

namespace moe::testing {

/// N(0, deviation^2).
template <Real T>
Matrix<T> random_matrix(Index rows, Index cols, std::uint64_t seed, double deviation = 1.0) {
  const detail::CounterRandom random(seed, 99);
  Matrix<T> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) {
    m.data()[i] = T(deviation * random.normal(static_cast<std::uint64_t>(i)));
  }
  return m;
}

/// Fills every tensor of a parameter list, biases too, which a new layer has at zero.
template <class P>
void randomise(P& params, std::uint64_t seed, double deviation = 0.5) {
  P::for_each(
      [&](std::string_view, auto& tensor) {
        using T = typename std::remove_reference_t<decltype(tensor)>::Scalar;
        tensor = random_matrix<T>(tensor.rows(), tensor.cols(), ++seed, deviation);
      },
      params);
}

}  // namespace moe::testing
