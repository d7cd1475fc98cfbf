// SPDX-License-Identifier: Apache-2.0
// How many CPUs a container allows. A cgroup's quota limits time, not cores, so that OpenMP counts
// all cores of the machine: more threads than the quota pays for stop each other in turn.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>
#include <string_view>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// The number with which the text begins, behind any white space, and what follows it; 0 if there
/// is none.
inline long long leading_number(std::string_view& text) {
  long long number = 0;
  text.remove_prefix((std::min)(text.find_first_not_of(" \t\n\r"), text.size()));
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return error == std::errc() ? number : 0;
}

/// ceil(quota / period), at least 1; 0, no limit, unless both are above 0.
constexpr int cpus_of_quota(long long quota, long long period) {
  if (quota <= 0 || period <= 0) {
    return 0;
  }
  constexpr long long most = (std::numeric_limits<int>::max)();
  return static_cast<int>((std::min)((quota - 1) / period + 1, most));
}

/// The CPUs of the text of cpu.max (cgroup v2): "150000 100000" is 2, "max 100000" no limit, 0.
inline int cpus_of_cpu_max(std::string_view text) {
  const long long quota = leading_number(text);
  return cpus_of_quota(quota, leading_number(text));
}

/// The CPUs of the texts of cpu.cfs_quota_us and cpu.cfs_period_us (cgroup v1): "-1" is no limit,
/// 0.
inline int cpus_of_cfs(std::string_view quota, std::string_view period) {
  return cpus_of_quota(leading_number(quota), leading_number(period));
}

/// The quota of this process, as read from what a container sees of its cgroup; 0: none.
inline int read_cpu_quota() {
  struct Text {
    char data[64];
    std::size_t size = 0;

    explicit Text(const char* path) {
      if (std::FILE* file = std::fopen(path, "r")) {
        size = std::fread(data, 1, sizeof(data), file);
        std::fclose(file);
      }
    }
    operator std::string_view() const { return {data, size}; }
  };
  const int cpus = cpus_of_cpu_max(Text("/sys/fs/cgroup/cpu.max"));
  return cpus > 0 ? cpus
                  : cpus_of_cfs(Text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
                                Text("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
}

/// Threads of a call that asks for none in particular, of those that OpenMP would take: as many as
/// the quota, if there is one (not 0) and nobody said OMP_NUM_THREADS (not null).
constexpr int default_threads(int openmp, int quota, const char* omp_num_threads) {
  return quota > 0 && omp_num_threads == nullptr ? (std::min)(openmp, quota) : openmp;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
