// SPDX-License-Identifier: Apache-2.0
// The losses of a student by hand and by central differences, and where they are zero.
#include "moe/losses/distillation.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/throws.hpp"
#include "tables.hpp"

namespace moe::distillation_test {
namespace {

using testing::Loss;
using testing::matrix_near;
using testing::message_of;
using testing::noisy_router;
using testing::random_matrix;
using testing::random_table;
using testing::Table;

TEST(OutputDistillationLoss, IsTheMeanSquareOfTheDifferenceWithItsGradient) {
  Matrix<double> student = random_matrix<double>(5, 3, 1);
  const Matrix<double> teacher = random_matrix<double>(5, 3, 2);
  const auto loss = output_distillation_loss(student, teacher);
  EXPECT_NEAR(loss.value, (student - teacher).squaredNorm() / 15, 1e-15);
  const auto f = [&] { return output_distillation_loss(student, teacher).value; };
  EXPECT_LT(testing::gradient_error(f, student, loss.gradient), 1e-8);
  EXPECT_EQ(output_distillation_loss(teacher, teacher).value, 0.0);
  EXPECT_EQ(output_distillation_loss(Matrix<double>(0, 3), Matrix<double>(0, 3)).value, 0.0);
}

TEST(OutputDistillationLoss, DoesNotReadWhatAMaskLeavesOut) {
  const Matrix<double> student = random_matrix<double>(4, 3, 1);
  Matrix<double> teacher = random_matrix<double>(4, 3, 2);
  const auto want = output_distillation_loss<double>(student.bottomRows(2), teacher.bottomRows(2));
  teacher.topRows(2).setConstant(std::nan(""));
  const std::vector<std::uint8_t> mask = {0, 0, 1, 1};
  const auto got = output_distillation_loss(student, teacher, mask);
  EXPECT_NEAR(got.value, want.value, 1e-15);
  EXPECT_TRUE(got.gradient.topRows(2).isZero(0));
  EXPECT_TRUE(matrix_near(got.gradient.bottomRows(2), want.gradient, 1e-15));
}

TEST(OutputDistillationLoss, OfSixteenBitsIsSummedInMore) {
  const Matrix<bf16> student = Matrix<bf16>::Constant(4096, 8, bf16(1.0F));
  const Matrix<bf16> teacher = Matrix<bf16>::Constant(4096, 8, bf16(0.5F));
  const auto loss = output_distillation_loss(student, teacher);
  static_assert(std::same_as<decltype(loss.value), float>);
  EXPECT_FLOAT_EQ(loss.value, 0.25F);
  EXPECT_FLOAT_EQ(static_cast<float>(loss.gradient(7, 3)), 2.0F * 0.5F / (4096.0F * 8.0F));
}

/// The divergence by plain loops.
double divergence(const Table& table, const Matrix<double>& teacher) {
  double sum = 0.0;
  for (Index t = 0; t < teacher.rows(); ++t) {
    const double z = table.logits.row(t).array().exp().sum();
    for (Index e = 0; e < teacher.cols(); ++e) {
      const double p = teacher(t, e) / teacher.row(t).sum();
      const double q = std::exp(table.logits(t, e)) / z;
      sum += p > 0.0 ? p * std::log(p / q) : 0.0;
    }
  }
  return sum / static_cast<double>(teacher.rows());
}

TEST(RouterDistillationLoss, IsTheDivergenceFromTheTeacherWithItsGradientThroughTheRouter) {
  GrowingMatrix<double> teacher;
  teacher = random_matrix<double>(6, 5, 31).cwiseAbs();  // as sigmoids, of any sum
  teacher(2, 3) = 0.0;
  Router<double> router = noisy_router();
  Matrix<double> x = random_matrix<double>(6, 3, 21), dx(6, 3);
  Router<double>::Table table;
  router.route(x, {.num_threads = 1}, table);
  Loss loss = router_distillation_loss<double>(table, teacher);
  EXPECT_NEAR(loss.value, divergence(table, teacher), 1e-13);
  auto grads = zeros_like(router.params());
  router.backward(x, table, loss.gradient, dx, grads);
  const auto f = [&] {
    router.route(x, {.num_threads = 1}, table);
    return router_distillation_loss<double>(table, teacher).value;
  };
  EXPECT_LT(testing::gradient_error(f, x, dx), 1e-7);
  EXPECT_LT(testing::gradient_error_of_list(f, router.params(), grads), 1e-7);
}

TEST(RouterDistillationLoss, IsZeroWhereTheStudentChoosesAsItsTeacher) {
  Router<double>::Table table;
  noisy_router().route(random_matrix<double>(7, 3, 3), {}, table);
  const Loss loss = router_distillation_loss<double>(table, table.probs);
  EXPECT_NEAR(loss.value, 0.0, 1e-14);
  EXPECT_LT(loss.gradient.logits.cwiseAbs().maxCoeff(), 1e-14);
}

TEST(RouterDistillationLoss, LeavesOutMaskedExpertsAndTokens) {
  Table table = random_table(3);
  GrowingMatrix<double> teacher;
  teacher = random_matrix<double>(3, 5, 31).cwiseAbs();
  table.logits(0, 2) = -std::numeric_limits<double>::infinity();
  teacher.row(1).setZero();
  teacher.row(2).setConstant(std::nan(""));
  const std::vector<std::uint8_t> mask = {1, 1, 0};
  const Loss loss = router_distillation_loss(table, teacher, mask);
  Table one = table;
  one.logits.resize(1, 4);
  Matrix<double> wanted(1, 4);
  for (const Index e : {0, 1, 3, 4}) {
    one.logits(0, e - (e > 2 ? 1 : 0)) = table.logits(0, e);
    wanted(0, e - (e > 2 ? 1 : 0)) = teacher(0, e);
  }
  EXPECT_NEAR(loss.value, divergence(one, wanted) / 2, 1e-14);
  EXPECT_EQ(loss.gradient.logits(0, 2), 0.0);
  EXPECT_NEAR(loss.gradient.logits.row(0).sum(), 0.0, 1e-15);
  EXPECT_TRUE(loss.gradient.logits.bottomRows(2).isZero(0));
}

TEST(GroupProbabilities, AreTheSumsOverTheExpertsOfAGroup) {
  const Table table = testing::tiny_table();
  GrowingMatrix<double> sums;
  group_probabilities<double>(table, std::vector<ExpertId>{1, 0, 1}, 2, sums);
  const Matrix<double> want = (Matrix<double>(3, 2) << 0.3, 0.7, 0.1, 0.9, 0.2, 0.8).finished();
  EXPECT_TRUE(matrix_near(sums, want, 1e-15));
  EXPECT_EQ(message_of([&] {
              group_probabilities<double>(table, std::vector<ExpertId>{1, 0, 2}, 2, sums);
            }),
            "group_probabilities: group 2, expected in [0, 2)");
  EXPECT_THROW(group_probabilities<double>(table, std::vector<ExpertId>{1, 0}, 2, sums),
               std::invalid_argument);
}

TEST(Distillation, RefusesATeacherOfAnotherShape) {
  const Table table = random_table(3);
  EXPECT_THROW(router_distillation_loss(table, GrowingMatrix<double>()), std::invalid_argument);
  EXPECT_EQ(
      message_of([] { output_distillation_loss(Matrix<double>(2, 3), Matrix<double>(2, 4)); }),
      "output_distillation_loss: teacher is (2, 4), expected (2, 3)");
}

TEST(Distillation, HasTheSameBitsForAnyThreadCount) {
  const Matrix<float> student = random_matrix<float>(700, 16, 1);
  const Matrix<float> teacher = random_matrix<float>(700, 16, 2);
  const auto one = output_distillation_loss(student, teacher, {}, 1);
  detail::with_team(3, [&] {
    const auto many = output_distillation_loss(student, teacher, {}, 3);
    EXPECT_EQ(many.value, one.value);
    EXPECT_TRUE(testing::same_bits(many.gradient, one.gradient));
  });
}

#if MOE_COUNTS_ALLOCATIONS
TEST(Distillation, WrittenIntoTheLastResultAllocatesNothing) {
  const Matrix<float> student = random_matrix<float>(70, 16, 1);
  const Matrix<float> teacher = random_matrix<float>(70, 16, 2);
  const Table table = random_table(9);
  OutputLoss<float> outputs;
  Loss choices;
  const auto both = [&] {
    output_distillation_loss<float>(student, teacher, {}, outputs, 1);
    router_distillation_loss(table, table.probs, {}, choices, 1);
  };
  both();
  EXPECT_EQ(testing::count_allocations(both), 0);
}
#endif

}  // namespace
}  // namespace moe::distillation_test
