// SPDX-License-Identifier: Apache-2.0
// Checks at the public boundary: always on, they throw before anything is written.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "../instruction_set.hpp"
#include "joined.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// What all messages have in common is compiled once.
[[noreturn]] inline void fail_with(std::initializer_list<MessagePart> parts) {
  throw std::invalid_argument(joined_parts(parts));
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  fail_with({MessagePart(parts)...});
}

/// Throws std::invalid_argument with the joined parts unless ok. A function, not a macro: the
/// parts are only references until it fails.
template <class... Parts>
void throw_unless(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]] {
    fail(parts...);
  }
}

/// Throws unless the value is one of its enum, whose values go from 0 to `last`: what was cast to
/// it may be none.
template <class Enum>
requires std::is_enum_v<Enum>
void check_enum(Enum value, Enum last, const char* name) {
  const int number = static_cast<int>(value);
  throw_unless(number >= 0 && number <= static_cast<int>(last), name, " = ", number,
               ", expected one of the enum");
}

/// Of what a run counts up: no run adds the other half of the integers to it.
inline constexpr std::ptrdiff_t most_counted = (std::numeric_limits<std::ptrdiff_t>::max)() / 2;

/// Throws unless it is a number that can be counted up from.
inline void check_count(std::ptrdiff_t count, const char* name) {
  throw_unless(count >= 0 && count <= most_counted, name, " = ", count, ", expected in [0, ",
               most_counted, "]");
}

/// Throws unless the matrix has this shape.
template <class M>
void check_shape(const M& m, std::ptrdiff_t rows, std::ptrdiff_t cols, const char* what) {
  throw_unless(m.rows() == rows && m.cols() == cols, what, " is (", m.rows(), ", ", m.cols(),
               "), expected (", rows, ", ", cols, ")");
}

/// True if the two row-major views share memory. Rows between which another view's rows lie
/// (two column blocks of one matrix) count as sharing.
template <class A, class B>
bool overlap(const A& a, const B& b) {
  if (a.size() == 0 || b.size() == 0) {
    return false;
  }
  const auto last = [](const auto& m) {
    return reinterpret_cast<const char*>(m.data() + (m.rows() - 1) * m.outerStride() + m.cols());
  };
  return reinterpret_cast<const char*>(a.data()) < last(b) &&
         reinterpret_cast<const char*>(b.data()) < last(a);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
