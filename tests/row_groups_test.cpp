// SPDX-License-Identifier: Apache-2.0
// Tests of rows grouped by expert, made by hand, without a routing table.
#include "moe/row_groups.hpp"

#include <gtest/gtest.h>

#include "support/throws.hpp"

namespace moe::row_groups_test {
namespace {

TEST(RowGroups, KnowTheRowsOfEachExpert) {
  const std::vector<Index> offset{0, 2, 2, 5}, token{4, 7, 0, 1, 9};
  const RowGroups groups{offset, token};
  EXPECT_EQ(groups.num_experts(), 3);
  EXPECT_EQ(groups.num_rows(), 5);
  EXPECT_EQ(groups.begin(2), 2);
  EXPECT_EQ(groups.end(2), 5);
  EXPECT_EQ(groups.token_of(1), 7);
  EXPECT_EQ(groups.num_active(), 2) << "expert 1 has no row";
}

TEST(RowGroups, WithoutTokensAreTheRowsOfXAsTheyLie) {
  const std::vector<Index> offset{0, 2, 5};
  const RowGroups groups{offset};
  EXPECT_EQ(groups.token_of(3), 3);
  const Matrix<float> x(5, 2);
  EXPECT_TRUE((ExpertInput<float>{x, groups}.in_order()));
  const std::vector<float> weight(5, 2.0F);
  EXPECT_FALSE((ExpertInput<float>{x, groups, weight}.in_order()));
}

TEST(RowGroups, ThatBreakARuleAreRefusedAndTheValueIsNamed) {
  const auto message = [](std::vector<Index> offset, std::vector<Index> token) {
    return testing::message_of([&] { RowGroups{offset, token}.validate(3, 10); });
  };
  EXPECT_EQ(message({0, 2, 2, 5}, {4, 7, 0, 1, 9}), "(nothing was thrown)");
  EXPECT_EQ(message({0, 2, 2, 3}, {4, 4, 4}), "(nothing was thrown)")
      << "a token may be there twice";
  EXPECT_EQ(message({0, 2, 5}, {4, 7, 0, 1, 9}),
            "RowGroups: offset has 3 elements, expected num_experts + 1 = 4");
  EXPECT_EQ(message({}, {}), "RowGroups: offset has 0 elements, expected num_experts + 1 = 4");
  EXPECT_EQ(message({1, 2, 2, 5}, {4, 7, 0, 1, 9}), "RowGroups: offset[0] = 1, expected 0");
  EXPECT_EQ(message({0, 3, 2, 5}, {4, 7, 0, 1, 9}),
            "RowGroups: offset[2] = 2, expected at least 3");
  EXPECT_EQ(message({0, 2, 2, 5}, {4, 7, 0, 1}),
            "RowGroups: token has 4 elements, expected as many as rows = 5");
  EXPECT_EQ(message({0, 2, 2, 5}, {4, 7, 10, 1, 9}),
            "RowGroups: token[2] = 10, expected in [0, rows of x = 10)");
  EXPECT_EQ(message({0, 2, 2, 5}, {4, 7, 0, -1, 9}),
            "RowGroups: token[3] = -1, expected in [0, rows of x = 10)");
  EXPECT_EQ(message({0, 2, 2, 11}, {}),
            "RowGroups: there are 11 rows, expected at most those of x = 10");
}

TEST(CutGroups, CutsEachGroupIntoPartsOfEvenSize) {
  const Index most = 1024, third = 2049 / 3, two_thirds = 2 * 2049 / 3;
  const std::vector<Index> offset{0, 0, 2049, 2049, 3073, 3073};
  std::vector<GroupPart> parts{{9, 9, 9}};  // of an earlier call
  cut_groups({offset}, most, parts);
  ASSERT_EQ(parts.size(), 4u);
  const auto is = [&](std::size_t i, Index expert, Index begin, Index end) {
    return parts[i].expert == expert && parts[i].begin == begin && parts[i].end == end &&
           parts[i].rows() == end - begin;
  };
  EXPECT_TRUE(is(0, 1, 0, third));
  EXPECT_TRUE(is(1, 1, third, two_thirds));
  EXPECT_TRUE(is(2, 1, two_thirds, 2049));
  EXPECT_TRUE(is(3, 3, 2049, 3073));
}

TEST(CutGroups, MakesNothingOfNoRows) {
  const std::vector<Index> offset{0, 0, 0};
  std::vector<GroupPart> parts;
  cut_groups({offset}, 4, parts);
  EXPECT_TRUE(parts.empty());
}

}  // namespace
}  // namespace moe::row_groups_test
