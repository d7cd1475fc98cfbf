// SPDX-License-Identifier: Apache-2.0
// Tests of what a call says of its tokens and asks for: each rule is broken once, and the message
// is what the user reads.
#include "moe/call_options.hpp"

#include <gtest/gtest.h>

#include "support/throws.hpp"

namespace moe::call_options_test {
namespace {

const std::string fine = "(nothing was thrown)";

std::string broken_tokens(const Tokens& tokens, Index num_tokens) {
  return testing::message_of([&] { tokens.validate(num_tokens); });
}

TEST(Tokens, AreOneSequenceOrEqualOnesOrRagged) {
  const auto is = [](const Sequence& sequence, Index begin, Index end) {
    return sequence.begin == begin && sequence.end == end;
  };
  EXPECT_EQ(Tokens{}.num_sequences(6), 1);
  EXPECT_TRUE(is(Tokens{}.sequence(0, 6), 0, 6));
  const Tokens equal{.sequence_length = 3};
  EXPECT_EQ(equal.num_sequences(6), 2);
  EXPECT_TRUE(is(equal.sequence(1, 6), 3, 6));
  const Index offset[] = {0, 4, 4, 6};
  const Tokens ragged{.sequence_offset = offset};
  EXPECT_EQ(ragged.num_sequences(6), 3);
  EXPECT_TRUE(is(ragged.sequence(0, 6), 0, 4));
  EXPECT_TRUE(is(ragged.sequence(1, 6), 4, 4));
  EXPECT_TRUE(is(ragged.sequence(2, 6), 4, 6));
  for (const Tokens& tokens : {Tokens{}, equal, ragged}) {
    EXPECT_EQ(broken_tokens(tokens, 6), fine);
  }
}

TEST(Tokens, HaveToFitTheBatch) {
  const std::int32_t ids[] = {1, 2, 3};
  const std::uint8_t padding[] = {0, 1, 0};
  const Index offset[] = {0, 2, 4}, backwards[] = {0, 3, 2, 4};
  EXPECT_EQ(broken_tokens({.ids = ids}, 4),
            "Tokens: ids has 3 elements, expected as many as tokens = 4");
  EXPECT_EQ(broken_tokens({.position = offset}, 4),
            "Tokens: position has 3 elements, expected as many as tokens = 4");
  EXPECT_EQ(broken_tokens({.padding = padding}, 4),
            "Tokens: padding has 3 elements, expected as many as tokens = 4");
  EXPECT_EQ(broken_tokens({.sequence_length = 3}, 4),
            "Tokens: sequence_length = 3, expected to divide the number of tokens = 4");
  EXPECT_EQ(broken_tokens({.sequence_length = -1}, 4),
            "Tokens: sequence_length = -1, expected to divide the number of tokens = 4");
  EXPECT_EQ(broken_tokens({.sequence_length = 2, .sequence_offset = offset}, 4),
            "Tokens: sequence_length and sequence_offset are both set, expected one");
  EXPECT_EQ(
      broken_tokens({.sequence_offset = offset}, 5),
      "Tokens: sequence_offset goes from 0 to 4, expected from 0 to the number of tokens = 5");
  EXPECT_EQ(broken_tokens({.sequence_offset = backwards}, 4),
            "Tokens: sequence_offset[2] = 2, expected at least 3");
}

TEST(Tokens, StandWhereTheirRowsDoUnlessTheCallSaysOtherwise) {
  const Index position[] = {3, 5, 8};
  EXPECT_EQ(Tokens{}.position_of(2), 2);
  EXPECT_EQ(Tokens{.position = position}.position_of(2), 8);
}

TEST(CallOptions, HaveAMaskForAllTokensOrForEach) {
  const auto message = [](const ExpertMask& mask) {
    return testing::message_of([&] { CallOptions{.expert_mask = &mask}.validate(3, 4); });
  };
  EXPECT_EQ(message(ExpertMask::Ones(1, 4)), fine);
  EXPECT_EQ(message(ExpertMask::Ones(3, 4)), fine);
  EXPECT_EQ(message(ExpertMask::Ones(2, 4)),
            "CallOptions: expert_mask is (2, 4), expected (1 or 3, 4)");
  EXPECT_EQ(message(ExpertMask::Ones(1, 5)),
            "CallOptions: expert_mask is (1, 5), expected (1 or 3, 4)");
}

TEST(CallOptions, WantTopKAmongTheExpertsAndAValidCapacity) {
  const auto message = [](const CallOptions& call) {
    return testing::message_of([&] { call.validate(3, 4); });
  };
  EXPECT_EQ(message({.top_k = 4}), fine);
  EXPECT_EQ(message({.top_k = 0}), "CallOptions: top_k = 0, expected in [1, num_experts = 4]");
  EXPECT_EQ(message({.top_k = 5}), "CallOptions: top_k = 5, expected in [1, num_experts = 4]");
  EXPECT_EQ(message({.capacity = Capacity{.rows = -1}}),
            "Capacity: rows = -1, expected at least 0");
}

TEST(CallOptions, TakeExpertsOncePerTokenAndNotThoseOfPadding) {
  Matrix<ExpertId> experts(2, 2);
  experts << 3, none, 9, 9;
  const std::uint8_t padding[] = {0, 1};
  const auto message = [&](const Tokens& tokens) {
    return testing::message_of(
        [&] { CallOptions{.tokens = tokens, .experts = &experts}.validate(2, 4); });
  };
  EXPECT_EQ(message({.padding = padding}), fine);
  EXPECT_EQ(message({}), "CallOptions: experts of token 1 has 9, expected in [0, num_experts = 4)");
  experts.row(1).setConstant(2);
  EXPECT_EQ(message({}), "CallOptions: experts of token 1 has 2 twice");
}

}  // namespace
}  // namespace moe::call_options_test
