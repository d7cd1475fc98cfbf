// SPDX-License-Identifier: Apache-2.0
// The text of every message: what checks throw and what a reader says of a file.
#pragma once

#include <locale>
#include <sstream>
#include <string>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// The parts one after the other, as a stream prints them, but 1288 and 4.5 whatever the program's
/// locale makes of them ("1,288", "4,5").
template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  (text << ... << parts);
  return text.str();
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
