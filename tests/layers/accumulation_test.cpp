// SPDX-License-Identifier: Apache-2.0
// Gradients over many micro-batches: grads are +=, and in 16 bits a sum that is some hundred times
// its summands would no longer grow.
#include <gtest/gtest.h>

#include "../support/layer_step.hpp"
#include "../support/matrix_near.hpp"

namespace moe::accumulation_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;

template <class T>
class Accumulation : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(Accumulation, Scalars);

/// All the parts a layer can have.
MoEConfig config() {
  return {.d_model = 16,
          .d_ff = 24,
          .num_experts = 4,
          .top_k = 2,
          .expert = {.bias = true},
          .router = {.logits = {.bias = true}},
          .shared = SharedExpertConfig{.d_ff = 8, .output_gate = true}};
}

TYPED_TEST(Accumulation, OfManyMicroBatchesGivesAsManyTimesTheGradientOfOne) {
  using T = TypeParam;
  constexpr int batches = 1000;
  const MoELayer<T> layer = make_layer<T>(config(), 1);
  const Matrix<T> x = random_matrix<T>(8, 16, 2), dy = random_matrix<T>(8, 16, 3);
  Matrix<T> y(8, 16), dx(8, 16);
  typename MoELayer<T>::Tape tape;
  auto one = layer.zero_grads(), many = layer.zero_grads();
  layer.forward(x, y, tape, {.num_threads = 1});
  layer.backward(x, dy, tape, dx, one);
  for (int i = 0; i < batches; ++i) {
    layer.backward(x, dy, tape, dx, many);
  }
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&, const auto& grad, const auto& sum) {
        EXPECT_GT(grad.norm(), 0) << name.text();
        EXPECT_TRUE(
            matrix_near(sum.template cast<double>() / batches, grad.template cast<double>(), 1e-4))
            << name.text();
      },
      one, many);
}

TYPED_TEST(Accumulation, IsInTheTypeThatSumsAreComputedIn) {
  using T = TypeParam;
  static_assert(std::same_as<GradsOf<Expert<T>>, ExpertParams<Wide<T>>>);
  static_assert(std::same_as<GradsOf<DenseFfn<T>>, ExpertParams<Wide<T>>>);
  static_assert(std::same_as<GradsOf<FfnExperts<T>>, std::vector<ExpertParams<Wide<T>>>>);
  static_assert(
      std::same_as<GradsOf<EachExpert<T, Expert<T>>>, std::vector<ExpertParams<Wide<T>>>>);
  static_assert(
      std::same_as<GradsOf<EachExpert<T, MoELayer<T>>>, std::vector<typename MoELayer<T>::Grads>>);
}

}  // namespace
}  // namespace moe::accumulation_test
