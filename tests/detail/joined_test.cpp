// SPDX-License-Identifier: Apache-2.0
// The text of messages: numbers and names as they are, whatever the locale.
#include "moe/detail/joined.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <locale>
#include <string>
#include <string_view>

namespace moe::detail::joined_test {
namespace {

TEST(Joined, PutsTextAndNumbersInARow) {
  EXPECT_EQ(joined("k = ", 5, std::string(", "), std::string_view("in [1, "), 4.5, ']'),
            "k = 5, in [1, 4.5]");
  EXPECT_EQ(
      joined(std::uint64_t{18446744073709551615u}, " ", std::int64_t{-1}, " ", 1e300, " ", 0.1f),
      "18446744073709551615 -1 1e+300 0.1");
  EXPECT_EQ(joined(""), "");
}

/// Writes 1288 as "1,288" and 4.5 as "4_5".
struct Grouping : std::numpunct<char> {
  char do_thousands_sep() const override { return ','; }
  char do_decimal_point() const override { return '_'; }
  std::string do_grouping() const override { return "\3"; }
};

TEST(Joined, DoesNotObeyTheLocaleOfTheProgram) {
  const std::locale before = std::locale::global(std::locale(std::locale(), new Grouping));
  const std::string text = joined(1288, " ", 4.5);
  std::locale::global(before);
  EXPECT_EQ(text, "1288 4.5");
}

}  // namespace
}  // namespace moe::detail::joined_test
