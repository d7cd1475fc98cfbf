// SPDX-License-Identifier: Apache-2.0
// Where the figures were measured, and with what they were compiled.
#pragma once

#include <fstream>

#include "results.hpp"

#ifndef MOE_REPORT_FLAGS
#define MOE_REPORT_FLAGS "unknown"
#endif

namespace moe::report {

inline std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(':');
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(std::min(colon + 2, line.size()));
    }
  }
  return "unknown";
}

inline std::string compiler_name() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

/// All but the roofs.
inline Machine this_machine(int threads) {
  Machine machine;
  machine.cpu = cpu_name();
  machine.compiler = compiler_name();
  machine.flags = MOE_REPORT_FLAGS;
  machine.simd = Eigen::SimdInstructionSetsInUse();
  machine.threads = threads;
  return machine;
}

}  // namespace moe::report
