// SPDX-License-Identifier: Apache-2.0
// What all optimisers share: the walk, its checks, clipping, groups, threads, main weights and
// state; over layers and over tensors of the user's own.
#include "moe/train/optimiser.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "../support/count_allocations.hpp"
#include "../support/layer_step.hpp"
#include "../support/throws.hpp"
#include "moe/train/adamw.hpp"
#include "moe/train/sgd.hpp"

namespace moe::optimiser_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

constexpr SgdConfig plain{.momentum = 0.0};

/// Two tensors of the user's own, the second larger than what one thread takes at once.
template <class T>
struct Model {
  Matrix<T> small = random_matrix<T>(3, 5, 1), large = random_matrix<T>(130, 257, 2);
  Matrix<Wide<T>> dsmall = random_matrix<Wide<T>>(3, 5, 3),
                  dlarge = random_matrix<Wide<T>>(130, 257, 4);

  auto walk() {
    return [this](auto&& visit) {
      visit("small", small, dsmall);
      visit("large", large, dlarge);
    };
  }
  double norm() const {
    return std::sqrt(dsmall.template cast<double>().squaredNorm() +
                     dlarge.template cast<double>().squaredNorm());
  }
};

TEST(Optimiser, StepsThroughEveryTensorOfTheWalk) {
  Model<double> model, before;
  Sgd<double> sgd(plain);
  const StepResult result = sgd.step(model.walk(), {.rate = 0.5});
  EXPECT_TRUE(result.applied);
  EXPECT_EQ(sgd.steps(), 1);
  EXPECT_TRUE(matrix_near(model.small, (before.small - 0.5 * before.dsmall).eval(), 1e-15));
  EXPECT_TRUE(matrix_near(model.large, (before.large - 0.5 * before.dlarge).eval(), 1e-15));
  EXPECT_TRUE(same_bits(model.dlarge, before.dlarge));
}

TEST(Optimiser, ScalesGradientsDownToTheNormThatClips) {
  Model<double> model, before;
  const double norm = before.norm();
  Sgd<double> sgd(plain);
  EXPECT_NEAR(sgd.step(model.walk(), {.rate = 1.0, .clip = norm / 4}).gradient_norm, norm,
              1e-12 * norm);
  EXPECT_TRUE(matrix_near(model.large, (before.large - before.dlarge / 4).eval(), 1e-13));
  model = before;
  Sgd<double>(plain).step(model.walk(), {.rate = 1.0, .clip = norm * 2});
  EXPECT_TRUE(matrix_near(model.small, (before.small - before.dsmall).eval(), 1e-15));
}

TEST(Optimiser, LeavesEverythingAsItWasIfANormIsNotFinite) {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Model<double> model, before;
    model.dlarge(129, 256) = bad;
    AdamW<double> adam;
    const StepResult result = adam.step(model.walk(), {.rate = 1.0, .clip = 1.0});
    EXPECT_FALSE(result.applied);
    EXPECT_FALSE(std::isfinite(result.gradient_norm));
    EXPECT_EQ(adam.steps(), 0);
    EXPECT_TRUE(same_bits(model.small, before.small));
    EXPECT_TRUE(same_bits(model.large, before.large));
    adam.for_each_state(
        [](const std::string& name, const auto& moment) { EXPECT_TRUE(moment.isZero(0)) << name; });
  }
}

TEST(Optimiser, DoesNotApplyFiniteGradientsWhoseNormOverflows) {
  Model<double> model, before;
  model.dlarge(129, 256) = 1e160;
  Sgd<double> sgd(plain);
  const StepResult result = sgd.step(model.walk(), {.rate = 1.0, .clip = 1.0});
  EXPECT_FALSE(result.applied);
  EXPECT_EQ(result.gradient_norm, std::numeric_limits<double>::infinity());
  EXPECT_TRUE(same_bits(model.large, before.large));
}

