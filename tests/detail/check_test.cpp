// SPDX-License-Identifier: Apache-2.0
// Tests of the checks at the public boundary: what they let pass, and the text when they do not.
#include "moe/detail/check.hpp"

#include <gtest/gtest.h>

#include "moe/types.hpp"
#include "support/throws.hpp"

namespace moe::detail::check_test {
namespace {

using testing::message_of;

TEST(Check, ThrowsTheJoinedParts) {
  EXPECT_EQ(
      message_of([] { throw_unless(false, "Layer: k = ", 5, ", expected in [1, ", 4.5, "]"); }),
      "Layer: k = 5, expected in [1, 4.5]");
  EXPECT_EQ(message_of([] { fail("a", 1); }), "a1");
}

TEST(Check, LetsTruthPass) { EXPECT_NO_THROW(throw_unless(true, "never read")); }

/// Notes that it was printed.
struct Printable {
  bool* read;
  friend std::ostream& operator<<(std::ostream& out, const Printable& part) {
    *part.read = true;
    return out;
  }
};

TEST(Check, ReadsItsPartsOnlyOnFailure) {
  bool read = false;
  throw_unless(true, Printable{&read});
  EXPECT_FALSE(read);
  EXPECT_THROW(throw_unless(false, Printable{&read}), std::invalid_argument);
  EXPECT_TRUE(read);
}

TEST(CheckShape, NamesBothShapes) {
  const Matrix<float> m(2, 3);
  EXPECT_NO_THROW(check_shape(m, 2, 3, "x"));
  EXPECT_EQ(message_of([&] { check_shape(m, 3, 2, "Layer: x"); }),
            "Layer: x is (2, 3), expected (3, 2)");
  EXPECT_EQ(message_of([&] { check_shape(m, 2, 4, "x"); }), "x is (2, 3), expected (2, 4)");
  EXPECT_EQ(message_of([&] { check_shape(m, 1, 3, "x"); }), "x is (2, 3), expected (1, 3)");
}

TEST(Overlap, IsSharingOfMemory) {
  Matrix<float> m(6, 4), other(6, 4);
  EXPECT_TRUE(overlap(m, m));
  EXPECT_TRUE(overlap(m.topRows(3), m.middleRows(2, 2)));
  EXPECT_TRUE(overlap(m.middleRows(2, 1), m)) << "one inside the other";
  EXPECT_FALSE(overlap(m.topRows(3), m.bottomRows(3))) << "neighbours touch and share nothing";
  EXPECT_FALSE(overlap(m.bottomRows(3), m.topRows(3)));
  EXPECT_FALSE(overlap(m, other));
}

TEST(Overlap, CountsInterleavedRowsAsSharing) {
  Matrix<float> m(6, 4);
  EXPECT_TRUE(overlap(m.leftCols(2), m.rightCols(2)));
  EXPECT_FALSE(overlap(m.row(2).leftCols(2), m.row(2).rightCols(2)))
      << "one row is not interleaved";
}

TEST(Overlap, NeverHoldsForEmptyViews) {
  Matrix<float> m(6, 4);
  EXPECT_FALSE(overlap(m.topRows(0), m));
  EXPECT_FALSE(overlap(m, m.middleCols(1, 0)));
  EXPECT_FALSE(overlap(Matrix<float>(), Matrix<float>()));
}

enum class Fruit { apple, pear, plum };

TEST(CheckEnum, RefusesWhatIsNoneOfTheEnum) {
  for (const Fruit fruit : {Fruit::apple, Fruit::pear, Fruit::plum}) {
    EXPECT_NO_THROW(check_enum(fruit, Fruit::plum, "fruit"));
  }
  EXPECT_EQ(message_of([] { check_enum(static_cast<Fruit>(3), Fruit::plum, "Pie: fruit"); }),
            "Pie: fruit = 3, expected one of the enum");
  EXPECT_EQ(message_of([] { check_enum(static_cast<Fruit>(-1), Fruit::plum, "fruit"); }),
            "fruit = -1, expected one of the enum");
}

}  // namespace
}  // namespace moe::detail::check_test
