// SPDX-License-Identifier: Apache-2.0
// The contract's fifth promise, where a server needs it: batches that grow and shrink from call to
// call allocate nothing once the largest was seen.
#include <gtest/gtest.h>

#include "moe/layers/packed_layer.hpp"
#include "support/count_allocations.hpp"
#include "support/layer_step.hpp"
#include "support/random_matrix.hpp"

#if MOE_COUNTS_ALLOCATIONS
namespace moe::steady_state_test {
namespace {

using testing::make_layer;
using testing::random_matrix;

constexpr Index most_tokens = 200;

MoEConfig small_config() {
  return {.d_model = 19, .d_ff = 23, .num_experts = 5, .top_k = 2, .shared = {{.d_ff = 11}}};
}

/// Allocations of calls with other numbers of tokens than the call before, after a first round of
/// the same. The first of all has the most tokens.
template <class Call>
long allocations_of_varying_batches(int threads, const Call& call) {
  const auto round = [&] {
    for (const Index tokens : {most_tokens, Index{7}, Index{8}, Index{0}, Index{64}, Index{1},
                               Index{199}, most_tokens}) {
      detail::with_team(threads, [&] { call(tokens); });
    }
  };
  round();  // threads' own start-up, and loops that met only some of them
  return testing::count_allocations(round);
}

template <class T>
long layer_allocations(const MoEConfig& config, int threads, double expert_dropout = 0.0) {
  using Layer = MoELayer<T>;
  const Layer layer = make_layer<T>(config, 1);
  typename Layer::Scratch scratch;
  typename Layer::Tape tape, memory;
  typename Layer::RecomputingTape recomputing(memory);
  auto grads = layer.zero_grads();
  const CallOptions call{.num_threads = threads, .noise_seed = 2, .expert_dropout = expert_dropout};
  const Matrix<T> all = random_matrix<T>(most_tokens, layer.d_in(), 3);
  const Matrix<T> dy = random_matrix<T>(most_tokens, layer.d_out(), 4);
  Matrix<T> y = dy, dx = all;
  std::vector<RoutingGradient<Wide<T>>> losses(most_tokens + 1);
  for (Index tokens = 0; tokens <= most_tokens; ++tokens) {
    losses[static_cast<std::size_t>(tokens)].probs.setOnes(tokens, config.num_experts);
  }
  return allocations_of_varying_batches(threads, [&](Index tokens) {
    const auto x = all.topRows(tokens);
    const auto& loss = losses[static_cast<std::size_t>(tokens)];
    layer.forward(x, y.topRows(tokens), scratch, call);
    layer.forward(x, y.topRows(tokens), tape, call);
    layer.backward(x, dy.topRows(tokens), tape, dx.topRows(tokens), grads, loss);
    layer.forward(x, y.topRows(tokens), recomputing, call);
    layer.backward(x, dy.topRows(tokens), recomputing, dx.topRows(tokens), grads, loss);
  });
}

TEST(SteadyState, ALayerAllocatesNothingForBatchesNoLargerThanItHasSeen) {
  MoEConfig noisy = small_config(), dropping = small_config(), on_input = small_config();
  noisy.router.logits = {.input_jitter = 0.1, .noisy = true};
  dropping.capacity = {.factor = 1.25, .policy = DropPolicy::probability};
  on_input.weight_on = WeightOn::input;
  MoEConfig on_hidden = small_config(), latent = small_config();
  on_hidden.weight_on = WeightOn::hidden;
  latent.latent = LatentConfig{.width = 13, .norm = true};
  MoEConfig weighed = small_config();
  weighed.shared->coefficients = true;
  MoEConfig normed = small_config();
  normed.output_norm = OutputNormConfig{};
  for (const int threads : {1, 2}) {
    for (const MoEConfig& config :
         {small_config(), noisy, dropping, on_input, on_hidden, latent, weighed, normed}) {
      EXPECT_EQ(layer_allocations<float>(config, threads), 0) << threads;
    }
    for (const MoEConfig& config : {small_config(), on_hidden, latent, weighed, normed}) {
      EXPECT_EQ(layer_allocations<bf16>(config, threads), 0) << threads;
    }
    EXPECT_EQ(layer_allocations<Eigen::half>(small_config(), threads), 0) << threads;
    EXPECT_EQ(layer_allocations<float>(dropping, threads, 0.3), 0) << threads;
  }
}

TEST(SteadyState, LongerSequencesOfNoMoreTokensAllocateNothing) {
  MoEConfig config = small_config();
  config.capacity.factor = 100.0;  // keeps all rows: a call with more of them may allocate
  const auto layer = make_layer<float>(config, 1);
  MoELayer<float>::Scratch scratch;
  const Matrix<float> x = random_matrix<float>(most_tokens, layer.d_in(), 2);
  Matrix<float> y(most_tokens, layer.d_out());
  const auto forward = [&](Index length) {
    layer.forward(x, y, scratch, {.num_threads = 1, .tokens = {.sequence_length = length}});
  };
  forward(most_tokens / 10);
  EXPECT_EQ(testing::count_allocations([&] { forward(most_tokens); }), 0);
}

template <class S>
void expect_packed_allocates_nothing() {
  const auto layer = pack<S>(make_layer<Wide<S>>(small_config(), 5));
  typename PackedLayer<S>::Scratch scratch;
  const auto all = random_matrix<Wide<S>>(most_tokens, layer.d_in(), 6);
  Matrix<Wide<S>> y(most_tokens, layer.d_out());
  for (const int threads : {1, 2}) {
    EXPECT_EQ(allocations_of_varying_batches(threads,
                                             [&](Index tokens) {
                                               layer.forward(all.topRows(tokens), y.topRows(tokens),
                                                             scratch, {.num_threads = threads});
                                             }),
              0)
        << threads;
  }
}

TEST(SteadyState, APackedLayerAllocatesNothingForBatchesNoLargerThanItHasSeen) {
  expect_packed_allocates_nothing<float>();
  expect_packed_allocates_nothing<bf16>();
  expect_packed_allocates_nothing<q8>();
  expect_packed_allocates_nothing<fp8>();
}

TEST(SteadyState, ADenseLayerAllocatesNothingForBatchesNoLargerThanItHasSeen) {
  const DenseFfn<float> dense({19, 23, 17}, {}, 7);
  DenseFfn<float>::Scratch scratch;
  DenseFfn<float>::Tape tape;
  auto grads = zeros_like(dense.params());
  const auto all = random_matrix<float>(most_tokens, 19, 8);
  const auto dy = random_matrix<float>(most_tokens, 17, 9);
  Matrix<float> y = dy, dx = all;
  std::vector<std::uint8_t> padding(most_tokens, 0);
  padding[0] = padding[5] = 1;
  for (const bool padded : {false, true}) {
    for (const int threads : {1, 2}) {
      EXPECT_EQ(allocations_of_varying_batches(
                    threads,
                    [&](Index tokens) {
                      CallOptions call{.num_threads = threads};
                      if (padded) {
                        call.tokens.padding = std::span(padding).first(std::size_t(tokens));
                      }
                      const auto x = all.topRows(tokens);
                      dense.forward(x, y.topRows(tokens), scratch, call);
                      dense.forward(x, y.topRows(tokens), tape, call);
                      dense.backward(x, dy.topRows(tokens), tape, dx.topRows(tokens), grads);
                    }),
                0)
          << padded << threads;
    }
  }
}

TEST(SteadyState, ARouterAloneAllocatesNothingForBatchesNoLargerThanItHasSeen) {
  MoEConfig config = small_config();
  config.router.logits = {.input_jitter = 0.1, .noisy = true};
  const Router<float> router = make_router<float>(config, 10);
  Router<float>::Table table;
  RoutingGradient<float> gradient, losses;
  auto grads = zeros_like(router.params());
  const auto all = random_matrix<float>(most_tokens, 19, 11);
  Matrix<float> dx = all;
  const ExpertMask masks = ExpertMask::Ones(most_tokens, 5);
  std::vector<ExpertMask> mask;
  for (Index tokens = 0; tokens <= most_tokens; ++tokens) {
    mask.push_back(masks.topRows(tokens));
  }
  for (const int threads : {1, 2}) {
    EXPECT_EQ(allocations_of_varying_batches(
                  threads,
                  [&](Index tokens) {
                    const auto x = all.topRows(tokens);
                    router.route(x,
                                 {.num_threads = threads,
                                  .expert_mask = tokens == 1 ? nullptr : &mask[std::size_t(tokens)],
                                  .noise_seed = 12},
                                 table);
                    gradient.assign(losses, table);
                    router.backward(x, table, gradient, dx.topRows(tokens), grads);
                  }),
              0)
        << threads;
  }
}

TEST(SteadyState, LayersOfOtherWidthsMayShareAScratchAndATape) {
  const auto narrow = make_layer<float>(small_config(), 13);
  MoEConfig config = small_config();
  config.d_model = 29, config.d_ff = 40, config.shared->d_ff = 31;
  const auto wide = make_layer<float>(config, 14);
  MoELayer<float>::Scratch scratch;
  MoELayer<float>::Tape tape;
  const auto step = [&](const auto& layer, const Matrix<float>& x, Matrix<float>& y) {
    layer.forward(x, y, scratch, {.num_threads = 1});
    layer.forward(x, y, tape, {.num_threads = 1});
  };
  const auto x_narrow = random_matrix<float>(50, 19, 15), x_wide = random_matrix<float>(50, 29, 16);
  Matrix<float> y_narrow = x_narrow, y_wide = x_wide;
  step(wide, x_wide, y_wide);
  step(narrow, x_narrow, y_narrow);
  EXPECT_EQ(testing::count_allocations([&] {
              step(wide, x_wide, y_wide);
              step(narrow, x_narrow, y_narrow);
            }),
            0);
}

// Which worker meets the wide expert is a matter of chance: all must be ready for it.
TEST(SteadyState, ExpertsOfOtherWidthsInOneSetLeaveEachWorkersScratchAsItIs) {
  std::vector<Expert<float>> experts;
  for (const Index d_ff : {4, 90, 30}) {
    experts.emplace_back(Expert<float>::Sizes{19, d_ff, 19}, ExpertConfig{}, 17);
  }
  const EachExpert<float, Expert<float>> set(std::move(experts));
  const std::vector<Index> few{0, 8, 8, 16}, all{0, 4, 8, 16};
  const auto x = random_matrix<float>(16, 19, 18);
  Matrix<float> rows(16, 19);
  EachExpert<float, Expert<float>>::Scratch scratch;
  set.forward({x, {few}}, rows, scratch, 1);
  EXPECT_EQ(testing::count_allocations([&] {
              set.forward({x, {all}}, rows, scratch, 1);  // the wide expert's first rows
              set.forward({x, {few}}, rows, scratch, 1);
              set.forward({x, {all}}, rows, scratch, 1);
            }),
            0);
}

}  // namespace
}  // namespace moe::steady_state_test
#endif