TEST(Optimiser, GivesTensorsTheRateAndDecayOfTheirGroup) {
  Model<double> model, before;
  Sgd<double> sgd({.momentum = 0.0, .decay = 0.1}, [](const std::string& name) {
    return name == "small" ? ParameterGroup{.rate = 0.0} : ParameterGroup{.decay = 0.0};
  });
  sgd.step(model.walk(), {.rate = 0.5});
  EXPECT_TRUE(same_bits(model.small, before.small));
  EXPECT_TRUE(matrix_near(model.large, (before.large - 0.5 * before.dlarge).eval(), 1e-15));
}

TEST(Optimiser, AsksForAllGroupsAgainIfOneCouldNotBeGiven) {
  Model<double> model, before;
  bool fails = true;
  Sgd<double> sgd(plain, [&](const std::string& name) {
    return fails && name == "large" ? throw std::runtime_error("no group of large")
                                    : ParameterGroup{.rate = name == "large" ? 0.5 : 1.0};
  });
  EXPECT_THROW(sgd.step(model.walk(), {.rate = 1.0}), std::runtime_error);
  EXPECT_TRUE(same_bits(model.small, before.small));
  EXPECT_EQ(sgd.steps(), 0);
  fails = false;
  sgd.step(model.walk(), {.rate = 1.0});
  EXPECT_TRUE(matrix_near(model.small, (before.small - before.dsmall).eval(), 1e-15));
  EXPECT_TRUE(matrix_near(model.large, (before.large - 0.5 * before.dlarge).eval(), 1e-15));
}

TEST(Optimiser, RefusesAGroupWhoseFactorIsNegativeOrNotFinite) {
  Model<double> model, before;
  const auto message = [&](const ParameterGroup& group) {
    Sgd<double> sgd(plain, [&](const std::string&) { return group; });
    return message_of([&] { sgd.step(model.walk(), {.rate = 1.0}); });
  };
  EXPECT_EQ(message({.rate = std::nan("")}),
            "ParameterGroup: a factor is nan, expected finite and at least 0");
  EXPECT_EQ(message({.rate = -1.0}),
            "ParameterGroup: a factor is -1, expected finite and at least 0");
  EXPECT_EQ(message({.decay = std::numeric_limits<double>::infinity()}),
            "ParameterGroup: a factor is inf, expected finite and at least 0");
  EXPECT_TRUE(same_bits(model.small, before.small));
}

TEST(Optimiser, TrainsEveryParameterOfALayerUnderItsName) {
  const MoEConfig config{.d_model = 6,
                         .d_ff = 5,
                         .num_experts = 4,
                         .top_k = 2,
                         .expert = {.bias = true},
                         .shared = SharedExpertConfig{.d_ff = 3}};
  auto layer = make_layer<float>(config, 1);
  const auto before = layer;
  auto grads = layer.zero_grads();
  layer.for_each_parameter([](const std::string&, auto&, auto& g) { g.setOnes(); }, grads);
  Sgd<float> sgd(plain);
  sgd.step([&](auto&& visit) { visit_trained(visit, layer, grads, "layers.0."); }, {.rate = 0.25});
  std::map<std::string, Matrix<float>> old;
  before.for_each_parameter(
      [&](const std::string& name, const auto& parameter) { old[name] = parameter; });
  layer.for_each_parameter([&](const std::string& name, const auto& parameter) {
    const Matrix<float> want = old.at(name).array() - 0.25F;
    EXPECT_TRUE(same_bits(parameter, want)) << name;
  });
  std::size_t count = 0;
  sgd.for_each_state([&](const std::string& name, const auto&) {
    EXPECT_TRUE(name.starts_with("layers.0.")) << name;
    ++count;
  });
  EXPECT_EQ(count, old.size());
}

TEST(Optimiser, HasTheSameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    Model<float> model;
    AdamW<float> adam;
    for (int step = 1; step <= 50; ++step) {
      adam.step(model.walk(), {.rate = 0.01, .clip = 1.0, .num_threads = threads});
      model.dlarge *= -0.9F;
    }
    return std::pair(model.small, model.large);
  };
  const auto one = run(1);
  for (const int threads : {2, 3, 8}) {
    const auto many = run(threads);
    EXPECT_TRUE(same_bits(one.first, many.first)) << threads;
    EXPECT_TRUE(same_bits(one.second, many.second)) << threads;
  }
}

