// SPDX-License-Identifier: Apache-2.0
// Memory with an unreadable page before and behind it: a read or write out of bounds, which may
// otherwise go unnoticed, ends the test.
#pragma once

#include <new>

#include "moe/types.hpp"

#if defined(_WIN64)
// As windows.h declares them, whose macros would reach the tests.
extern "C" {
__declspec(dllimport) void* __stdcall VirtualAlloc(void* start, unsigned long long size,
                                                   unsigned long type, unsigned long protection);
__declspec(dllimport) int __stdcall VirtualFree(void* start, unsigned long long size,
                                                unsigned long type);
}
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace moe::testing {

#if defined(_WIN64)

inline std::size_t page_size() { return 4096; }  // of x86-64

/// Pages that cannot be read but for `inner` bytes behind the first; null where there is no memory.
inline void* reserve_pages(std::size_t size, std::size_t inner) {
  constexpr unsigned long commit = 0x1000, reserve = 0x2000, no_access = 1, read_write = 4;
  void* const memory = VirtualAlloc(nullptr, size, reserve, no_access);
  if (memory != nullptr && inner > 0 &&
      VirtualAlloc(static_cast<char*>(memory) + page_size(), inner, commit, read_write) ==
          nullptr) {
    return nullptr;
  }
  return memory;
}

inline void release_pages(void* memory, std::size_t) { VirtualFree(memory, 0, 0x8000); }

#else

inline std::size_t page_size() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

inline void* reserve_pages(std::size_t size, std::size_t inner) {
  void* const memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || (inner > 0 && mprotect(static_cast<char*>(memory) + page_size(),
                                                     inner, PROT_READ | PROT_WRITE) != 0)) {
    return nullptr;
  }
  return memory;
}

inline void release_pages(void* memory, std::size_t size) { munmap(memory, size); }

#endif

enum class Flush { front, back };

/// A copy of a matrix that touches the page before it or the page behind it.
template <class T>
class Guarded {
 public:
  Guarded(const Matrix<T>& m, Flush flush) : rows_(m.rows()), cols_(m.cols()) {
    const std::size_t page = page_size();
    const std::size_t bytes = static_cast<std::size_t>(m.size()) * sizeof(T);
    const std::size_t inner = (bytes + page - 1) / page * page;
    size_ = inner + 2 * page;
    memory_ = reserve_pages(size_, inner);
    if (memory_ == nullptr) {
      throw std::bad_alloc();
    }
    char* const begin = static_cast<char*>(memory_) + page;
    data_ = reinterpret_cast<T*>(flush == Flush::front ? begin : begin + inner - bytes);
    map() = m;
  }
  ~Guarded() { release_pages(memory_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  Eigen::Map<Matrix<T>> map() const { return {data_, rows_, cols_}; }

 private:
  Index rows_, cols_;
  std::size_t size_ = 0;
  void* memory_ = nullptr;
  T* data_ = nullptr;
};

}  // namespace moe::testing
