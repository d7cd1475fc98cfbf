// SPDX-License-Identifier: Apache-2.0
// Counts every allocation of the program, whoever asks: malloc and its kin are replaced by ones
// that count and pass on to glibc. operator new ends in malloc, and so does Eigen.
//
// The replacements are in count_allocations.cpp. MOE_COUNTS_ALLOCATIONS is 0 where the allocator is
// not ours to replace (sanitizers, other C libraries); tests that need it stand inside
// #if MOE_COUNTS_ALLOCATIONS. Threads' own start-up allocates too: run once before counting.
#pragma once

#include <cstddef>
#include <cstdlib>  // says whether this is glibc

#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOE_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define MOE_COUNTS_ALLOCATIONS 0
#else
#define MOE_COUNTS_ALLOCATIONS 1
#endif
#else
#define MOE_COUNTS_ALLOCATIONS 1
#endif

#if MOE_COUNTS_ALLOCATIONS
#include <atomic>

namespace moe::testing {

/// Allocations since the program began, in all threads, and the bytes that they asked for.
extern std::atomic<long> num_allocations;
extern std::atomic<std::size_t> num_bytes;

/// Bytes asked for while f() runs, in all threads, whether or not they were given back.
template <class F>
std::size_t count_bytes(F&& f) {
  const std::size_t before = num_bytes.load();
  f();
  return num_bytes.load() - before;
}

/// Allocations made while f() runs, in all threads.
template <class F>
long count_allocations(F&& f) {
  const long before = num_allocations.load();
  f();
  return num_allocations.load() - before;
}

}  // namespace moe::testing
#endif
