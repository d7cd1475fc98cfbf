// SPDX-License-Identifier: Apache-2.0
// Numbers as text, for the tables of the report.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>

namespace moe::report {

inline std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

inline std::string significant(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

/// 46.7 B, 619 M: three digits at least.
inline std::string count(double value) {
  const auto scaled = [](double v) { return fixed(v, v < 9.995 ? 2 : v < 99.95 ? 1 : 0); };
  return value < 1e6   ? scaled(value / 1e3) + " k"
         : value < 1e9 ? scaled(value / 1e6) + " M"
                       : scaled(value / 1e9) + " B";
}

/// Milliseconds with three digits.
inline std::string milliseconds(double seconds) {
  const double ms = 1e3 * seconds;
  return fixed(ms, ms < 0.1 ? 4 : ms < 1 ? 3 : ms < 10 ? 2 : ms < 100 ? 1 : 0);
}

inline std::string percent(double share) { return fixed(100.0 * share, 0) + " %"; }

/// At least `width` wide, to the right (or, negative, to the left).
inline std::string pad(std::string_view text, int width) {
  const auto size = static_cast<std::size_t>(std::abs(width));
  const std::string fill(size - std::min(size, text.size()), ' ');
  return width < 0 ? std::string(text) + fill : fill + std::string(text);
}

}  // namespace moe::report
