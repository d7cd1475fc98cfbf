// SPDX-License-Identifier: Apache-2.0
// What a tape knows its layer by. An address would not do: another layer may come to lie there.
#pragma once

#include <atomic>
#include <cstdint>

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

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
