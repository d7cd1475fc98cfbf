// SPDX-License-Identifier: Apache-2.0
// What a bounded function is not to be asked of: it would make a plausible number of an infinity.
#pragma once

#include <limits>

#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::kernels {

/// Not NaN, and no infinity.
template <class T>
bool is_finite(const T& value) {
  const T infinity(Eigen::NumTraits<T>::infinity());
  return -infinity < value && value < infinity;
}

/// NaN for an infinity.
template <class T>
T finite_or_nan(const T& value) {
  return is_finite(value) ? value : T(std::numeric_limits<double>::quiet_NaN());
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::kernels
