// SPDX-License-Identifier: Apache-2.0
// Tests of one expert: by hand, against the reference, its gradients against differences, and the
// promises about bits.
#include "moe/experts/expert.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/pairs.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/reference.hpp"

namespace moe::expert_test {
namespace {

using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

/// Calls f(config) for every kind of expert.
template <class F>
void for_each_kind(F&& f) {
  std::vector<ExpertConfig> kinds = testing::pair_configs();
  for (const auto activation : all_activations) {
    kinds.push_back({.activation = activation, .gated = false});
  }
  for (ExpertConfig config : kinds) {
    for (int bits = 0; bits < 4; ++bits) {
      config.bias = (bits & 1) != 0;
      config.output_gate = (bits & 2) != 0;
      SCOPED_TRACE(::testing::Message()
                   << "activation " << static_cast<int>(config.activation) << ", gated "
                   << config.gated << ", limit " << config.limit.value_or(0.0) << ", clamp "
                   << static_cast<int>(config.clamp) << ", bias " << config.bias << ", output gate "
                   << config.output_gate);
      f(config);
    }
  }
}

/// 5 -> 7 -> 3 wide, no tensor zero.
template <class T>
Expert<T> random_expert(const ExpertConfig& config) {
  Expert<T> expert({5, 7, 3}, config, 1);
  testing::randomise(expert.params(), 2, 0.7);
  return expert;
}

template <class T>
Matrix<T> forward(const Expert<T>& expert, const Matrix<T>& x) {
  Matrix<T> y(x.rows(), expert.d_out());
  typename Expert<T>::Scratch scratch;
  expert.forward(x, y, scratch);
  return y;
}

/// Everything forward and backward give, from grads that start at `start`. With parts, every stage
/// is computed part by part, on rows that are not the first of the tape.
template <class T>
struct Backward {
  Matrix<T> y, dx;
  ExpertParams<T> grads;

