// SPDX-License-Identifier: Apache-2.0
// What a call must leave as it was: the settings of OpenMP, of Eigen and of the processor.
#pragma once

#include <Eigen/Core>
#include <tuple>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace moe::testing {

inline auto global_state() {
  int threads = 1;
#ifdef _OPENMP
  threads = omp_get_max_threads();
#endif
  unsigned control = 0;
#ifdef __SSE__
  control = _mm_getcsr() & ~0x3fU;  // all but the sticky exception flags
#endif
  return std::tuple(threads, Eigen::nbThreads(), control);
}

}  // namespace moe::testing
