// SPDX-License-Identifier: Apache-2.0
// Memory with an unreadable page before and behind it: a read or write out of bounds, which may
// otherwise go unnoticed, ends the test.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "moe/types.hpp"

namespace moe::testing {

enum class Flush { front, back };

/// A copy of a matrix that touches the page before it or the page behind it.
template <class T>
class Guarded {
 public:
  Guarded(const Matrix<T>& m, Flush flush) : rows_(m.rows()), cols_(m.cols()) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = static_cast<std::size_t>(m.size()) * sizeof(T);
    const std::size_t inner = (bytes + page - 1) / page * page;
    size_ = inner + 2 * page;
    memory_ = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* begin = static_cast<char*>(memory_) + page;
    if (memory_ == MAP_FAILED ||
        (inner > 0 && mprotect(begin, inner, PROT_READ | PROT_WRITE) != 0)) {
      throw std::bad_alloc();
    }
    data_ = reinterpret_cast<T*>(flush == Flush::front ? begin : begin + inner - bytes);
    map() = m;
  }
  ~Guarded() { munmap(memory_, size_); }
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
