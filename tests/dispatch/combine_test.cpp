// SPDX-License-Identifier: Apache-2.0
// Tests of the rows' way back from expert order along a plan.
#include "moe/dispatch/combine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "moe/experts/gather.hpp"
#include "support/laid_rows.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe::combine_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class T>
struct Routed : testing::LaidRows {
  RoutingTable<Wide<T>> table;

  /// Random choices of 5 experts, some unused, and what does not fit dropped.
  Routed(Index num_tokens, Index choices, std::uint64_t seed) {
    const detail::CounterRandom random(seed, 1);
    table.expert.resize(num_tokens, choices);
    for (Index i = 0; i < table.expert.size(); ++i) {
      table.expert.data()[i] =
          static_cast<ExpertId>(random.bits(static_cast<std::uint64_t>(i)) % 6) - 1;
    }
    table.weight = random_matrix<Wide<T>>(num_tokens, choices, seed);
    lay(table, 5, {.rows = num_tokens / 4});
  }
};

template <class T>
std::vector<Wide<T>> row_weights(const Routed<T>& routed) {
  std::vector<Wide<T>> weight;
  gather_weights(routed.table.weight, routed.plan, weight);
  return weight;
}

template <class T>
class Combine : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(Combine, Scalars);

TYPED_TEST(Combine, KnowsTheWeightOfEachRow) {
  using T = TypeParam;
  const Routed<T> routed(40, 3, 3);
  const std::vector<Wide<T>> weight = row_weights(routed);
  ASSERT_EQ(static_cast<Index>(weight.size()), routed.plan.num_rows());
  for (std::size_t row = 0; row < weight.size(); ++row) {
    ASSERT_EQ(weight[row],
              routed.table.weight(routed.plan.token()[row], routed.plan.choice()[row]));
  }
}

TYPED_TEST(Combine, SumsTheWeightedRowsOfEachToken) {
  using T = TypeParam;
  const Routed<T> routed(40, 3, 5);
  ASSERT_GT(routed.kept.num_dropped(), 0);
  const testing::Ints slots = routed.slots();
  const std::vector<Wide<T>> row_weight = row_weights(routed);
  Matrix<T> rows = random_matrix<T>(routed.plan.num_rows() + 3, 70, 6);  // higher than needed
  rows.bottomRows(3).setConstant(Eigen::NumTraits<T>::quiet_NaN());
  const Matrix<T> base = random_matrix<T>(40, 70, 7);
  for (const bool weighted : {false, true}) {
    for (const bool with_base : {false, true}) {
      Matrix<double> want = Matrix<double>::Zero(40, 70);
      for (Index t = 0; t < 40; ++t) {
        for (Index k = 0; k < 3; ++k) {
          if (const Index slot = slots[static_cast<std::size_t>(3 * t + k)];
              slot != testing::no_row) {
            const double weight = weighted ? static_cast<double>(routed.table.weight(t, k)) : 1.0;
            want.row(t) += weight * rows.row(slot).template cast<double>();
          }
        }
      }
      Matrix<T> y = base;
      MatrixRef<T> base_ref = y;  // the base may be y
      if (with_base) {
        want += base.template cast<double>();
      }
      combine_rows<T>(rows, routed.plan,
                      weighted ? std::span<const Wide<T>>(row_weight) : std::span<const Wide<T>>(),
                      with_base ? &base_ref : nullptr, y, 2);
      const double tolerance = std::is_same_v<T, double>  ? 1e-15
                               : std::is_same_v<T, float> ? 4e-7
                                                          : 4e-3;
      EXPECT_TRUE(testing::matrix_near(y, want, tolerance));
    }
  }
}

TYPED_TEST(Combine, AddsTheRowsToTheSumOfTwoBasesAndRoundsOnce) {
  using T = TypeParam;
  const Routed<T> routed(40, 3, 5);
  const testing::Ints slots = routed.slots();
  // Eighths below 16: sums are exact in float, and not in 16 bits.
  const auto coarse = [](Index rows, std::uint64_t seed) {
    return Matrix<T>(random_matrix<double>(rows, 70, seed).unaryExpr([](double value) {
      return T(std::round(8.0 * std::clamp(4.0 * value, -15.0, 15.0)) / 8.0);
    }));
  };
  const Matrix<T> rows = coarse(routed.plan.num_rows(), 6);
  Matrix<T> y = coarse(40, 7), other = coarse(40, 8);
  Matrix<double> want = y.template cast<double>() + other.template cast<double>();
  for (Index t = 0; t < 40; ++t) {
    for (Index k = 0; k < 3; ++k) {
      if (const Index slot = slots[static_cast<std::size_t>(3 * t + k)]; slot != testing::no_row) {
        want.row(t) += rows.row(slot).template cast<double>();
      }
    }
  }
  const MatrixRef<T> first = y, second = other;
  combine_rows<T>(rows, routed.plan, {}, {&first, &second}, y, 2);
  EXPECT_TRUE(
      same_bits(y, Matrix<T>(want.unaryExpr([](double v) { return kernels::convert<T>(v); }))));
}

