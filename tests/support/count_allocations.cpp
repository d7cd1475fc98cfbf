// SPDX-License-Identifier: Apache-2.0
// The allocator of programs that count: glibc's, which every allocation asks through these.
#include "count_allocations.hpp"

#if MOE_COUNTS_ALLOCATIONS
#include <cerrno>

namespace moe::testing {

std::atomic<long> num_allocations = 0;
std::atomic<std::size_t> num_bytes = 0;

namespace {

void count_allocation(std::size_t bytes) {
  ++num_allocations;
  num_bytes += bytes;
}

}  // namespace
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
