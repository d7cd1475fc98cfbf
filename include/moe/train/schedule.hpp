// SPDX-License-Identifier: Apache-2.0
// How a rate goes over a run, as plain functions of the number of a step, the first of which is 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "../detail/check.hpp"
#include "../types.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

struct CosineSchedule {
  Index warm_up = 0;   ///< steps in which the factor rises in a line to 1
  Index total = 0;     ///< steps of the run
  double floor = 0.0;  ///< the factor at its end and behind it, in [0, 1]

  void validate() const {
    detail::throw_unless(warm_up >= 0 && warm_up <= total, "CosineSchedule: warm_up = ", warm_up,
                         ", expected in [0, total = ", total, "]");
    detail::throw_unless(floor >= 0.0 && floor <= 1.0, "CosineSchedule: floor = ", floor,
                         ", expected in [0, 1]");
  }
};

/// The factor of the rate in a step: warm-up, then half a cosine down to the floor (Loshchilov and
/// Hutter 2017, without restarts).
inline double cosine_factor(Index step, const CosineSchedule& schedule) {
  schedule.validate();
  detail::throw_unless(step >= 1, "cosine_factor: step = ", step, ", expected at least 1");
  if (step <= schedule.warm_up) {
    return static_cast<double>(step) / static_cast<double>(schedule.warm_up);
  }
  const Index length = (std::max)(schedule.total - schedule.warm_up, Index{1});
  const double done =
      (std::min)(1.0, static_cast<double>(step - schedule.warm_up) / static_cast<double>(length));
  return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
