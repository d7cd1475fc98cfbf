// SPDX-License-Identifier: Apache-2.0
// The text of an exception, so that a test can say exactly what a user gets to read.
#pragma once

#include <stdexcept>
#include <string>

namespace moe::testing {

/// The message of the std::invalid_argument that f() throws, or a note that it threw none.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

}  // namespace moe::testing
