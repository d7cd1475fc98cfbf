// SPDX-License-Identifier: Apache-2.0
// Tests of the pairs of gate and up: values by hand and of the reference, gradients by differences
// and at the edges of clamps, what is not a number, and the FLOPs that each claims to cost.
#include "moe/experts/pair.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "../support/counting_scalar.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/pairs.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/reference.hpp"

namespace moe::pair_test {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class T>
T value(const ExpertConfig& config, T gate, T up) {
  return with_pair(config, [&](auto pair) {
    if constexpr (decltype(pair)::gated) {
      return pair.value(gate, up);
    } else {
      return pair.value(up);
    }
  });
}

template <class T>
PairGradient<T> gradient(const ExpertConfig& config, T gate, T up, T dhidden) {
  return with_pair(config, [&](auto pair) {
    if constexpr (decltype(pair)::gated) {
      return pair.gradient(gate, up, dhidden);
    } else {
      return PairGradient<T>{T(0), pair.gradient(up, dhidden)};
    }
  });
}

ExpertConfig clamped(Clamp clamp, double limit = 2.0) { return {.limit = limit, .clamp = clamp}; }
ExpertConfig swiglu_oai(double limit = 7.0) {
  return {.activation = Activation::gelu_quick, .limit = limit, .up_offset = 1.0};
}

double silu(double z) { return z / (1.0 + std::exp(-z)); }

TEST(Pair, CutsBeforeTheActivationAsDeepSeekV4) {
  const ExpertConfig config = clamped(Clamp::before);
  EXPECT_NEAR(value(config, 1.0, 1.5), 1.5 * silu(1.0), 1e-15);
  EXPECT_NEAR(value(config, 5.0, 1.5), 1.5 * silu(2.0), 1e-15);
  EXPECT_NEAR(value(config, -5.0, 9.0), 2.0 * silu(-5.0), 1e-15) << "gate has no lower limit";
  EXPECT_NEAR(value(config, 1.0, -9.0), -2.0 * silu(1.0), 1e-15);
}

TEST(Pair, CutsAfterTheActivationAsStep) {
  const ExpertConfig config = clamped(Clamp::after);
  EXPECT_NEAR(value(config, 2.1, 1.5), 1.5 * silu(2.1), 1e-15) << "silu(2.1) = 1.87";
  EXPECT_EQ(value(config, 5.0, 1.5), 3.0);
  EXPECT_EQ(value(config, 5.0, -9.0), -4.0);
}

TEST(Pair, AddsOneToUpBehindItsLimitInSwigluOai) {
  const ExpertConfig config = swiglu_oai();
  const auto quick = [](double z) { return z / (1.0 + std::exp(-1.702 * z)); };
  EXPECT_NEAR(value(config, 2.0, 3.0), 4.0 * quick(2.0), 1e-14);
  EXPECT_NEAR(value(config, 9.0, 9.0), 8.0 * quick(7.0), 1e-13);
  EXPECT_NEAR(value(config, -1.0, -9.0), -6.0 * quick(-1.0), 1e-14);
  EXPECT_EQ(value(config, 3.0, -1.0), 0.0);
  ExpertConfig unlimited = config;
  unlimited.limit = std::nullopt;
  EXPECT_NEAR(value(unlimited, 9.0, 9.0), 10.0 * quick(9.0), 1e-13);
}

TEST(Pair, BoundsBothSidesSmoothlyInSitu) {
  const ExpertConfig config{.activation = Activation::situ, .gate_bound = 4, .up_bound = 25};
  const double sigmoid = 1.0 / (1.0 + std::exp(-3.0));
  EXPECT_NEAR(value(config, 3.0, -10.0),
              4.0 * std::tanh(0.75) * sigmoid * 25.0 * std::tanh(-10.0 / 25.0), 1e-13);
  EXPECT_NEAR(value(config, 1e4, -1e4), -100.0, 1e-12);
}

TEST(Pair, OfOneLimitDiffersByTheSideThatItCuts) {
  EXPECT_NEAR(value(clamped(Clamp::after, 10.0), 20.0, 1.0) -
                  value(clamped(Clamp::before, 10.0), 20.0, 1.0),
              10.0 - silu(10.0), 1e-14);
}

TEST(Pair, AgreesWithTheReference) {
  testing::for_each_pair([](const ExpertConfig& config) {
    for (double gate = -4.03; gate < 4.0; gate += 0.5) {
      for (double up = -3.07; up < 3.0; up += 0.5) {
        EXPECT_NEAR(value(config, gate, up), reference::gated_pair(config, gate, up), 1e-14);
        EXPECT_NEAR(value(config, static_cast<float>(gate), static_cast<float>(up)),
                    reference::gated_pair(config, gate, up), 1e-5);
      }
    }
  });
}

TEST(Pair, HasItsGradients) {
  testing::for_each_pair([](const ExpertConfig& config) {
    for (double at_gate = -4.03; at_gate < 4.0; at_gate += 0.5) {
      for (double at_up = -3.07; at_up < 3.0; at_up += 0.5) {  // no kink in reach
        double gate = at_gate, up = at_up;
        const auto f = [&] { return 1.7 * value(config, gate, up); };
        const auto d = gradient(config, gate, up, 1.7);
        EXPECT_NEAR(d.gate, testing::derivative(f, gate), 1e-8) << gate << ' ' << up;
        EXPECT_NEAR(d.up, testing::derivative(f, up), 1e-8) << gate << ' ' << up;
      }
    }
  });
}

// As PyTorch's clamp: the gradient passes at the limit itself.
TEST(Pair, PassesTheGradientAtALimitAndNotBeyondIt) {
  const double above = std::nextafter(2.0, 3.0);
  for (const Clamp clamp : {Clamp::before, Clamp::after}) {
    const ExpertConfig config = clamped(clamp);
    const double slope = gradient(config, 1.0, 0.5, 1.0).up;
    for (const double up : {2.0, -2.0}) {
      EXPECT_EQ(gradient(config, 1.0, up, 1.0).up, slope);
    }
    for (const double up : {above, -above, inf, -inf}) {
      EXPECT_EQ(gradient(config, 1.0, up, 1.0).up, 0.0);
    }
  }
  EXPECT_NE(gradient(clamped(Clamp::before), 2.0, 1.0, 1.0).gate, 0.0);
  EXPECT_EQ(gradient(clamped(Clamp::before), above, 1.0, 1.0).gate, 0.0);
  // With ReLU the activation is at the limit where the gate is.
  ExpertConfig after = clamped(Clamp::after);
  after.activation = Activation::relu;
  EXPECT_EQ(gradient(after, 2.0, 1.0, 1.0).gate, 1.0);
  EXPECT_EQ(gradient(after, above, 1.0, 1.0).gate, 0.0);
}

TEST(Pair, KeepsNan) {
  testing::for_each_pair([](const ExpertConfig& config) {
    for (const auto& [gate, up] : {std::pair{nan, 1.0}, {1.0, nan}, {nan, 9.0}, {9.0, nan}}) {
      EXPECT_TRUE(std::isnan(value(config, gate, up)));
      EXPECT_TRUE(std::isnan(value(config, static_cast<float>(gate), static_cast<float>(up))));
    }
    EXPECT_TRUE(std::isnan(gradient(config, nan, 0.1, 1.0).gate));
    EXPECT_TRUE(std::isnan(gradient(config, 0.1, nan, 1.0).gate));
    const auto d = gradient(config, 0.1, 0.1, nan);
    EXPECT_TRUE(std::isnan(d.gate) && std::isnan(d.up));
  });
}

TEST(Pair, MakesNoNumberOfAnInfinity) {
  testing::for_each_pair([](const ExpertConfig& config) {
    for (const double gate : {1.0, 9.0, inf}) {
      for (const double up : {inf, -inf}) {
        EXPECT_FALSE(std::isfinite(value(config, gate, up))) << gate << ' ' << up;
      }
      EXPECT_FALSE(std::isfinite(value(config, inf, gate)));
    }
  });
}

TEST(Pair, CostsTheFlopsItClaims) {
  testing::for_each_pair([](const ExpertConfig& config) {
    const testing::Counting gate(0.5), up(0.25), dhidden(2.0);
    with_pair(config, [&](auto pair) {
      if constexpr (decltype(pair)::gated) {
        EXPECT_EQ(testing::count_flops([&] { pair.value(gate, up); }), pair.value_flops);
        EXPECT_EQ(testing::count_flops([&] { pair.gradient(gate, up, dhidden); }),
                  pair.gradient_flops);
      }
    });
  });
}

template <class T>
void expect_the_same_bits_in_every_place_of_a_row(const ExpertConfig& config) {
  constexpr Index size = 16 * 5 + 5;  // whole registers of every kind, and a rest
  Matrix<T> gate = testing::random_matrix<T>(1, size, 1) * T(3);
  Matrix<T> up = testing::random_matrix<T>(1, size, 2) * T(3);
  gate.leftCols(4) << T(nan), T(inf), T(-inf), T(2);
  up.middleCols(4, 4) << T(nan), T(inf), T(-inf), T(-2);
  const Matrix<T> dhidden = testing::random_matrix<T>(1, size, 3);
  const auto along = [&](Index begin, Index count) {
    Matrix<T> result(3, count);
    with_pair(config, [&](auto pair) {
      if constexpr (decltype(pair)::gated) {
        kernels::for_lanes<T>(count, [&](auto at) {
          const auto g = at.load(gate.data() + begin), u = at.load(up.data() + begin);
          const auto d = pair.gradient(g, u, at.load(dhidden.data() + begin));
          at.store(&result(0, 0), pair.value(g, u));
          at.store(&result(1, 0), d.gate);
          at.store(&result(2, 0), d.up);
        });
      }
    });
    return result;
  };
  const Matrix<T> row = along(0, size);
  for (Index i = 0; i < size; ++i) {
    ASSERT_TRUE(testing::same_bits(Matrix<T>(row.col(i)), along(i, 1))) << "place " << i;
  }
}

TEST(Pair, HasTheSameBitsInEveryPlaceOfARow) {
  testing::for_each_pair([](const ExpertConfig& config) {
    expect_the_same_bits_in_every_place_of_a_row<float>(config);
    expect_the_same_bits_in_every_place_of_a_row<double>(config);
  });
}

TEST(Pair, OfNoLimitHasTheBitsOfTheProduct) {
  const ExpertConfig far = clamped(Clamp::after, 1e30);
  for (float gate = -8.0f; gate < 8.0f; gate += 0.37f) {
    EXPECT_EQ(value(far, gate, 1.5f), value(ExpertConfig{}, gate, 1.5f));
    EXPECT_EQ(value(ExpertConfig{}, gate, 1.5f), Silu::value(gate) * 1.5f);
  }
}

TEST(ExpertConfig, RefusesLimitsAndParametersThatMeanNothing) {
  const auto message = [](const ExpertConfig& config) {
    return testing::message_of([&] { config.validate(); });
  };
  EXPECT_EQ(message(swiglu_oai()), "(nothing was thrown)");
  EXPECT_EQ(message({.limit = 0.0}), "ExpertConfig: limit = 0, expected positive and finite");
  EXPECT_EQ(message({.limit = nan}), "ExpertConfig: limit = nan, expected positive and finite");
  EXPECT_EQ(message({.alpha = -1.0}), "ExpertConfig: alpha = -1, expected positive and finite");
  EXPECT_EQ(message({.up_bound = 0.0}), "ExpertConfig: up_bound = 0, expected positive and finite");
  EXPECT_EQ(message({.up_offset = inf}), "ExpertConfig: up_offset = inf, expected finite");
  EXPECT_EQ(message({.gated = false, .limit = 7.0}),
            "ExpertConfig: limit or up_offset is set without a gate, expected gated");
  EXPECT_EQ(message({.activation = Activation::situ, .limit = 7.0}),
            "ExpertConfig: limit or up_offset is set with situ, which has bounds of its own, "
            "expected neither");
  EXPECT_EQ(message({.activation = static_cast<Activation>(99)}),
            "ExpertConfig: activation = 99, expected one of the enum");
  EXPECT_EQ(testing::message_of([] {
              Expert<float>({5, 7, 3}, {.limit = -1.0}, 1);
            }),
            "ExpertConfig: limit = -1, expected positive and finite");
}

}  // namespace
}  // namespace moe::pair_test
