// SPDX-License-Identifier: Apache-2.0
// Tests of the activations: known values, derivatives by differences, limits, NaN, and the FLOPs
// that each claims to cost.
#include "moe/experts/activation.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "../support/counting_scalar.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/reference.hpp"

namespace moe::activation_test {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class Kind>
class ActivationOf : public ::testing::Test {};
using Kinds = ::testing::Types<Relu, ReluSquared, GeluErf, GeluTanh, GeluQuick, Silu, Situ>;
TYPED_TEST_SUITE(ActivationOf, Kinds);

TYPED_TEST(ActivationOf, HasItsDerivative) {
  for (double z = -6.05; z < 6.0; z += 0.1) {  // never near the kink at 0
    double x = z;
    const double difference = testing::derivative([&] { return TypeParam().value(x); }, x);
    EXPECT_NEAR(TypeParam().derivative(z), difference, 1e-9) << z;
  }
}

TYPED_TEST(ActivationOf, KeepsNan) {
  EXPECT_TRUE(std::isnan(TypeParam().value(nan)));
  EXPECT_TRUE(std::isnan(TypeParam().derivative(nan)));
  EXPECT_TRUE(std::isnan(TypeParam().value(static_cast<float>(nan))));
  EXPECT_TRUE(std::isnan(TypeParam().derivative(static_cast<float>(nan))));
}

TYPED_TEST(ActivationOf, IsZeroAtZero) {
  EXPECT_EQ(TypeParam().value(0.0), 0.0);
  EXPECT_EQ(TypeParam().value(-0.0), 0.0);
}

TYPED_TEST(ActivationOf, PassesInfinityOn) { EXPECT_EQ(TypeParam().value(inf), inf); }

TYPED_TEST(ActivationOf, CostsTheFlopsItClaims) {
  for (const double z : {-1.5, 0.0, 2.5}) {
    const testing::Counting counting(z);
    EXPECT_EQ(testing::count_flops([&] { TypeParam().value(counting); }), TypeParam::value_flops);
    EXPECT_EQ(testing::count_flops([&] { TypeParam().derivative(counting); }),
              TypeParam::derivative_flops);
  }
}

TYPED_TEST(ActivationOf, IsTheSameInFloatAndDouble) {
  for (float z = -8.0f; z < 8.0f; z += 0.25f) {
    const double wide = z;
    EXPECT_NEAR(static_cast<double>(TypeParam().value(z)), TypeParam().value(wide),
                1e-6 * (1.0 + TypeParam().value(std::abs(wide))));
    EXPECT_NEAR(static_cast<double>(TypeParam().derivative(z)), TypeParam().derivative(wide), 4e-6);
  }
}

/// Value and derivative of a row, as an expert computes them.
template <class Kind, class T>
Matrix<T> along_a_row(const Matrix<T>& z) {
  Matrix<T> result(2, z.cols());
  kernels::for_lanes<T>(z.cols(), [&](auto at) {
    at.store(&result(0, 0), Kind().value(at.load(z.data())));
    at.store(&result(1, 0), Kind().derivative(at.load(z.data())));
  });
  return result;
}

template <class Kind, class T>
void expect_lanes_like_scalars(double tolerance) {
  constexpr Index size = 16 * 16 + 5;  // whole registers of every kind, and a rest
  Matrix<T> z = testing::random_matrix<T>(1, size, 1) * T(3);
  z.leftCols(9) << T(nan), T(inf), T(-inf), T(0), T(-0.0), T(30), T(-30), T(1e4), T(-1e4);
  const Matrix<T> row = along_a_row<Kind>(z);
  for (Index i = 0; i < size; ++i) {
    const Matrix<T> alone = along_a_row<Kind>(Matrix<T>(z.col(i)));
    ASSERT_TRUE(testing::same_bits(row.col(i), alone)) << "the bits depend on place " << i;
    const T value = Kind().value(z(0, i)), derivative = Kind().derivative(z(0, i));
    for (const auto& [got, want] : {std::pair{row(0, i), value}, {row(1, i), derivative}}) {
      if (std::isfinite(want)) {
        ASSERT_NEAR(got, want, tolerance * std::max(T(1), std::abs(z(0, i)))) << z(0, i);
      } else {
        ASSERT_TRUE(got == want || (std::isnan(got) && std::isnan(want))) << z(0, i);
      }
    }
  }
}

TYPED_TEST(ActivationOf, HasTheSameBitsInEveryPlaceOfARow) {
  expect_lanes_like_scalars<TypeParam, float>(1e-6);
  expect_lanes_like_scalars<TypeParam, double>(2e-15);
}

TEST(Activations, HaveKnownValues) {
  EXPECT_EQ(Relu::value(3.5), 3.5);
  EXPECT_EQ(Relu::value(-3.5), 0.0);
  EXPECT_EQ(ReluSquared::value(3.0), 9.0);
  EXPECT_EQ(ReluSquared::value(-3.0), 0.0);
  // Phi(1) = 0.841344746068543 of the tables; PyTorch's gelu(1, tanh) and silu(1).
  EXPECT_NEAR(GeluErf::value(1.0), 0.841344746068543, 1e-15);
  EXPECT_NEAR(GeluErf::value(-1.0), -0.158655253931457, 1e-15);
  EXPECT_NEAR(GeluTanh::value(1.0), 0.841191990608276, 1e-14);
  EXPECT_NEAR(Silu::value(1.0), 0.731058578630005, 1e-15);
  EXPECT_NEAR(Silu::value(-1.0), -0.268941421369995, 1e-15);
}

// By hand from tanh(1/4) = 0.244918662403709, sigmoid(1.702) = 0.845795765932827.
TEST(Activations, HaveKnownValuesOfTheirParameters) {
  EXPECT_NEAR(GeluQuick{}.value(1.0), 0.845795765932827, 1e-14);
  EXPECT_NEAR(GeluQuick{1.0}.value(-1.0), Silu::value(-1.0), 1e-15);
  EXPECT_NEAR(Situ{}.value(1.0), 4.0 * 0.244918662403709 * 0.731058578630005, 1e-14);
  EXPECT_NEAR(Situ{4.0}.value(100.0), 4.0, 1e-14);
  EXPECT_NEAR(Situ{1e6}.value(2.0), Silu::value(2.0), 1e-11);
}

TEST(Activations, HaveKnownSlopes) {
  EXPECT_EQ(Relu::derivative(2.0), 1.0);
  EXPECT_EQ(Relu::derivative(-2.0), 0.0);
  EXPECT_EQ(Relu::derivative(0.0), 0.0) << "as PyTorch";
  EXPECT_EQ(ReluSquared::derivative(3.0), 6.0);
  EXPECT_EQ(ReluSquared::derivative(0.0), 0.0);
  EXPECT_EQ(GeluErf::derivative(0.0), 0.5);
  EXPECT_EQ(GeluTanh::derivative(0.0), 0.5);
  EXPECT_EQ(Silu::derivative(0.0), 0.5);
}

TEST(Activations, HaveTheirLimitsAtLargeNumbers) {
  for (const double z : {50.0, 800.0, 1e6}) {
    EXPECT_EQ(GeluErf::value(z), z);
    EXPECT_EQ(GeluTanh::value(z), z);
    EXPECT_EQ(Silu::value(z), z);
    EXPECT_EQ(GeluErf::value(-z), 0.0);
    EXPECT_EQ(GeluTanh::value(-z), 0.0);
    EXPECT_NEAR(Silu::value(-z), 0.0, 1e-19);
    EXPECT_EQ(GeluErf::derivative(z), 1.0);
    EXPECT_EQ(GeluTanh::derivative(z), 1.0);
    EXPECT_EQ(Silu::derivative(z), 1.0);
    EXPECT_EQ(GeluErf::derivative(-z), 0.0);
    EXPECT_EQ(GeluTanh::derivative(-z), 0.0);
    EXPECT_NEAR(Silu::derivative(-z), 0.0, 1e-19);
  }
}

// The smooth ones are z * s(z) with s(-inf) = 0: an infinity there is a NaN and not a plausible 0.
TEST(Activations, TurnMinusInfinityIntoZeroOrNan) {
  EXPECT_EQ(Relu::value(-inf), 0.0);
  EXPECT_EQ(ReluSquared::value(-inf), 0.0);
  EXPECT_TRUE(std::isnan(GeluErf::value(-inf)));
  EXPECT_TRUE(std::isnan(GeluTanh::value(-inf)));
  EXPECT_TRUE(std::isnan(Silu::value(-inf)));
}

TEST(WithActivation, FindsTheTypeOfEachValueAndAgreesWithTheReference) {
  for (const auto kind : all_activations) {
    for (double z = -3.0; z <= 3.0; z += 0.25) {
      const double value =
          with_activation({.activation = kind}, [&](auto act) { return act.value(z); });
      EXPECT_NEAR(value, reference::activate({.activation = kind}, z), 1e-14);
    }
  }
}

TEST(WithActivation, RejectsAValueOutsideTheEnum) {
  EXPECT_THROW(with_activation({.activation = static_cast<Activation>(99)}, [](auto) { return 0; }),
               std::invalid_argument);
}

}  // namespace
}  // namespace moe::activation_test
