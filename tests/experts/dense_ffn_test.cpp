// SPDX-License-Identifier: Apache-2.0
// Tests of the feed-forward that every token takes: it is its expert, shared among threads without
// a trace in the bits, and it rejects what does not fit.
#include "moe/experts/dense_ffn.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"

namespace moe::dense_ffn_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

constexpr ExpertConfig everything{.bias = true, .output_gate = true};
constexpr Index part_rows = FfnExperts<float>::part_rows;
constexpr Index many = 2 * part_rows + 5;  // tokens: three parts of 684 or 685

template <class T>
DenseFfn<T> random_ffn(const ExpertConfig& config = everything) {
  DenseFfn<T> ffn({4, 6, 3}, config, 1);
  testing::randomise(ffn.params(), 2, 0.7);
  return ffn;
}

template <class T>
struct Step {
  Matrix<T> inferred, y, dx;
  ExpertParams<T> grads;

  Step(const DenseFfn<T>& ffn, const Matrix<T>& x, const Matrix<T>& dy, int threads)
      : inferred(x.rows(), ffn.d_out()),
        y(x.rows(), ffn.d_out()),
        dx(Matrix<T>::Constant(x.rows(), ffn.d_in(), Eigen::NumTraits<T>::quiet_NaN())),
        grads(zeros_like(ffn.params())) {
    typename DenseFfn<T>::Scratch scratch;
    typename DenseFfn<T>::Tape tape;
    detail::with_team(threads, [&] {
      ffn.forward(x, inferred, scratch, {.num_threads = threads});
      ffn.forward(x, y, tape, {.num_threads = threads});
      ffn.backward(x, dy, tape, dx, grads);
    });
  }
};

TEST(DenseFfn, IsItsExpert) {
  const auto ffn = random_ffn<float>();
  const Matrix<float> x = random_matrix<float>(many, 4, 3);
  Matrix<float> y(many, 3), want(many, 3);
  DenseFfn<float>::Scratch scratch;
  Expert<float>::Scratch expert_scratch;
  ffn.forward(x, y, scratch);
  ffn.expert().forward(x, want, expert_scratch);
  EXPECT_TRUE(same_bits(y, want));
}

TEST(DenseFfn, HasTheSameBitsForAnyNumberOfThreads) {
  for (const bool gated : {false, true}) {
    const auto ffn = random_ffn<float>({.gated = gated, .bias = true, .output_gate = true});
    const Matrix<float> x = random_matrix<float>(many, 4, 4), dy = random_matrix<float>(many, 3, 5);
    const Step<float> one(ffn, x, dy, 1);
    EXPECT_TRUE(same_bits(one.y, one.inferred));
    for (const int threads : {2, 3, 8}) {
      const Step<float> other(ffn, x, dy, threads);
      EXPECT_TRUE(same_bits(other.inferred, one.inferred)) << threads;
      EXPECT_TRUE(same_bits(other.y, one.y)) << threads;
      EXPECT_TRUE(same_bits(other.dx, one.dx)) << threads;
      ExpertParams<float>::for_each(
          [&](std::string_view name, const auto& got, const auto& want) {
            EXPECT_TRUE(same_bits(got, want)) << name << ", " << threads << " threads";
          },
          other.grads, one.grads);
    }
  }
}

TEST(DenseFfn, HasTheSameBitsForARowAloneAndInABatch) {
  const auto ffn = random_ffn<float>();
  const Matrix<float> x = random_matrix<float>(many, 4, 6), dy = random_matrix<float>(many, 3, 7);
  const Step<float> batch(ffn, x, dy, 2);
  for (const Index row : {Index(0), many / 3 - 1, many / 3, many - 1}) {
    const Step<float> alone(ffn, x.row(row), dy.row(row), 1);
    EXPECT_TRUE(same_bits(alone.y, batch.y.row(row)));
    EXPECT_TRUE(same_bits(alone.dx, batch.dx.row(row)));
  }
}

