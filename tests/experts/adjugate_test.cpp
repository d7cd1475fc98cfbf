// SPDX-License-Identifier: Apache-2.0
// Small experts that groups of others share, as a set and in a layer: values, gradients, names,
// cost, and what is refused.
#include "moe/experts/adjugate.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "../support/counting_scalar.hpp"
#include "../support/layer_claims.hpp"
#include "moe/reference.hpp"

namespace moe::adjugate_test {
namespace {

using testing::expect_central_differences;
using testing::expect_same_bits_of_steps;
using testing::random_matrix;

constexpr Index D = 5, D_out = 4, F = 6, small_F = 3;

template <class T>
FfnExperts<T> some(Index count, Index d_ff, std::uint64_t seed) {
  std::vector<Expert<T>> list;
  for (Index e = 0; e < count; ++e) {
    list.emplace_back(typename Expert<T>::Sizes{D, d_ff, D_out}, ExpertConfig{}, seed + 10);
    seed += 10;
  }
  return FfnExperts<T>(std::move(list));
}

/// Four experts, of which two share a small one each.
template <class T>
AdjugateExperts<T> experts() {
  return {some<T>(4, F, 1), some<T>(2, small_F, 100), 0.3};
}

template <class T>
using Layer = MoELayer<T, Router<T>, AdjugateExperts<T>>;

template <class T>
Layer<T> layer_of(const LayerOptions& options = {}) {
  return {make_router<T>({.d_model = D, .d_ff = F, .num_experts = 4, .top_k = 3}, 7), experts<T>(),
          options};
}

TEST(AdjugateExperts, AddToEveryRowThatOfItsGroupTimesTheScale) {
  const auto set = experts<double>();
  const Matrix<double> x = random_matrix<double>(6, D, 1);
  const std::vector<Index> offset{0, 2, 3, 3, 7}, token{0, 3, 1, 2, 4, 5, 0};
  const std::vector<double> weight{0.5, 2, 1, 0.25, 3, 1, 0.5};
  for (const bool weighted : {false, true}) {
    Matrix<double> rows = Matrix<double>::Constant(7, D_out, std::nan(""));
    AdjugateExperts<double>::Scratch scratch;
    set.forward({x,
                 {offset, token},
                 weighted ? std::span<const double>(weight) : std::span<const double>()},
                rows, scratch, 1);
    for (std::size_t e = 0; e < 4; ++e) {
      for (Index row = offset[e]; row < offset[e + 1]; ++row) {
        const auto slot = static_cast<std::size_t>(row);
        reference::Row input = reference::row_of(x, token[slot]);
        for (double& value : input) {
          value *= weighted ? weight[slot] : 1.0;
        }
        const auto want = reference::adjugate_expert(set, e, input);
        EXPECT_TRUE(testing::matrix_near(
            rows.row(row), Eigen::Map<const Matrix<double>>(want.data(), 1, D_out), 1e-14));
      }
    }
  }
}

TEST(AdjugateExperts, MatchCentralDifferencesForEveryParameterAndPlaceOfTheWeight) {
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    for (const auto& capacity : {Capacity{}, Capacity{.rows = 3}}) {
      auto layer = layer_of<double>({.capacity = capacity, .weight_on = weight_on});
      expect_central_differences(layer, random_matrix<double>(6, D, 6));
    }
  }
}

TEST(AdjugateExperts, GiveALayerTheSameBitsForAnyNumberOfThreadsAndATapeThatRecomputes) {
  expect_same_bits_of_steps(layer_of<float>(), random_matrix<float>(67, D, 4));
}

TEST(AdjugateExperts, HaveNamesBesideThoseOfTheSet) {
  Layer<float> layer = layer_of<float>();
  std::vector<std::string> names;
  layer.for_each_parameter([&](const std::string& name, auto&) { names.push_back(name); });
  EXPECT_EQ(names.front(), "router.weight");
  EXPECT_EQ(names.at(1), "experts.0.gate");
  EXPECT_EQ(names.back(), "adjugates.1.down");
  EXPECT_EQ(names.size(), 1U + 3 * (4 + 2));
}

TEST(AdjugateExperts, CostWhatTheirSmallOnesAdd) {
  using testing::Counting;
  const auto set = experts<Counting>();
  const Matrix<Counting> x = random_matrix<Counting>(6, D, 1);
  const std::vector<Index> offset{0, 2, 3, 3, 6};
  const ExpertInput<Counting> input{x, {offset}};
  Matrix<Counting> rows(6, D_out), dx(6, D), drows = random_matrix<Counting>(6, D_out, 2);
  AdjugateExperts<Counting>::Tape tape;
  auto grads = set.zero_grads();
  const FfnShape own{D, F, D_out, {}}, small{D, small_F, D_out, {}};
  const auto forward = testing::count_flops([&] { set.forward(input, rows, tape, 1); });
  const auto backward =
      testing::count_flops([&] { set.backward(input, drows, tape, dx, grads, 1); });
  EXPECT_EQ((own.forward_flops(6) + adjugate_flops(small, 6)).total(), forward);
  EXPECT_EQ((own.backward_flops(6) + adjugate_backward_flops(small, 6)).total(), backward);
}

TEST(AdjugateExperts, AreRefusedUnlessTheyFitTheSetAndOfAnotherTape) {
  using Set = AdjugateExperts<float>;
  EXPECT_THROW((Set{some<float>(4, F, 1), some<float>(3, small_F, 1), 1.0}), std::invalid_argument);
  EXPECT_THROW((Set{some<float>(2, F, 1), some<float>(4, small_F, 1), 1.0}), std::invalid_argument);
  std::vector<Expert<float>> wider(1, Expert<float>({D, F, D_out + 1}, {}, 1));
  EXPECT_THROW((Set{some<float>(4, F, 1), FfnExperts<float>(wider), 1.0}), std::invalid_argument);
  EXPECT_THROW(
      (Set{some<float>(4, F, 1), some<float>(2, F, 1), std::numeric_limits<double>::quiet_NaN()}),
      std::invalid_argument);
  EXPECT_THROW(layer_of<float>({.weight_on = WeightOn::hidden}), std::invalid_argument);

  Layer<float> layer = layer_of<float>();
  const Matrix<float> x = random_matrix<float>(5, D, 4);
  Layer<float>::Tape tape;
  Matrix<float> y(5, D_out), dx(5, D);
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.experts().adjugates() = some<float>(2, small_F, 3);
  EXPECT_THROW(layer.backward(x, y, tape, dx, grads), std::invalid_argument);
}

}  // namespace
}  // namespace moe::adjugate_test
