// SPDX-License-Identifier: Apache-2.0
// RoutingGradient: its one list, and how it comes to have a table's shape.
#include "moe/routing_table.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

#ifdef _OPENMP
namespace moe::testing {

/// A number that knows which thread wrote it. The first waits until a second has come, so that
/// no thread does all the work alone.
struct Written {
  static inline std::atomic<unsigned> threads = 0;  // a bit for each

  double value = 0.0;
  int thread = -1;

  Written() = default;
  explicit Written(double v) : value(v) {}
  Written(const Written& other) : value(other.value) {}
  Written& operator=(const Written& other) {
    value = other.value;
    thread = omp_get_thread_num();
    threads |= 1U << thread;
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (threads != 3 && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::yield();
    }
    return *this;
  }
  friend Written operator+(Written a, Written b) { return Written(a.value + b.value); }
  friend Written operator*(Written a, Written b) { return Written(a.value * b.value); }
  friend Written operator/(Written a, Written b) { return Written(a.value / b.value); }
  friend bool operator<(Written a, Written b) { return a.value < b.value; }
};

}  // namespace moe::testing

template <>
struct Eigen::NumTraits<moe::testing::Written> : Eigen::GenericNumTraits<moe::testing::Written> {};
#endif

namespace moe::routing_table_test {
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

#ifdef _OPENMP
TEST(RoutingGradient, IsZeroedAndCopiedByAllThreadsOfTheCall) {
  using testing::Written;
  RoutingTable<Written> table;
  table.expert.resize(64, 1);
  table.probs.resize(64, 1);
  RoutingGradient<Written> zeros, other, gradient;
  other.probs.resize(64, 1);
  for (const RoutingGradient<Written>* from : {&zeros, &other}) {
    for (const bool fill : {false, true}) {
      Written::threads = 0;
      gradient = RoutingGradient<Written>();
      if (fill && from == &zeros) {
        gradient.fill_empty(table, 2);
      } else {
        gradient.assign(*from, table, 2);
      }
      EXPECT_EQ(Written::threads, 3U);
      EXPECT_NE(gradient.probs(0, 0).thread, gradient.probs(63, 0).thread);
    }
  }
}
#endif

TEST(RoutingTable, HasNoPaddingUnlessItSaysSo) {
  RoutingTable<double> table = table_of(3, 2, 5);
  EXPECT_FALSE(table.is_padding(1));
  table.padding = {0, 7, 0};
  EXPECT_FALSE(table.is_padding(0));
  EXPECT_TRUE(table.is_padding(1));
}

TEST(RoutingTable, CountsTheChoicesThatAreUsed) {
  RoutingTable<double> table = table_of(3, 2, 5);
  table.expert.setZero();
  table.expert(0, 1) = table.expert(2, 0) = table.expert(2, 1) = none;
  EXPECT_EQ(table.num_choices(0), 1);
  EXPECT_EQ(table.num_choices(1), 2);
  EXPECT_EQ(table.num_choices(2), 0);
  EXPECT_EQ(table.num_choices(), 3);
  EXPECT_EQ(RoutingTable<double>{}.num_choices(), 0);
}

}  // namespace
}  // namespace moe::routing_table_test