TYPED_TEST(Combine, WritesZeroForATokenWithoutRows) {
  using T = TypeParam;
  RoutingTable<Wide<T>> table;
  table.expert.setConstant(3, 2, none);
  table.weight.setConstant(3, 2, std::numeric_limits<Wide<T>>::quiet_NaN());
  const testing::LaidRows laid(table, 4);
  Matrix<T> y = Matrix<T>::Constant(3, 5, Eigen::NumTraits<T>::quiet_NaN());
  combine_rows<T>(Matrix<T>(0, 5), laid.plan, {}, nullptr, y, 1);
  EXPECT_TRUE(same_bits(y, Matrix<T>::Constant(3, 5, T(0))));
}

TYPED_TEST(Combine, UndoesTheGatherWhenWeightsSumToOne) {
  using T = TypeParam;
  Routed<T> routed(4, 2, 8);
  routed.table.expert << 0, 1, 1, 2, 2, 0, 0, 2;
  routed.table.weight.col(0).setConstant(Wide<T>(0.75));
  routed.table.weight.col(1).setConstant(Wide<T>(0.25));
  routed.lay(routed.table, 3);
  Matrix<T> x = Matrix<T>::Constant(4, 3, T(0)), y(4, 3);
  for (Index i = 0; i < 12; ++i) {
    x.data()[i] = T(static_cast<double>(i));
  }
  GrowingMatrix<T> memory;
  const Matrix<T> rows = gather_rows<T>({x, routed.plan.groups()}, memory, 1);
  combine_rows<T>(rows, routed.plan, row_weights(routed), nullptr, y, 1);
  EXPECT_TRUE(same_bits(y, x));
}

TEST(CombineRows, HasTheSameBitsForAnyNumberOfThreads) {
  const Routed<float> routed(200, 3, 9);
  const Matrix<float> rows = random_matrix<float>(routed.plan.num_rows(), 37, 10);
  const auto combined = [&](int threads) {
    Matrix<float> y(200, 37);
    combine_rows<float>(rows, routed.plan, row_weights(routed), nullptr, y, threads);
    return y;
  };
  const Matrix<float> one = combined(1);
  for (const int threads : {2, 3, 8}) {
    EXPECT_TRUE(same_bits(combined(threads), one)) << threads;
  }
}

TEST(CombineRows, DoesNothingForNoTokens) {
  Routed<float> routed(0, 2, 11);
  Matrix<float> y(0, 5);
  EXPECT_NO_THROW(combine_rows<float>(Matrix<float>(0, 5), routed.plan, {}, nullptr, y, 2));
}

TEST(CombineRows, RefusesWhatDoesNotFitThePlan) {
  const Routed<float> routed(8, 2, 11);
  const Index num_rows = routed.plan.num_rows();
  const auto message = [&](Index rows, Index cols, Index y_rows, std::size_t weights) {
    const std::vector<float> weight(weights);
    Matrix<float> y(y_rows, 5);
    return testing::message_of([&] {
      combine_rows<float>(Matrix<float>::Zero(rows, cols), routed.plan, weight, nullptr, y, 1);
    });
  };
  const auto size = static_cast<std::size_t>(num_rows);
  EXPECT_EQ(message(num_rows + 1, 5, 8, size), "(nothing was thrown)");
  EXPECT_NE(message(num_rows - 1, 5, 8, size).find("combine_rows: rows is ("), std::string::npos);
  EXPECT_NE(message(num_rows, 4, 8, size).find("combine_rows: rows is ("), std::string::npos);
  EXPECT_EQ(message(num_rows, 5, 9, size), "combine_rows: y is (9, 5), expected (8, 5)");
  EXPECT_NE(message(num_rows, 5, 8, 1).find("combine_rows: weight has 1 elements"),
            std::string::npos);
  std::vector<float> row_weight;
  EXPECT_EQ(testing::message_of(
                [&] { gather_weights(GrowingMatrix<float>(8, 1), routed.plan, row_weight); }),
            "gather_weights: weight is (8, 1), expected (8, 2)");
}

}  // namespace
}  // namespace moe::combine_test