TEST(DenseFfn, HasItsGradientsAcrossParts) {
  auto ffn = random_ffn<double>();
  Matrix<double> x = random_matrix<double>(part_rows + 2, 4, 8);
  const Matrix<double> dy = random_matrix<double>(x.rows(), 3, 9);
  const Step<double> step(ffn, x, dy, 2);
  DenseFfn<double>::Scratch scratch;
  Matrix<double> y(x.rows(), 3);
  const auto f = [&] {
    ffn.forward(x, y, scratch, {.num_threads = 1});
    return y.cwiseProduct(dy).sum();
  };
  EXPECT_LT(testing::gradient_error_of_list(f, ffn.params(), step.grads), 1e-7);
  // A row's gradient depends on that row alone: those around the border of the parts will do.
  const Index first = (part_rows + 2) / 2 - 2, rows = 4;
  Matrix<double> border = x.middleRows(first, rows), y_border(rows, 3);
  const auto of_border = [&] {
    ffn.forward(border, y_border, scratch, {.num_threads = 1});
    return y_border.cwiseProduct(dy.middleRows(first, rows)).sum();
  };
  EXPECT_LT(testing::gradient_error(of_border, border, step.dx.middleRows(first, rows)), 1e-7);
}

TEST(DenseFfn, AddsToGrads) {
  const auto ffn = random_ffn<double>();
  const Matrix<double> x = random_matrix<double>(5, 4, 10), dy = random_matrix<double>(5, 3, 11);
  const Step<double> step(ffn, x, dy, 1);
  DenseFfn<double>::Tape tape;
  Matrix<double> y(5, 3), dx(5, 4);
  auto grads = step.grads;
  ffn.forward(x, y, tape);
  ffn.backward(x, dy, tape, dx, grads);
  ExpertParams<double>::for_each(
      [](std::string_view name, const auto& twice, const auto& once) {
        EXPECT_TRUE(testing::matrix_near(twice, Matrix<double>(2.0 * once), 1e-14)) << name;
      },
      grads, step.grads);
  EXPECT_TRUE(same_bits(dx, step.dx));
}

TEST(DenseFfn, WalksItsTensorsAndGivesThemGradientsOfZeroAsALayerDoes) {
  DenseFfn<bf16> ffn({4, 6, 3}, {.bias = true}, 1);
  auto grads = ffn.zero_grads();
  static_assert(std::same_as<decltype(grads), ExpertParams<float>>);
  std::vector<std::string> names;
  const auto visit = [&](const ParameterName& name, const auto& parameter, const auto& grad) {
    names.push_back(name.text());
    EXPECT_EQ(grad.rows(), parameter.rows());
    EXPECT_EQ(grad.cols(), parameter.cols());
    EXPECT_TRUE(grad.isZero(0));
  };
  ffn.for_each_parameter(visit, grads);
  EXPECT_EQ(names,
            (std::vector<std::string>{"gate", "up", "down", "gate_bias", "up_bias", "down_bias"}));
  std::as_const(ffn).for_each_parameter(visit, grads);
  EXPECT_EQ(names.size(), 12U);
  ffn.for_each_parameter([](const ParameterName&, auto& tensor) { tensor.setZero(); });
  EXPECT_TRUE(ffn.params().down.cast<float>().isZero(0));
}

TEST(DenseFfn, DoesNothingForNoTokens) {
  const auto ffn = random_ffn<float>();
  const Step<float> step(ffn, Matrix<float>(0, 4), Matrix<float>(0, 3), 2);
  EXPECT_EQ(step.y.rows(), 0);
  ExpertParams<float>::for_each(
      [](std::string_view, const auto& g) { EXPECT_TRUE((g.array() == 0.0f).all()); }, step.grads);
}

TEST(DenseFfn, RejectsOtherShapesAndWritesNothing) {
  const auto ffn = random_ffn<float>();
  const Matrix<float> x = random_matrix<float>(5, 4, 12), dy = random_matrix<float>(5, 3, 13);
  Matrix<float> y(5, 3), dx(5, 4);
  auto grads = zeros_like(ffn.params());
  DenseFfn<float>::Scratch scratch;
  DenseFfn<float>::Tape tape;
  EXPECT_EQ(message_of([&] { ffn.forward(x.leftCols(3), y, scratch); }),
            "Dense: x is (5, 3), expected (5, 4)");
  EXPECT_EQ(message_of([&] { ffn.forward(x, y.topRows(4), tape); }),
            "Dense: y is (4, 3), expected (5, 3)");
  ffn.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { ffn.backward(x.topRows(4), dy.topRows(4), tape, dx, grads); }),
            "DenseFfn: x is (4, 4), expected (5, 4)");
  EXPECT_EQ(message_of([&] { ffn.backward(x, x, tape, dx, grads); }),
            "DenseFfn: dy is (5, 4), expected (5, 3)");
  EXPECT_EQ(message_of([&] { ffn.backward(x, dy, tape, y, grads); }),
            "DenseFfn: dx is (5, 3), expected (5, 4)");
  grads.up.resize(6, 5);
  EXPECT_EQ(message_of([&] { ffn.backward(x, dy, tape, dx, grads); }),
            "gradient DenseFfn.up is (6, 5), expected (6, 4)");
  grads = zeros_like(ffn.params());
  EXPECT_THROW(ffn.backward(x, x, tape, dx, grads), std::invalid_argument);
  EXPECT_TRUE((grads.up.array() == 0.0f).all());
}

