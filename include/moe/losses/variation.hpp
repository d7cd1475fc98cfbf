// SPDX-License-Identifier: Apache-2.0
// How unequal the shares of experts are, for the losses of Shazeer 2017.
#pragma once

#include <cstddef>
#include <vector>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

namespace detail {

/// The squared coefficient of variation Var / mean^2 of x, with the sample variance, and its
/// gradient in dx. 0 for one element or a mean of 0. Computed in the scalar of x.
template <Real S, Real T>
S squared_variation(const std::vector<S>& x, std::vector<T>& dx) {
  const S size = S(static_cast<double>(x.size()));
  S mean(0), variance(0);
  dx.assign(x.size(), T(0));
  for (const S& value : x) {
    mean += value / size;
  }
  if (x.size() < 2 || (mean >= S(0) && mean <= S(0))) {
    return S(0);
  }
  for (const S& value : x) {
    variance += (value - mean) * (value - mean) / (size - S(1));
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    dx[i] = static_cast<T>(S(2) * (x[i] - mean) / ((size - S(1)) * mean * mean) -
                           S(2) * variance / (size * mean * mean * mean));
  }
  return variance / (mean * mean);
}

}  // namespace detail

}  // namespace moe::inline MOE_INSTRUCTION_SET
