// SPDX-License-Identifier: Apache-2.0
// The loss of a batch of sequences against the load-balancing losses of its sequences alone.
#include "moe/losses/sequence_balance.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "moe/losses/balance.hpp"
#include "tables.hpp"

namespace moe::sequence_balance_test {
namespace {

using testing::Loss;
using testing::matrix_near;
using testing::noisy_router;
using testing::random_matrix;
using testing::random_table;
using testing::Table;

Table sequence_of(const Table& table, Index begin, Index end) {
  Table part;
  part.expert = table.expert.middleRows(begin, end - begin);
  part.weight = table.weight.middleRows(begin, end - begin);
  part.probs = table.probs.middleRows(begin, end - begin);
  part.probs_sum_to_one = table.probs_sum_to_one;
  if (!table.padding.empty()) {
    part.padding.assign(table.padding.begin() + begin, table.padding.begin() + end);
  }
  return part;
}

/// Holds the loss against the mean over the sequences [offset, next offset) that count.
void expect_mean(const Table& table, const Tokens& tokens, const std::vector<Index>& offset,
                 Index num_counted) {
  const Loss got = sequence_balancing_loss(table, tokens);
  double value = 0.0;
  for (std::size_t b = 0; b + 1 < offset.size(); ++b) {
    const Loss loss = load_balancing_loss(sequence_of(table, offset[b], offset[b + 1]));
    const double share = 1.0 / static_cast<double>(num_counted);
    value += share * loss.value;
    const Matrix<double> part = got.gradient.probs.middleRows(offset[b], offset[b + 1] - offset[b]);
    EXPECT_TRUE(matrix_near(part, Matrix<double>(share * loss.gradient.probs), 1e-14));
  }
  EXPECT_NEAR(got.value, value, 1e-14);
}

TEST(SequenceBalancingLoss, IsTheMeanOverSequences) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const Table table = random_table(12, score);
    expect_mean(table, {.sequence_length = 4}, {0, 4, 8, 12}, 3);
    const std::vector<Index> offset = {0, 3, 4, 12};
    expect_mean(table, {.sequence_offset = offset}, offset, 3);
  }
}

TEST(SequenceBalancingLoss, OfOneSequenceIsTheLoadBalancingLoss) {
  const Table table = random_table(12);
  EXPECT_DOUBLE_EQ(sequence_balancing_loss(table, {}).value, load_balancing_loss(table).value);
}

TEST(SequenceBalancingLoss, LeavesOutPaddingAndSequencesOfNothingElse) {
  Table table = random_table(12, Score::sigmoid);
  table.padding = {0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1};
  expect_mean(table, {.sequence_length = 4}, {0, 4, 8, 12}, 2);
  const std::vector<Index> offset = {0, 6, 6, 12};  // the second has no token at all
  expect_mean(table, {.sequence_offset = offset}, offset, 2);
}

TEST(SequenceBalancingLoss, HasTheRightGradientThroughTheRouter) {
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    Router<double> router = noisy_router(score);
    Matrix<double> x = random_matrix<double>(6, 3, 21), dx(6, 3);
    Router<double>::Table table;
    const Tokens tokens{.sequence_length = 3};
    const CallOptions call{.num_threads = 1, .tokens = tokens, .noise_seed = 8};
    router.route(x, call, table);
    auto grads = zeros_like(router.params());
    Loss loss = sequence_balancing_loss<double>(table, tokens);
    router.backward(x, table, loss.gradient, dx, grads);
    const auto f = [&] {
      router.route(x, call, table);
      return sequence_balancing_loss<double>(table, tokens).value;
    };
    EXPECT_LT(testing::gradient_error(f, x, dx), 1e-7);
    EXPECT_LT(testing::gradient_error_of_list(f, router.params(), grads), 1e-7);
  }
}

TEST(SequenceBalancingLoss, SeesWhatABatchAsAWholeHides) {
  Table table = testing::balanced_table(4, 1);  // of 8 tokens, in a circle
  for (Index t = 0; t < 8; ++t) {
    table.expert(t, 0) = static_cast<ExpertId>(t / 2);
    table.probs.row(t).setZero();
    table.probs(t, t / 2) = 1.0;
  }
  EXPECT_NEAR(load_balancing_loss(table).value, 1.0, 1e-15);
  EXPECT_NEAR(sequence_balancing_loss(table, {.sequence_length = 2}).value, 4.0, 1e-14);
}

TEST(SequenceBalancingLoss, OfNothingIsZero) {
  EXPECT_EQ(sequence_balancing_loss(random_table(0), {}).value, 0.0);
  const std::vector<std::uint8_t> nobody(4, 0);
  const Loss loss = sequence_balancing_loss(random_table(4), {.sequence_length = 2}, nobody);
  EXPECT_EQ(loss.value, 0.0);
  EXPECT_TRUE(loss.gradient.probs.isZero(0));
}

TEST(SequenceBalancingLoss, RefusesSequencesOfAnotherBatch) {
  EXPECT_THROW(sequence_balancing_loss(random_table(4), {.sequence_length = 3}),
               std::invalid_argument);
}

#if MOE_COUNTS_ALLOCATIONS
TEST(SequenceBalancingLoss, WrittenIntoItsLastResultAllocatesNothing) {
  const Table large = random_table(64), other = random_table(40);
  Loss loss;
  sequence_balancing_loss(large, {.sequence_length = 4}, {}, loss, 1);
  EXPECT_EQ(testing::count_allocations([&] {
              sequence_balancing_loss(other, {.sequence_length = 4}, {}, loss, 1);
              sequence_balancing_loss(large, {.sequence_length = 4}, {}, loss, 1);
            }),
            0);
}
#endif

}  // namespace
}  // namespace moe::sequence_balance_test