TEST(DenseFfn, RejectsOverlap) {
  const auto ffn = random_ffn<float>();
  Matrix<float> memory = random_matrix<float>(8, 4, 14);
  const Matrix<float> dy = random_matrix<float>(5, 3, 15);
  const auto x = memory.topRows(5);
  Matrix<float> y(5, 3);
  auto grads = zeros_like(ffn.params());
  DenseFfn<float>::Scratch scratch;
  DenseFfn<float>::Tape tape;
  const std::string forward = "Dense: y overlaps x, expected memory of its own";
  EXPECT_EQ(message_of([&] { ffn.forward(x, memory.block(3, 0, 5, 3), scratch); }), forward);
  EXPECT_EQ(message_of([&] { ffn.forward(x, memory.block(3, 0, 5, 3), tape); }), forward);
  ffn.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { ffn.backward(x, dy, tape, memory.bottomRows(5), grads); }),
            "DenseFfn: dx overlaps x or dy, expected memory of its own");
}

TEST(DenseFfn, RejectsAForeignTape) {
  const auto ffn = random_ffn<float>();
  const auto copy = ffn;
  const Matrix<float> x = random_matrix<float>(5, 4, 16), dy = random_matrix<float>(5, 3, 17);
  Matrix<float> y(5, 3), dx(5, 4);
  auto grads = zeros_like(ffn.params());
  DenseFfn<float>::Tape tape;
  const std::string foreign = "DenseFfn: the tape is of another layer, expected this one's";
  EXPECT_EQ(message_of([&] { ffn.backward(x, dy, tape, dx, grads); }), foreign);
  copy.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { ffn.backward(x, dy, tape, dx, grads); }), foreign);
}

TEST(DenseFfn, RejectsATapeThatWasMovedFrom) {
  const auto ffn = random_ffn<float>();
  const Matrix<float> x = random_matrix<float>(5, 4, 16), dy = random_matrix<float>(5, 3, 17);
  Matrix<float> y(5, 3), dx = Matrix<float>::Constant(5, 4, 7.0F), want_dx(5, 4);
  auto grads = zeros_like(ffn.params());
  DenseFfn<float>::Tape tape;
  ffn.forward(x, y, tape);
  ffn.backward(x, dy, tape, want_dx, grads);
  DenseFfn<float>::Tape moved = std::move(tape);
  EXPECT_THROW(ffn.backward(x, dy, tape, dx, grads), std::invalid_argument);
  EXPECT_TRUE((dx.array() == 7.0F).all());
  ffn.backward(x, dy, moved, dx, grads);
  EXPECT_TRUE(same_bits(dx, want_dx));
}

#if MOE_COUNTS_ALLOCATIONS
TEST(DenseFfn, AllocatesNothingOnceItsBuffersHaveGrown) {
  const auto ffn = random_ffn<float>();
  const Matrix<float> x = random_matrix<float>(many, 4, 18), dy = random_matrix<float>(many, 3, 19);
  Matrix<float> y(many, 3), dx(many, 4);
  auto grads = zeros_like(ffn.params());
  DenseFfn<float>::Scratch scratch;
  DenseFfn<float>::Tape tape;
  const auto step = [&](Index rows) {
    ffn.forward(x.topRows(rows), y.topRows(rows), scratch, {.num_threads = 1});
    ffn.forward(x.topRows(rows), y.topRows(rows), tape, {.num_threads = 1});
    ffn.backward(x.topRows(rows), dy.topRows(rows), tape, dx.topRows(rows), grads);
  };
  step(many);
  for (const Index rows : {many, Index(1), Index(200)}) {
    EXPECT_EQ(testing::count_allocations([&] { step(rows); }), 0) << rows << " rows";
  }
}
#endif

}  // namespace
}  // namespace moe::dense_ffn_test
