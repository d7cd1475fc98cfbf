// SPDX-License-Identifier: Apache-2.0
// Medians of repetitions with cold caches.
#pragma once

#include "results.hpp"
#include "roofs.hpp"

namespace moe::report {

struct Repetition {
  int number;
  double seconds;
};

/// Times body(number), at least three times, until the budget is spent. Each time the roofs are
/// probed first, which clears the caches: weights come from memory, as they do in a model of many
/// layers. The first time, which grows the scratch, does not count unless it is too dear to throw
/// away.
template <class Body>
std::vector<Repetition> repeat_cold(Roofs& roofs, double budget, Body&& body) {
  constexpr double dear = 1.0;  // seconds
  std::vector<Repetition> repetitions;
  double spent = 0;
  for (int number = 0; repetitions.size() < 3 || (number < 12 && spent < budget); ++number) {
    roofs.probe();
    const double now = seconds_of([&] { body(number); });
    if (number > 0 || now > dear) {
      spent += now;
      repetitions.push_back({number, now});
    }
  }
  return repetitions;
}

}  // namespace moe::report
