// SPDX-License-Identifier: Apache-2.0
// What a tape knows its layer by. An address would not do: another layer may come to lie there.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// A number that no other object has or had. A copy, and what is assigned to, gets one of its own.
class Identity {
 public:
  Identity() = default;
  Identity(const Identity&) noexcept {}
  Identity& operator=(const Identity&) noexcept {
    number_ = next();
    return *this;
  }

  std::uint64_t number() const { return number_; }

 private:
  static std::uint64_t next() {
    static std::atomic<std::uint64_t> last = 0;
    return ++last;
  }

  std::uint64_t number_ = next();
};

/// Whose a tape is, and nobody's once it was moved from: what backward needs went along.
class Owner {
 public:
  Owner() = default;
  Owner(const Owner&) = default;
  Owner& operator=(const Owner&) = default;
  Owner(Owner&& other) noexcept : number_(std::exchange(other.number_, nobody)) {}
  Owner& operator=(Owner&& other) noexcept {
    number_ = std::exchange(other.number_, nobody);
    return *this;
  }

  void set(const Identity& identity) { number_ = identity.number(); }
  void clear() { number_ = nobody; }
  bool is_nobody() const { return number_ == nobody; }
  bool is(const Identity& identity) const { return number_ == identity.number(); }

 private:
  static constexpr std::uint64_t nobody = 0;  // no identity has it

  std::uint64_t number_ = nobody;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
