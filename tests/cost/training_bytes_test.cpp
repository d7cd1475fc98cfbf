// SPDX-License-Identifier: Apache-2.0
// Bytes per parameter against what gradients allocate and optimisers keep, and twenty steps of a
// layer in 16 bits beside main weights in float.
#include "moe/cost/training_bytes.hpp"

#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "moe/cost/part_cost.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/train/adamw.hpp"
#include "moe/train/sgd.hpp"

namespace moe::training_bytes_test {
namespace {

using testing::random_matrix;

TEST(TrainingBytes, AreSoManyAParameter) {
  EXPECT_EQ(training_bytes<float>(1).total(), 4 + 4 + 8);
  EXPECT_EQ(training_bytes<double>(1).total(), 8 + 8 + 16);
  EXPECT_EQ(training_bytes<bf16>(1).total(), 2 + 4 + 8 + 4);
  EXPECT_EQ(training_bytes<Eigen::half>(1, 1).total(), 2 + 4 + 4 + 4);
  EXPECT_EQ(training_bytes<bf16>(1).main, 4);
  EXPECT_EQ(training_bytes<float>(7).main, 0);
}

const MoEConfig config{.d_model = 32, .d_ff = 48, .num_experts = 16, .top_k = 2};

#if MOE_COUNTS_ALLOCATIONS
/// Bytes that a layer and its gradients allocate, and an optimiser keeps.
template <class T, class Optimiser>
void expect_bytes(Index num_moments) {
  std::optional<MoELayer<T>> layer;
  const std::size_t of_layer = testing::count_bytes([&] { layer.emplace(config, 1); });
  std::optional<typename MoELayer<T>::Grads> grads;
  const std::size_t of_grads = testing::count_bytes([&] { grads = layer->zero_grads(); });
  Optimiser optimiser;
  optimiser.prepare([&](auto&& visit) { visit_trained(visit, *layer, *grads); });
  std::size_t of_state = 0;
  optimiser.for_each_state([&](const std::string&, const auto& state) {
    of_state += static_cast<std::size_t>(state.size()) * sizeof(*state.data());
  });
  const Index router = parameters(layer->router()), experts = parameters(*layer) - router;
  const TrainingBytes narrow = training_bytes<T>(experts, num_moments);
  const TrainingBytes wide = training_bytes<Wide<T>>(router, num_moments);
  EXPECT_GE(static_cast<double>(of_layer), narrow.parameters + wide.parameters);
  EXPECT_NEAR(static_cast<double>(of_grads) / (narrow.gradients + wide.gradients), 1.0, 0.05);
  const double state = narrow.moments + narrow.main + wide.moments + wide.main;
  EXPECT_EQ(static_cast<double>(of_state), state);
}

TEST(TrainingBytes, AreThoseThatGradientsAllocateAndOptimisersKeep) {
  expect_bytes<float, AdamW<float>>(2);
  expect_bytes<double, AdamW<double>>(2);
  expect_bytes<bf16, AdamW<float>>(2);
  expect_bytes<Eigen::half, AdamW<float>>(2);
  expect_bytes<bf16, Sgd<float>>(1);
}
#endif

/// Twenty steps towards fixed outputs, with steps far below the resolution of a bfloat16.
template <class T>
void train(MoELayer<T>& layer, AdamW<float>& adam, double rate) {
  const Matrix<float> x = random_matrix<float>(64, 32, 2), wanted = random_matrix<float>(64, 32, 3);
  const Matrix<T> input = x.cast<T>();
  Matrix<T> y(64, 32), dx(64, 32);
  typename MoELayer<T>::Tape tape;
  auto grads = layer.zero_grads();
  for (int step = 0; step < 20; ++step) {
    layer.for_each_parameter([](const ParameterName&, const auto&, auto& grad) { grad.setZero(); },
                             grads);
    layer.forward(input, y, tape);
    const Matrix<T> dy = (y.template cast<float>() - wanted).template cast<T>();
    layer.backward(input, dy, tape, dx, grads);
    adam.step([&](auto&& visit) { visit_trained(visit, layer, grads); }, {.rate = rate});
  }
}

TEST(MainWeights, OfALayerIn16BitsGoWhereThoseOfAFloatLayerGo) {
  MoELayer<bf16> narrow(config, 1);
  MoELayer<float> wide(config, 1);
  for (std::size_t e = 0; e < 16; ++e) {  // from the same values
    ExpertParams<float>::for_each([](std::string_view, Matrix<float>& to,
                                     const Matrix<bf16>& from) { to = from.cast<float>(); },
                                  wide.experts()[e].params(), narrow.experts()[e].params());
  }
  const MoELayer<float> start = wide;
  constexpr double rate = 1e-4;  // 20 of them are less than half of a bfloat16's step at 1
  AdamW<float> of_narrow({.decay = 0.0}), of_wide({.decay = 0.0});
  train(narrow, of_narrow, rate);
  train(wide, of_wide, rate);
  Index checked = 0;
  of_narrow.for_each_state([&](const std::string& name, const Matrix<float>& main) {
    if (!name.ends_with("up.main")) {
      return;
    }
    const auto e = static_cast<std::size_t>(checked++);
    ASSERT_EQ(name, "experts." + std::to_string(e) + ".up.main");
    const Matrix<float>& from = start.experts()[e].params().up;
    const Matrix<float> moved = main - from, want = wide.experts()[e].params().up - from;
    EXPECT_GT(want.norm(), 0.0F);
    EXPECT_LT((moved - want).norm(), 0.35F * want.norm()) << name;
    EXPECT_TRUE(testing::same_bits(narrow.experts()[e].params().up, main.cast<bf16>().eval()));
  });
  EXPECT_EQ(checked, 16);
}

}  // namespace
}  // namespace moe::training_bytes_test