TEST(Optimiser, KeepsMainWeightsInFloatBesideThoseIn16Bits) {
  Model<bf16> narrow;
  Matrix<float> main = narrow.large.cast<float>();
  Sgd<float> sgd(plain);
  for (int step = 0; step < 20; ++step) {
    sgd.step(narrow.walk(), {.rate = 1e-4});
    main -= 1e-4F * narrow.dlarge;
  }
  EXPECT_TRUE(same_bits(narrow.large, main.cast<bf16>().eval()));
  sgd.for_each_state([&](const std::string& name, const auto& state) {
    if (name == "large.main") {
      EXPECT_TRUE(matrix_near(state, main, 1e-6));
    }
  });
}

TEST(Optimiser, GoesOnFromItsStateAsIfItHadNotStopped) {
  Model<float> model;
  AdamW<float> adam;
  const auto walk = model.walk();
  adam.step(walk, {.rate = 0.01});
  std::map<std::string, Matrix<float>> saved;
  adam.for_each_state([&](const std::string& name, const auto& state) { saved[name] = state; });
  Model<float> copy = model;
  const auto walk_of_copy = copy.walk();
  AdamW<float> again;
  again.prepare(walk_of_copy);
  again.for_each_state([&](const std::string& name, auto& state) { state = saved.at(name); });
  again.set_steps(adam.steps());
  adam.step(walk, {.rate = 0.02});
  again.step(walk_of_copy, {.rate = 0.02});
  EXPECT_TRUE(same_bits(model.small, copy.small));
  EXPECT_TRUE(same_bits(model.large, copy.large));
}

TEST(Optimiser, RefusesAWalkThatIsNotTheOneOfBefore) {
  Model<float> model;
  AdamW<float> adam;
  adam.step(model.walk(), {.rate = 0.01});
  const Model<float> before = model;
  const auto message = [&](auto&& walk) {
    return message_of([&] { adam.step(walk, {.rate = 0.01}); });
  };
  EXPECT_EQ(message([&](auto&& visit) { visit("small", model.small, model.dsmall); }),
            "optimiser: the walk has 1 tensors, expected 2 as before");
  EXPECT_EQ(message([&](auto&& visit) {
              visit("large", model.large, model.dlarge);
              visit("small", model.small, model.dsmall);
            }),
            "optimiser: parameter large is (130, 257), expected small (3, 5) as before");
  EXPECT_EQ(message([&](auto&& visit) {
              visit("small", model.small, model.dsmall);
              visit("large", model.large, model.dsmall);
            }),
            "gradient large is (3, 5), expected (130, 257)");
  EXPECT_EQ(message([](auto&&) {}), "optimiser: the walk has no tensor, expected at least 1");
  EXPECT_TRUE(same_bits(model.large, before.large));
  EXPECT_EQ(adam.steps(), 1);
}

TEST(Optimiser, RefusesRatesAndNormsOutOfTheirRange) {
  Model<float> model;
  Sgd<float> sgd;
  const auto message = [&](const StepOptions& options) {
    return message_of([&] { sgd.step(model.walk(), options); });
  };
  EXPECT_EQ(message({.rate = -1.0}), "optimiser: rate = -1, expected finite and at least 0");
  EXPECT_EQ(message({.rate = 1.0, .clip = 0.0}), "optimiser: clip = 0, expected positive");
  EXPECT_EQ(message({.rate = 1.0, .clip = std::numeric_limits<double>::quiet_NaN()}),
            "optimiser: clip = nan, expected positive");
}

