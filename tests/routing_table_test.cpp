// SPDX-License-Identifier: Apache-2.0
// RoutingGradient: its one list, and how it comes to have a table's shape.
#include "moe/routing_table.hpp"

#include <gtest/gtest.h>

#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

RoutingTable<double> table_of(Index tokens, Index top_k, Index experts) {
  return {.expert = Matrix<ExpertId>(tokens, top_k),
          .weight = random_matrix<double>(tokens, top_k, 1),
          .probs = random_matrix<double>(tokens, experts, 2),
          .logits = random_matrix<double>(tokens, experts, 3),
          .noise_scale = random_matrix<double>(tokens, experts, 4)};
}

TEST(RoutingGradient, FillsEveryEmptyTensorWithZerosAndLeavesTheOthers) {
  const RoutingTable<double> table = table_of(3, 2, 5);
  const Matrix<double> weight = random_matrix<double>(3, 2, 9);
  RoutingGradient<double> filled{.weight = weight}, assigned;
  assigned.probs.setOnes(3, 5);  // of a call before
  assigned.assign(filled, table);
  filled.fill_empty(table);
  for (const RoutingGradient<double>& gradient : {filled, assigned}) {
    EXPECT_TRUE(same_bits(gradient.weight, weight));
    for (const GrowingMatrix<double>* zeros :
         {&gradient.probs, &gradient.logits, &gradient.noise_scale}) {
      EXPECT_TRUE(same_bits(*zeros, Matrix<double>(Matrix<double>::Zero(3, 5))));
    }
  }
}

TEST(RoutingGradient, ThrowsOnATensorOfAnotherShapeAndNamesIt) {
  const RoutingTable<double> table = table_of(3, 2, 5);
  const RoutingGradient<double> wrong{.logits = Matrix<double>::Zero(3, 4)};
  RoutingGradient<double> gradient = wrong;
  const std::string message = "RoutingGradient: logits is (3, 4), expected (3, 5)";
  EXPECT_EQ(message_of([&] { gradient.fill_empty(table); }), message);
  EXPECT_EQ(message_of([&] { gradient.assign(wrong, table); }), message);
}

TEST(RoutingTable, HasNoPaddingUnlessItSaysSo) {
  RoutingTable<double> table = table_of(3, 2, 5);
  EXPECT_FALSE(table.is_padding(1));
  table.padding = {0, 7, 0};
  EXPECT_FALSE(table.is_padding(0));
  EXPECT_TRUE(table.is_padding(1));
}

}  // namespace
}  // namespace moe
