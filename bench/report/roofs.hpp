// SPDX-License-Identifier: Apache-2.0
// The roofs of the report: probed between the cases, so that they stand for the same minutes; the
// best probe is the roof.
#pragma once

#include "../roofs.hpp"

namespace moe::report {

using bench::median_of, bench::seconds_of, bench::Stopwatch;

class Roofs {
 public:
  Roofs(int threads, bool quick) : probes_(threads, quick) {}

  /// Also clears the caches.
  void probe() {
    fma_ = std::max(fma_, probes_.multiply_add<float>());
    read_ = std::max(read_, probes_.read());
  }

  double fma() const { return fma_; }
  double read() const { return read_; }

 private:
  bench::Roofs probes_;
  double fma_ = 0, read_ = 0;
};

}  // namespace moe::report
