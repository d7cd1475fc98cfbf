// SPDX-License-Identifier: Apache-2.0
// Counts every allocation of the program, whoever asks: malloc and its kin are replaced by ones
// that count and pass on to glibc. operator new ends in malloc, and so does Eigen.
//
// Include it in one source file of a program. MOE_COUNTS_ALLOCATIONS is 0 where the allocator is
// not ours to replace (sanitizers, other C libraries); tests that need it stand inside
// #if MOE_COUNTS_ALLOCATIONS. Threads' own start-up allocates too: run once before counting.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdlib>

#include "moe/types.hpp"  // before the definitions: Clang's mm_malloc.h may not follow them

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

/// Allocations since the program began, in all threads.
inline std::atomic<long> num_allocations = 0;

inline std::atomic<std::size_t> num_bytes = 0;  // that they asked for

inline void count_allocation(std::size_t bytes) {
  ++num_allocations;
  num_bytes += bytes;
}

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

extern "C" {

void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) noexcept {
  moe::testing::count_allocation(size);
  return __libc_malloc(size);
}

void* calloc(std::size_t count, std::size_t size) noexcept {
  moe::testing::count_allocation(count * size);
  return __libc_calloc(count, size);
}

void* realloc(void* memory, std::size_t size) noexcept {
  moe::testing::count_allocation(size);
  return __libc_realloc(memory, size);
}

void* memalign(std::size_t alignment, std::size_t size) noexcept {
  moe::testing::count_allocation(size);
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  moe::testing::count_allocation(size);
  return __libc_memalign(alignment, size);
}

int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  moe::testing::count_allocation(size);
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr && size > 0 ? ENOMEM : 0;
}

}  // extern "C"
#endif
