// SPDX-License-Identifier: Apache-2.0
// How unequal the shares of experts are, for the losses of Shazeer 2017.
#pragma once

#include <cstddef>
#include <vector>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// The squared coefficient of variation Var / mean^2 of x, with the sample variance, and its
/// gradient in dx. 0 for one element or a mean of 0.
template <Real T>
T squared_variation(const std::vector<T>& x, std::vector<T>& dx) {
  const T size = T(static_cast<double>(x.size()));
  T mean(0), variance(0);
  dx.assign(x.size(), T(0));
  for (const T& value : x) {
    mean += value / size;
  }
  if (x.size() < 2 || (mean >= T(0) && mean <= T(0))) {
    return T(0);
  }
  for (const T& value : x) {
    variance += (value - mean) * (value - mean) / (size - T(1));
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    dx[i] = T(2) * (x[i] - mean) / ((size - T(1)) * mean * mean) -
            T(2) * variance / (size * mean * mean * mean);
  }
  return variance / (mean * mean);
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