  Backward(const Expert<T>& expert, const Matrix<T>& x, const Matrix<T>& dy, T start = T(0),
           Index parts = 1)
      : y(Matrix<T>::Constant(x.rows(), dy.cols(), Eigen::NumTraits<T>::quiet_NaN())),
        dx(Matrix<T>::Constant(x.rows(), x.cols(), Eigen::NumTraits<T>::quiet_NaN())),
        grads(expert.params()) {
    ExpertParams<T>::for_each([&](std::string_view, auto& g) { g.setConstant(start); }, grads);
    typename Expert<T>::Tape tape;
    if (parts == 1) {
      expert.forward(x, y, tape);
      expert.backward(x, dy, tape, dx, grads);
      return;
    }
    const Index first = 2;
    const auto each = [&](auto stage) {
      for (Index part = parts - 1; part >= 0; --part) {
        stage(detail::Part{part, parts});
      }
    };
    expert.reserve(tape, first + x.rows());
    each([&](detail::Part part) { expert.forward_hidden(x, tape, first, part); });
    each([&](detail::Part part) { expert.forward_output(tape, first, y, part); });
    expert.backward_gate(dy, tape, first);
    each([&](detail::Part part) { expert.backward_hidden(dy, tape, first, part); });
    each([&](detail::Part part) { expert.backward_input(tape, first, dx, part); });
    each([&](detail::Part part) { expert.backward_params({x, dy, first}, tape, grads, part); });
  }
};

template <class T>
void expect_same_bits(const ExpertParams<T>& got, const ExpertParams<T>& want) {
  ExpertParams<T>::for_each([](std::string_view name, const auto& g,
                               const auto& w) { EXPECT_TRUE(same_bits(g, w)) << name; },
                            got, want);
}

Matrix<double> matrix(Index rows, std::initializer_list<double> values) {
  const Index cols = static_cast<Index>(values.size()) / std::max<Index>(rows, 1);
  return Eigen::Map<const Matrix<double>>(values.begin(), rows, cols);
}

TEST(Expert, ComputesAPlainExampleByHand) {
  const ExpertConfig config{.activation = Activation::relu, .gated = false, .bias = true};
  ExpertParams<double> p;
  p.up = matrix(2, {1, 0, 1, -1});
  p.up_bias = matrix(1, {0.5, -1});
  p.down = matrix(2, {1, 2, 3, 4});
  p.down_bias = matrix(1, {10, 20});
  // x = (1, 2): up = (1.5, -2), hidden = (1.5, 0), y = (1.5 + 10, 4.5 + 20)
  EXPECT_TRUE(
      same_bits(forward(Expert<double>(p, config), matrix(1, {1, 2})), matrix(1, {11.5, 24.5})));
}

TEST(Expert, ComputesAGatedExampleByHand) {
  const ExpertConfig config{
      .activation = Activation::relu_squared, .gated = true, .output_gate = true};
  ExpertParams<double> p;
  p.gate = matrix(2, {2, 0, 0, -1});
  p.up = matrix(2, {1, 1, 3, 0});
  p.down = matrix(2, {1, 1, -1, 0.5});
  p.output_gate = matrix(1, {2, -1});
  // x = (1, 2): gate = (2, -2), act = (4, 0), up = (3, 3), hidden = (12, 0), down = (12, -12);
  // x . output_gate = 0, and sigmoid(0) = 1/2.
  EXPECT_TRUE(same_bits(forward(Expert<double>(p, config), matrix(1, {1, 2})), matrix(1, {6, -6})));
}

TEST(Expert, AgreesWithTheReferenceForEveryKind) {
  for_each_kind([](const ExpertConfig& config) {
    const auto wide = random_expert<double>(config);
    const Expert<float> single = random_expert<float>(config);
    const Matrix<double> x = random_matrix<double>(9, 5, 3);
    const Matrix<float> x_single = x.cast<float>();
    Matrix<double> want(9, 3), want_single(9, 3);
    for (Index row = 0; row < x.rows(); ++row) {
      const auto y = reference::expert(wide.params(), config, reference::row_of(x, row));
      const auto s = reference::expert(single.params(), config, reference::row_of(x_single, row));
      want.row(row) = Eigen::Map<const Matrix<double>>(y.data(), 1, 3);
      want_single.row(row) = Eigen::Map<const Matrix<double>>(s.data(), 1, 3);
    }
    EXPECT_TRUE(matrix_near(forward(wide, x), want, 1e-14));
    EXPECT_TRUE(matrix_near(forward(single, x_single), want_single, 2e-6));
  });
}

TEST(Expert, AgreesWithTheReferenceInBfloat16) {
  using T = Eigen::bfloat16;
  const ExpertConfig config{.bias = true, .output_gate = true};
  const auto expert = random_expert<T>(config);
  const Matrix<T> x = random_matrix<T>(9, 5, 3);
  Matrix<double> want(9, 3);
  for (Index row = 0; row < x.rows(); ++row) {
    const auto y = reference::expert(expert.params(), config, reference::row_of(x, row));
    want.row(row) = Eigen::Map<const Matrix<double>>(y.data(), 1, 3);
  }
  EXPECT_TRUE(matrix_near(forward(expert, x), want, 2e-2));
}

TEST(Expert, HasTheSameBitsInTrainingAsInInference) {
  for_each_kind([](const ExpertConfig& config) {
    const auto expert = random_expert<float>(config);
    const Matrix<float> x = random_matrix<float>(9, 5, 4);
    Matrix<float> y(9, 3);
    Expert<float>::Tape tape;
    expert.forward(x, y, tape);
    EXPECT_TRUE(same_bits(y, forward(expert, x)));
  });
}

TEST(Expert, HasTheGradientsOfEveryKind) {
  for_each_kind([](const ExpertConfig& config) {
    auto expert = random_expert<double>(config);
    Matrix<double> x = random_matrix<double>(4, 5, 5);
    const Matrix<double> dy = random_matrix<double>(4, 3, 6);
    const Backward<double> backward(expert, x, dy);
    const auto f = [&] { return forward(expert, x).cwiseProduct(dy).sum(); };
    EXPECT_LT(testing::gradient_error(f, x, backward.dx), 1e-7);
    EXPECT_LT(testing::gradient_error_of_list(f, expert.params(), backward.grads), 1e-7);
  });
}

TEST(Expert, AddsToGradsAndOverwritesDx) {
  for_each_kind([](const ExpertConfig& config) {
    const auto expert = random_expert<double>(config);
    const Matrix<double> x = random_matrix<double>(6, 5, 7), dy = random_matrix<double>(6, 3, 8);
    const Backward<double> from_zero(expert, x, dy), from_one(expert, x, dy, 1.0);
    EXPECT_TRUE(same_bits(from_zero.dx, from_one.dx));
    ExpertParams<double>::for_each(
        [](std::string_view name, const auto& zero, const auto& one) {
          const Matrix<double> want = zero.array() + 1.0;
          EXPECT_TRUE(matrix_near(one, want, 1e-13)) << name;
        },
        from_zero.grads, from_one.grads);
  });
}

// Every tensor has several panels and several tiles of rows, so that parts cut each of the stages.
TEST(Expert, HasTheSameBitsForEveryNumberOfParts) {
  constexpr Index panel = kernels::RegisterTile<float>::cols;
  const Expert<float>::Sizes sizes{2 * panel + 5, 3 * panel + 7, 2 * panel + 3};
  const Matrix<float> x = random_matrix<float>(9, sizes.d_in, 9);
  const Matrix<float> dy = random_matrix<float>(9, sizes.d_out, 10);
  for (const bool gated : {false, true}) {
    Expert<float> expert(sizes, {.gated = gated, .bias = true, .output_gate = true}, 1);
    testing::randomise(expert.params(), 2, 0.1);
    const Backward<float> whole(expert, x, dy, 0.5f);
    for (const Index parts : {2, 3, 5, 50}) {
      const Backward<float> parted(expert, x, dy, 0.5f, parts);
      EXPECT_TRUE(same_bits(parted.y, whole.y)) << parts << " parts";
      EXPECT_TRUE(same_bits(parted.dx, whole.dx)) << parts << " parts";
      expect_same_bits(parted.grads, whole.grads);
    }
  }
}

// Wide enough for vectors and their remainders, and each row alone at other addresses than in the
// batch: what Eigen does in vectors depends on the alignment.
TEST(Expert, HasTheSameBitsForARowAloneAndInABatch) {
  for_each_kind([](const ExpertConfig& config) {
    Expert<float> expert({37, 21, 35}, config, 1);
    testing::randomise(expert.params(), 2, 0.3);
    const Matrix<float> x = random_matrix<float>(8, 37, 11), dy = random_matrix<float>(8, 35, 12);
    const Matrix<float> y = forward(expert, x), dx = Backward<float>(expert, x, dy).dx;
    for (Index row = 0; row < x.rows(); ++row) {
      EXPECT_TRUE(same_bits(forward<float>(expert, x.row(row)), y.row(row)));
      EXPECT_TRUE(same_bits(Backward<float>(expert, x.row(row), dy.row(row)).dx, dx.row(row)));
    }
  });
}

TEST(Expert, DoesNothingForNoRows) {
  for_each_kind([](const ExpertConfig& config) {
    const auto expert = random_expert<float>(config);
    const Matrix<float> x(0, 5), dy(0, 3);
    EXPECT_EQ(forward(expert, x).rows(), 0);
    const Backward<float> backward(expert, x, dy, 0.25f);
    ExpertParams<float>::for_each(
        [](std::string_view name, const auto& g) {
          EXPECT_TRUE((g.array() == 0.25f).all()) << name;
        },
        backward.grads);
  });
}

TEST(Expert, KeepsNanInItsRow) {
  const auto expert = random_expert<float>({.bias = true, .output_gate = true});
  Matrix<float> x = random_matrix<float>(8, 5, 13);
  const Matrix<float> clean = forward(expert, x);
  x(3, 2) = std::numeric_limits<float>::quiet_NaN();
  Matrix<float> got = forward(expert, x);
  EXPECT_TRUE(got.row(3).array().isNaN().all());
  got.row(3) = clean.row(3);
  EXPECT_TRUE(same_bits(got, clean));
}

TEST(Expert, MayUseATapeAgainForFewerRows) {
  const auto expert = random_expert<float>({.output_gate = true});
  const Matrix<float> x = random_matrix<float>(9, 5, 14), dy = random_matrix<float>(9, 3, 15);
  const Matrix<float> few = x.topRows(4), few_dy = dy.topRows(4);
  const Backward<float> fresh(expert, few, few_dy);
  Expert<float>::Tape tape;
  Matrix<float> y(9, 3), dx(4, 5);
  expert.forward(x, y, tape);
  expert.forward(few, y.topRows(4), tape);
  auto grads = zeros_like(expert.params());
  expert.backward(few, few_dy, tape, dx, grads);
  EXPECT_TRUE(same_bits(dx, fresh.dx));
  expect_same_bits(grads, fresh.grads);
}

TEST(Expert, MakesTheTensorsOfItsKindOnly) {
  for_each_kind([](const ExpertConfig& config) {
    const Expert<float> expert({5, 7, 3}, config, 1);
    const auto& p = expert.params();
    EXPECT_EQ(p.up.size(), 35);
    EXPECT_EQ(p.down.size(), 21);
    EXPECT_EQ(p.gate.size(), config.gated ? 35 : 0);
    EXPECT_EQ(p.gate_bias.size(), config.gated && config.bias ? 7 : 0);
    EXPECT_EQ(p.up_bias.size(), config.bias ? 7 : 0);
    EXPECT_EQ(p.down_bias.size(), config.bias ? 3 : 0);
    EXPECT_EQ(p.output_gate.size(), config.output_gate ? 5 : 0);
    EXPECT_TRUE((p.up_bias.array() == 0.0f).all());
    EXPECT_NO_THROW(Expert<float>(p, config));
  });
}

TEST(Expert, DrawsWeightsOfVarianceOneOverFanIn) {
  const Expert<double> expert({100, 200, 50}, {}, 3);
  EXPECT_NEAR(expert.params().up.squaredNorm() / 200.0, 1.0, 0.05);
  EXPECT_NEAR(expert.params().down.squaredNorm() / 50.0, 1.0, 0.05);
  EXPECT_FALSE(same_bits(expert.params().up, expert.params().gate));
  EXPECT_TRUE(same_bits(Expert<double>({100, 200, 50}, {}, 3).params().up, expert.params().up));
}

TEST(Expert, RejectsWeightsThatDoNotFit) {
  const ExpertConfig config{.bias = true, .output_gate = true};
  const auto message = [&](auto change) {
    auto params = random_expert<float>(config).params();
    change(params);
    return testing::message_of([&] { Expert<float>(params, config); });
  };
  EXPECT_EQ(message([](auto& p) { p.down.resize(3, 6); }),
            "parameter Expert.down is (3, 6), expected (3, 7)");
  EXPECT_EQ(message([](auto& p) { p.gate.resize(6, 5); }),
            "parameter Expert.gate is (6, 5), expected (7, 5)");
  EXPECT_EQ(message([](auto& p) { p.gate.resize(7, 4); }),
            "parameter Expert.gate is (7, 4), expected (7, 5)");
  EXPECT_EQ(message([](auto& p) { p.up_bias.resize(7, 1); }),
            "parameter Expert.up_bias is (7, 1), expected (1, 7)");
  EXPECT_EQ(message([](auto& p) { p.gate_bias.resize(0, 0); }),
            "parameter Expert.gate_bias is (0, 0), expected (1, 7)");
  EXPECT_EQ(message([](auto& p) { p.down_bias.resize(1, 4); }),
            "parameter Expert.down_bias is (1, 4), expected (1, 3)");
  EXPECT_EQ(message([](auto& p) { p.output_gate.resize(1, 3); }),
            "parameter Expert.output_gate is (1, 3), expected (1, 5)");
  EXPECT_EQ(message([](auto& p) { p.up.resize(0, 5); }),
            "parameter Expert.gate is (7, 5), expected (0, 5)");
  EXPECT_EQ(testing::message_of([] {
              auto params = random_expert<float>({}).params();
              params.up.resize(0, 5);
              Expert<float>(params, {});
            }),
            "Expert: up is (0, 5) and down has 3 rows, expected at least 1 of each");
  EXPECT_EQ(testing::message_of([] {
              Expert<float>({5, 0, 3}, {}, 1);
            }),
            "Expert: sizes (5, 0, 3), expected at least 1");
}

#if MOE_COUNTS_ALLOCATIONS
TEST(Expert, AllocatesNothingOnceItsBuffersHaveGrown) {
  for_each_kind([](const ExpertConfig& config) {
    const auto expert = random_expert<float>(config);
    const Matrix<float> x = random_matrix<float>(9, 5, 16), dy = random_matrix<float>(9, 3, 17);
    Matrix<float> y(9, 3), dx(9, 5);
    Expert<float>::Scratch scratch;
    Expert<float>::Tape tape;
    auto grads = zeros_like(expert.params());
    const auto step = [&](Index rows) {
      expert.forward(x.topRows(rows), y.topRows(rows), scratch);
      expert.forward(x.topRows(rows), y.topRows(rows), tape);
      expert.backward(x.topRows(rows), dy.topRows(rows), tape, dx.topRows(rows), grads);
    };
    step(9);
    for (const Index rows : {9, 3, 0, 8}) {
      EXPECT_EQ(testing::count_allocations([&] { step(rows); }), 0) << rows << " rows";
    }
  });
}
#endif

}  // namespace
}  // namespace moe::expert_test
