// SPDX-License-Identifier: Apache-2.0
// AdamW against its paper's algorithm in plain loops.
#include "moe/train/adamw.hpp"

#include <gtest/gtest.h>

#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"

namespace moe::adamw_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;

/// Algorithm 2 of the paper, a number at a time.
struct Paper {
  AdamWConfig config;
  Matrix<double> m, v;
  int t = 0;

  void step(Matrix<double>& w, const Matrix<double>& g, double rate) {
    if (t++ == 0) {
      m = v = Matrix<double>::Zero(w.rows(), w.cols());
    }
    for (Index i = 0; i < w.size(); ++i) {
      double &mi = m.data()[i], &vi = v.data()[i], &wi = w.data()[i];
      const double gi = g.data()[i];
      mi = config.beta1 * mi + (1 - config.beta1) * gi;
      vi = config.beta2 * vi + (1 - config.beta2) * gi * gi;
      const double mean = mi / (1 - std::pow(config.beta1, t));
      const double square = vi / (1 - std::pow(config.beta2, t));
      wi -= rate * (mean / (std::sqrt(square) + config.epsilon) + config.decay * wi);
    }
  }
};

template <class T>
class AdamWIn : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(AdamWIn, Scalars);

TYPED_TEST(AdamWIn, TakesTheStepsOfItsPaper) {
  using T = TypeParam;
  for (const AdamWConfig& config :
       {AdamWConfig{}, AdamWConfig{.beta1 = 0.0, .beta2 = 0.9, .epsilon = 1e-3, .decay = 0.1}}) {
    Matrix<T> w = random_matrix<T>(7, 31, 1);
    Matrix<double> want = w.template cast<double>();
    AdamW<T> adam(config);
    Paper paper{config, {}, {}};
    for (int step = 0; step < 20; ++step) {
      const Matrix<T> g = random_matrix<T>(7, 31, static_cast<unsigned>(10 + step));
      const double rate = 0.01 * (step + 1);
      adam.step([&](auto&& visit) { visit("w", w, g); }, {.rate = rate});
      paper.step(want, g.template cast<double>(), rate);
    }
    EXPECT_TRUE(matrix_near(w.template cast<double>().eval(), want, sizeof(T) == 8 ? 1e-13 : 2e-5));
  }
}

TEST(AdamW, MovesAWeightByTheRateInItsFirstStepWhateverTheGradient) {
  Matrix<double> w = Matrix<double>::Zero(1, 3), g(1, 3);
  g << 1e-3, -5.0, 0.0;
  AdamW<double> adam({.decay = 0.0});
  adam.step([&](auto&& visit) { visit("w", w, g); }, {.rate = 0.5});
  EXPECT_NEAR(w(0), -0.5, 1e-5);
  EXPECT_NEAR(w(1), 0.5, 1e-5);
  EXPECT_EQ(w(2), 0.0);
}

TEST(AdamW, RefusesAnEpsilonThatIsZeroOrInfiniteInItsScalarAlone) {
  EXPECT_EQ(message_of([] { AdamW<float>({.epsilon = 1e-60}); }),
            "AdamWConfig: epsilon = 1e-60 is 0 in the scalar of the optimiser, expected finite and "
            "positive");
  EXPECT_THROW(AdamW<float>({.epsilon = 1e60}), std::invalid_argument);
  Matrix<double> w = Matrix<double>::Ones(1, 3);
  const Matrix<double> g = Matrix<double>::Zero(1, 3);
  AdamW<double> adam({.epsilon = 1e-60, .decay = 0.0});
  adam.step([&](auto&& visit) { visit("w", w, g); }, {.rate = 0.5});
  EXPECT_TRUE(matrix_near(w, Matrix<double>::Ones(1, 3).eval(), 0.0));
}

TEST(AdamW, RefusesSettingsOutOfTheirRange) {
  EXPECT_EQ(message_of([] { AdamW<float>({.beta1 = 1.0}); }),
            "AdamWConfig: a beta is 1, expected in [0, 1)");
  EXPECT_EQ(message_of([] { AdamW<float>({.epsilon = 0.0}); }),
            "AdamWConfig: epsilon = 0, expected finite and positive");
  EXPECT_EQ(message_of([] { AdamW<float>({.decay = -1.0}); }),
            "AdamWConfig: decay = -1, expected finite and at least 0");
}

}  // namespace
}  // namespace moe::adamw_test
