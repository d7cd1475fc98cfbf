// SPDX-License-Identifier: Apache-2.0
// The one exception of io/: its text, its parts, and text of a file made fit for it.
#include "moe/io/format_error.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <type_traits>

namespace moe::io::format_error_test {
namespace {

TEST(FormatError, TellsThePlaceAndCopiesWithoutThrowing) {
  static_assert(std::is_nothrow_copy_constructible_v<FormatError>);
  const FormatError error("a.safetensors", "w", 9, "wrong");
  const FormatError copy = error;
  EXPECT_STREQ(copy.what(), "a.safetensors: tensor \"w\", byte 9: wrong");
  EXPECT_EQ(copy.tensor(), "w");
  EXPECT_EQ(copy.offset(), 9U);
  EXPECT_STREQ(FormatError("a", "", std::nullopt, "wrong").what(), "a: wrong");
}

TEST(FormatError, EscapesTheNamesInItsTextOnly) {
  const FormatError error("a\nb", "w\x1b[2J", std::nullopt, "wrong");
  EXPECT_STREQ(error.what(), "a\\x0ab: tensor \"w\\x1b[2J\": wrong");
  EXPECT_EQ(error.file(), "a\nb");
  EXPECT_EQ(error.tensor(), "w\x1b[2J");
  EXPECT_EQ(error.offset(), std::nullopt);
}

TEST(Printable, EscapesControlCharactersAndNothingElse) {
  EXPECT_EQ(printable("plain text, \\ and \"\""), "plain text, \\ and \"\"");
  EXPECT_EQ(printable(std::string("\0\t\r\x1f\x7f", 5)), "\\x00\\x09\\x0d\\x1f\\x7f");
  EXPECT_EQ(printable("\xc2\x80\xc2\x9f"), "\\xc2\\x80\\xc2\\x9f") << "C1, in UTF-8";
  EXPECT_EQ(printable("\xc2\xa0\xc3\xa9\xe2\x82\xac"), "\xc2\xa0\xc3\xa9\xe2\x82\xac");
}

TEST(Printable, IsCutBetweenCharacters) {
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
  EXPECT_EQ(printable("abcdef", 5), "abcde...");
  EXPECT_EQ(printable("ab\xe2\x82\xac", 4), "ab...") << "never half a euro";
  EXPECT_EQ(printable("ab\xe2\x82\xac!", 5), "ab\xe2\x82\xac...");
  EXPECT_EQ(printable("", 0), "");
  EXPECT_EQ(printable("a", 0), "...");
}

}  // namespace
}  // namespace moe::io::format_error_test
