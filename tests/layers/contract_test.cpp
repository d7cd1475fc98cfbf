// SPDX-License-Identifier: Apache-2.0
// README's numerical contract, as a layer keeps it: the names of the tests are its promises. Its
// packed form does in packed_contract_test.cpp.
#include <gtest/gtest.h>

#include <thread>

#include "../support/alone_in_batch.hpp"
#include "../support/count_allocations.hpp"
#include "../support/global_state.hpp"
#include "../support/guarded.hpp"
#include "../support/layer_step.hpp"
#include "moe/losses.hpp"

namespace moe::contract_test {
namespace {

using testing::expect_the_bits_of_a_large_batch_alone;
using testing::make_layer;
using testing::random_matrix;
using testing::run_step;
using testing::same_bits;
using testing::same_grads;

/// Odd sizes, and all the parts a layer can have.
MoEConfig small_config() {
  return {.d_model = 19,
          .d_ff = 23,
          .num_experts = 5,
          .top_k = 2,
          .d_out = 17,
          .expert = {.bias = true},
          .router = {.logits = {.bias = true}},
          .shared = SharedExpertConfig{.d_ff = 29, .output_gate = true}};
}

/// Wide enough that a product by Eigen would change its bits with the number of rows.
MoEConfig wide_config() { return {.d_model = 192, .d_ff = 320, .num_experts = 6, .top_k = 2}; }

template <class T>
class Contract : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(Contract, Scalars);

TYPED_TEST(Contract, TheOutputRowOfATokenDependsOnlyOnItsInputRowAndTheWeights) {
  using T = TypeParam;
  for (const MoEConfig& config : {small_config(), wide_config()}) {
    const MoELayer<T> layer = make_layer<T>(config, 1);
    const Matrix<T> x = random_matrix<T>(200, layer.d_in(), 2);
    Matrix<T> y(200, layer.d_out());
    typename MoELayer<T>::Scratch scratch;
    layer.forward(x, y, scratch);
    const auto compare = [&](Index begin, Index rows) {
      Matrix<T> part(rows, layer.d_out());
      layer.forward(x.middleRows(begin, rows), part, scratch);
      EXPECT_TRUE(same_bits(part, y.middleRows(begin, rows))) << begin << ", " << rows;
    };
    for (Index token = 0; token < 200; token += 13) {
      compare(token, 1);
    }
    for (const Index rows : {2, 3, 5, 17, 64}) {
      compare(0, rows);
      compare(101, rows);
      compare(200 - rows, rows);
    }
    // At another place, between other rows.
    Matrix<T> reversed = x.colwise().reverse(), y_reversed(200, layer.d_out());
    layer.forward(reversed, y_reversed, scratch);
    EXPECT_TRUE(same_bits(y_reversed, Matrix<T>(y.colwise().reverse())));
  }
}

TEST(Contract, ATokenHasTheSameBitsAloneAndInALargeBatchForAnyThreadCount) {
  MoEConfig config = small_config();
  config.d_model = 11, config.d_ff = 13, config.shared->d_ff = 7;
  expect_the_bits_of_a_large_batch_alone<float>(make_layer<float>(config, 24));
  expect_the_bits_of_a_large_batch_alone<bf16>(make_layer<bf16>(config, 24));
  expect_the_bits_of_a_large_batch_alone<Eigen::half>(make_layer<Eigen::half>(config, 24));
}

TYPED_TEST(Contract, ResultsAndGradientsAreTheSameForAnyThreadCount) {
  using T = TypeParam;
  for (MoEConfig config : {small_config(), wide_config()}) {
    config.router.logits.noisy = true;
    config.router.logits.input_jitter = 0.1;
    const MoELayer<T> layer = make_layer<T>(config, 3);
    const Matrix<T> x = random_matrix<T>(150, layer.d_in(), 4);
    const auto one = run_step(layer, x, {.num_threads = 1, .noise_seed = 5});
    for (const int threads : {2, 3, 8}) {
      const auto many = run_step(layer, x, {.num_threads = threads, .noise_seed = 5});
      EXPECT_TRUE(same_bits(many.y, one.y)) << threads;
      EXPECT_TRUE(same_bits(many.dx, one.dx)) << threads;
      EXPECT_TRUE(same_grads(layer, many.grads, one.grads)) << threads;
      Matrix<T> y(150, layer.d_out());
      typename MoELayer<T>::Scratch scratch;
      detail::with_team(threads, [&] { layer.forward(x, y, scratch, {.noise_seed = 5}); });
      EXPECT_TRUE(same_bits(y, one.y)) << "inference on " << threads;
    }
  }
}

// Every expert gets every token, in two parts that the threads share.
TYPED_TEST(Contract, BitsDoNotDependOnWhereTheRowsOfAnExpertAreCutIntoParts) {
  using T = TypeParam;
  const Index tokens = FfnExperts<T>::part_rows + 5, border = tokens / 2;
  const MoELayer<T> layer =
      make_layer<T>({.d_model = 11, .d_ff = 13, .num_experts = 2, .top_k = 2}, 6);
  const Matrix<T> x = random_matrix<T>(tokens, layer.d_in(), 7);
  typename MoELayer<T>::Tape tape;
  const auto whole = run_step(layer, x, {.num_threads = 1}, &tape);
  ASSERT_EQ(tape.work.experts.parts.size(), 4u);
  for (const Index begin : {Index(0), border - 3, border, tokens - 9}) {
    Matrix<T> part(9, layer.d_out());
    typename MoELayer<T>::Scratch scratch;
    layer.forward(x.middleRows(begin, 9), part, scratch);
    EXPECT_TRUE(same_bits(part, whole.y.middleRows(begin, 9))) << begin;
  }
  for (const int threads : {2, 3, 8}) {
    const auto many = run_step(layer, x, {.num_threads = threads});
    EXPECT_TRUE(same_bits(many.y, whole.y)) << threads;
    EXPECT_TRUE(same_bits(many.dx, whole.dx)) << threads;
    EXPECT_TRUE(same_grads(layer, many.grads, whole.grads)) << threads;
  }
}

TYPED_TEST(Contract, NaNAndInfReachTheirOwnRowAndNeverMoveAnotherTokensRow) {
  using T = TypeParam;
  for (const Score score : all_scores) {
    MoEConfig config = small_config();
    config.router.score = score;
    const MoELayer<T> layer = make_layer<T>(config, 6);
    const Matrix<T> clean = random_matrix<T>(70, layer.d_in(), 7);
    Matrix<T> y_clean(70, layer.d_out()), y(70, layer.d_out());
    typename MoELayer<T>::Scratch scratch;
    layer.forward(clean, y_clean, scratch);
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      Matrix<T> x = clean;
      x(33, 4) = T(bad);
      layer.forward(x, y, scratch);
      EXPECT_TRUE(y.row(33).array().isNaN().all() || y.row(33).array().isInf().any());
      EXPECT_TRUE(same_bits(y.topRows(33), y_clean.topRows(33)));
      EXPECT_TRUE(same_bits(y.bottomRows(36), y_clean.bottomRows(36)));
    }
  }
}

TYPED_TEST(Contract, NaNInTheWeightsOfAnExpertReachesTheTokensRoutedThereAndNoOther) {
  using T = TypeParam;
  MoELayer<T> layer = make_layer<T>(small_config(), 8);
  const Matrix<T> x = random_matrix<T>(60, layer.d_in(), 9);
  Matrix<T> y_clean(60, layer.d_out()), y(60, layer.d_out());
  typename MoELayer<T>::Scratch scratch;
  layer.forward(x, y_clean, scratch);
  layer.experts()[2].params().gate(3, 4) = std::numeric_limits<T>::quiet_NaN();
  layer.forward(x, y, scratch);
  Index routed = 0;
  for (Index t = 0; t < 60; ++t) {
    if ((scratch.routing.expert.row(t).array() == 2).any()) {
      EXPECT_TRUE(y.row(t).array().isNaN().all());
      ++routed;
    } else {
      EXPECT_TRUE(same_bits(y.row(t), y_clean.row(t)));
    }
  }
  EXPECT_GT(routed, 0);
  EXPECT_LT(routed, 60);
}

TYPED_TEST(Contract, MaskedMeansExactlyZeroAndNotComputed) {
  using T = TypeParam;
  MoEConfig config = small_config();
  config.shared.reset();
  config.expert.bias = true;
  MoELayer<T> layer = make_layer<T>(config, 10);
  // Were expert 3 computed for anyone, or token 5 for any expert, there would be NaN.
  layer.experts()[3].params().down.setConstant(std::numeric_limits<T>::quiet_NaN());
  ExpertMask mask = ExpertMask::Ones(40, 5);
  mask.col(3).setZero();
  mask.row(5).setZero();
  const auto step = run_step(layer, random_matrix<T>(40, 19, 11), {.expert_mask = &mask});
  EXPECT_TRUE(step.y.allFinite());
  EXPECT_TRUE(step.y.row(5).isZero(T(0)));
  EXPECT_TRUE(step.dx.allFinite());
  EXPECT_TRUE(step.dx.row(5).isZero(T(0)));
  ExpertParams<T>::for_each(
      [](std::string_view name, const auto& grad) { EXPECT_TRUE(grad.isZero(T(0))) << name; },
      step.grads.experts[3]);
  EXPECT_TRUE(step.grads.router.weight.row(3).isZero(T(0)));
  EXPECT_EQ(step.grads.router.bias(0, 3), T(0));
}

TEST(Contract, TiesGoToTheLowestExpertIndex) {
  MoELayer<float> layer(wide_config(), 12);
  layer.router().params().weight.setZero();
  Matrix<float> x = random_matrix<float>(9, 192, 13), y(9, 192);
  MoELayer<float>::Scratch scratch;
  layer.forward(x, y, scratch);
  EXPECT_TRUE((scratch.routing.expert.col(0).array() == 0).all());
  EXPECT_TRUE((scratch.routing.expert.col(1).array() == 1).all());
}

TYPED_TEST(Contract, MaskedStaysExactlyZeroBesideNaN) {
  using T = TypeParam;
  MoELayer<T> layer = make_layer<T>(small_config(), 31);
  ExpertMask mask = ExpertMask::Ones(1, layer.num_experts());
  mask(0, 1) = 0;
  const CallOptions call{.expert_mask = &mask};
  Matrix<T> x = random_matrix<T>(20, layer.d_in(), 32);

  layer.router().params().weight(1, 0) = std::numeric_limits<T>::quiet_NaN();
  auto step = run_step(layer, x, call);
  EXPECT_TRUE(step.y.allFinite() && step.dx.allFinite());

  layer.router().params().weight(1, 0) = T(0.5);
  x(3, 2) = std::numeric_limits<T>::quiet_NaN();
  step = run_step(layer, x, call);
  EXPECT_TRUE((step.grads.router.weight.row(1).array() == T(0)).all());
}

#if MOE_COUNTS_ALLOCATIONS
/// Allocations of `steps` training steps and inferences after the first.
template <class T>
long steady_state_allocations(const MoEConfig& config, int threads, int steps) {
  using Layer = MoELayer<T>;
  const Layer layer = make_layer<T>(config, 14);
  typename Layer::Scratch scratch;
  typename Layer::Tape tape, memory;
  typename Layer::RecomputingTape recomputing(memory);
  typename Layer::Grads grads = layer.zero_grads();
  RoutingLoss<float> losses;
  const CallOptions call{.num_threads = threads, .noise_seed = 18};
  // Two batches of one size that are routed differently.
  const Matrix<T> batches[] = {random_matrix<T>(48, layer.d_in(), 15),
                               random_matrix<T>(48, layer.d_in(), 16, 3.0)};
  const Matrix<T> dy = random_matrix<T>(48, layer.d_out(), 17);
  Matrix<T> y(48, layer.d_out()), dx(48, layer.d_in());
  const auto run = [&](int repeats) {
    for (int i = 0; i < 2 * repeats; ++i) {
      const Matrix<T>& x = batches[i % 2];
      detail::with_team(threads, [&] {
        layer.forward(x, y, scratch, call);
        layer.forward(x, y, tape, call);
        layer.backward(x, dy, tape, dx, grads, losses.gradient);
        layer.forward(x, y, recomputing, call);
        layer.backward(x, dy, recomputing, dx, grads, losses.gradient);
      });
    }
  };
  layer.forward(batches[0], y, tape, call);
  losses = load_balancing_loss(tape.routing) + z_loss(tape.routing);
  run(1);
  return testing::count_allocations([&] { run(steps); });
}

TEST(Contract, ASteadyStateForwardOrBackwardAllocatesNothing) {
  MoEConfig config = small_config();
  config.router.logits.noisy = true;
  for (const Capacity& capacity :
       {Capacity{}, Capacity{.rows = 9}, Capacity{.rows = 9, .policy = DropPolicy::probability}}) {
    config.capacity = capacity;
    EXPECT_EQ(steady_state_allocations<float>(config, 1, 3), 0);
  }
  EXPECT_EQ(steady_state_allocations<float>(wide_config(), 1, 1), 0);
  EXPECT_EQ(steady_state_allocations<float>(small_config(), 2, 12), 0);
  EXPECT_EQ(steady_state_allocations<bf16>(small_config(), 2, 12), 0);
  EXPECT_EQ(steady_state_allocations<Eigen::half>(small_config(), 2, 12), 0);
}
#endif

TYPED_TEST(Contract, ACallTouchesNoMemoryOutsideItsInputsAndOutputs) {
  using T = TypeParam;
  using testing::Flush;
  using testing::Guarded;
  const MoELayer<T> layer = make_layer<T>(small_config(), 33);
  for (const Index rows : {1, 7, 30}) {
    const Matrix<T> input = random_matrix<T>(rows, layer.d_in(), 34);
    const auto want = run_step(layer, input);
    for (const Flush flush : {Flush::front, Flush::back}) {
      Guarded<T> x(input, flush), y(Matrix<T>::Zero(rows, layer.d_out()), flush);
      Guarded<T> dy(want.dy, flush), dx(Matrix<T>::Zero(rows, layer.d_in()), flush);
      typename MoELayer<T>::Tape tape;
      auto grads = layer.zero_grads();
      layer.forward(x.map(), y.map(), tape);
      layer.backward(x.map(), dy.map(), tape, dx.map(), grads);
      EXPECT_TRUE(same_bits(y.map(), want.y)) << rows << " rows";
      EXPECT_TRUE(same_bits(dx.map(), want.dx)) << rows << " rows";
      EXPECT_TRUE(same_grads(layer, grads, want.grads)) << rows << " rows";
    }
  }
}

TEST(Contract, ACallLeavesNoGlobalStateBehind) {
  const auto before = testing::global_state();
  const MoELayer<float> layer = make_layer<float>(small_config(), 19);
  run_step(layer, random_matrix<float>(50, 19, 20), {.num_threads = 3, .noise_seed = 1});
  EXPECT_EQ(testing::global_state(), before);
}

TEST(Contract, ALayerMayBeSharedByThreadsWithTheirOwnScratch) {
  const MoELayer<float> layer = make_layer<float>(small_config(), 21);
  const Matrix<float> x = random_matrix<float>(80, 19, 22);
  const auto expected = run_step(layer, x);
  std::vector<testing::Step<MoELayer<float>, float>> steps(8, expected);
  std::vector<Matrix<float>> outputs(8, Matrix<float>::Zero(80, 17));
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    threads.emplace_back([&, i] {
      MoELayer<float>::Scratch scratch;
      for (int repeat = 0; repeat < 3; ++repeat) {
        layer.forward(x, outputs[i], scratch);
      }
      steps[i] = run_step(layer, x);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    EXPECT_TRUE(same_bits(outputs[i], expected.y));
    EXPECT_TRUE(same_bits(steps[i].dx, expected.dx));
    EXPECT_TRUE(same_grads(layer, steps[i].grads, expected.grads));
  }
}

#ifdef _OPENMP
TEST(Contract, ALayerMayBeCalledInsideTheUsersOwnParallelRegion) {
  const MoELayer<float> layer = make_layer<float>(small_config(), 23);
  const Matrix<float> x = random_matrix<float>(80, 19, 24);
  const auto expected = run_step(layer, x);
  std::vector<testing::Step<MoELayer<float>, float>> steps(6, expected);
#pragma omp parallel for num_threads(3)
  for (std::size_t i = 0; i < 6; ++i) {
    steps[i] = run_step(layer, x, {.num_threads = 2});
  }
  for (const auto& step : steps) {
    EXPECT_TRUE(same_bits(step.y, expected.y));
    EXPECT_TRUE(same_bits(step.dx, expected.dx));
    EXPECT_TRUE(same_grads(layer, step.grads, expected.grads));
  }
}
#endif

}  // namespace
}  // namespace moe::contract_test