TEST(Optimiser, RefusesARateOrADecayThatIsInfiniteInItsScalarAlone) {
  Model<bf16> model, before;
  model.dsmall.setZero();  // of an infinite rate it would make NaN
  model.dlarge.setZero();
  const auto message = [&](auto& optimiser, double rate) {
    return message_of([&] { optimiser.step(model.walk(), {.rate = rate}); });
  };
  AdamW<float> adam, decayed({.decay = 1e300});
  Sgd<float> sgd, grown({}, [](const std::string&) { return ParameterGroup{.rate = 1e300}; });
  EXPECT_EQ(message(adam, 1e38),  // over 1 - beta1
            "AdamW: rate = 1e+39, expected finite in the scalar of the optimiser");
  EXPECT_EQ(message(decayed, 0.1),
            "AdamW: factor of decay = -1e+299, expected finite in the scalar of the optimiser");
  EXPECT_EQ(message(sgd, 1e39),
            "Sgd: rate = 1e+39, expected finite in the scalar of the optimiser");
  EXPECT_EQ(message(grown, 1e300),
            "Sgd: rate = inf, expected finite in the scalar of the optimiser");
  EXPECT_EQ(adam.steps() + decayed.steps() + sgd.steps() + grown.steps(), 0);
  EXPECT_TRUE(same_bits(model.small, before.small));
  EXPECT_TRUE(same_bits(model.large, before.large));
}

TEST(Optimiser, StepsPastEmptyTensors) {
  Model<bf16> model, alone;
  Matrix<bf16> no_rows(0, 3), no_cols(3, 0);
  const Matrix<float> no_rows_gradient(0, 3), no_cols_gradient(3, 0);
  AdamW<float> adam, of_alone, of_nothing;
  for (int step = 0; step < 3; ++step) {
    adam.step(
        [&](auto&& visit) {
          visit("no_rows", no_rows, no_rows_gradient);
          model.walk()(visit);
          visit("no_cols", no_cols, no_cols_gradient);
        },
        {.rate = 0.1, .clip = 1.0});
    of_alone.step(alone.walk(), {.rate = 0.1, .clip = 1.0});
  }
  EXPECT_TRUE(same_bits(model.small, alone.small));
  EXPECT_TRUE(same_bits(model.large, alone.large));
  const StepResult result =
      of_nothing.step([&](auto&& visit) { visit("no_rows", no_rows, no_rows_gradient); },
                      {.rate = 0.1, .clip = 1.0});
  EXPECT_TRUE(result.applied);
  EXPECT_EQ(result.gradient_norm, 0.0);
}

TEST(Optimiser, RefusesANumberOfStepsThatItCouldNotCountUpFrom) {
  constexpr Index largest = std::numeric_limits<Index>::max();
  Model<float> model;
  AdamW<float> adam;
  EXPECT_EQ(message_of([&] { adam.set_steps(-1); }),
            "optimiser: steps = -1, expected in [0, 4611686018427387903]");
  EXPECT_EQ(message_of([&] { adam.set_steps(largest); }),
            "optimiser: steps = 9223372036854775807, expected in [0, 4611686018427387903]");
  EXPECT_EQ(adam.steps(), 0);
  adam.set_steps(largest / 2);
  adam.step(model.walk(), {.rate = 0.1});
  EXPECT_EQ(adam.steps(), largest / 2 + 1);
  EXPECT_TRUE(model.small.allFinite());
}

#if MOE_COUNTS_ALLOCATIONS
TEST(Optimiser, AllocatesNothingBehindItsFirstStep) {
  const MoEConfig config{.d_model = 6, .d_ff = 5, .num_experts = 4, .top_k = 2};
  auto layer = make_layer<float>(config, 1);
  auto grads = layer.zero_grads();
  AdamW<float> adam;
  const auto step = [&] {
    adam.step([&](auto&& visit) { visit_trained(visit, layer, grads); },
              {.rate = 0.1, .clip = 1.0, .num_threads = 2});
  };
  step();
  EXPECT_EQ(testing::count_allocations(step), 0);
}
#endif

}  // namespace
}  // namespace moe::optimiser_test
