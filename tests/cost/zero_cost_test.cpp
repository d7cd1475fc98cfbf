// SPDX-License-Identifier: Apache-2.0
// What a layer with zero-computation experts costs, against a layer that counts what it does, and
// by the share that is expected.
#include "moe/cost/zero_cost.hpp"

#include <gtest/gtest.h>

#include "../support/counting_scalar.hpp"
#include "../support/random_matrix.hpp"
#include "moe/cost/part_cost.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::zero_cost_test {
namespace {

using testing::count_flops;
using testing::Counting;
using testing::random_matrix;

constexpr Index N = 9, D = 5;
constexpr ZeroComputation zero{.constants = 2, .copies = 1, .zeros = 1};
const MoEConfig config{.d_model = D, .d_ff = 3, .num_experts = 2, .top_k = 2};

template <class T>
MoELayer<T, Router<T>, ZeroExperts<T>> make_layer(const MoEConfig& c) {
  const MoEConfig all = detail::with_zeros(c, zero);
  return {make_router<T>(all, 1), ZeroExperts<T>(FfnExperts<T>(make_experts<T>(c, 2)), zero, 3),
          c.options(), make_shared_expert<T>(c, 4)};
}

TEST(ZeroFlops, AreThoseOfTheActualShare) {
  for (int bits = 0; bits < 4; ++bits) {
    MoEConfig c = config;
    c.weight_on = (bits & 1) != 0 ? WeightOn::input : WeightOn::output;
    if ((bits & 2) != 0) {
      c.shared = SharedExpertConfig{.d_ff = 4};
    }
    const auto layer = make_layer<Counting>(c);
    const auto x = random_matrix<Counting>(N, D, 5), dy = random_matrix<Counting>(N, D, 6);
    Matrix<Counting> y(N, D), dx(N, D);
    typename decltype(layer)::Tape tape;
    auto grads = layer.zero_grads();
    const auto forward = count_flops([&] { layer.forward(x, y, tape, {.num_threads = 1}); });
    const auto backward = count_flops([&] { layer.backward(x, dy, tape, dx, grads); });
    const ZeroWork work = executed_work(tape.plan, zero);
    EXPECT_EQ(work.set + work.constants + work.copies + work.zeros, 2.0 * N);
    EXPECT_TRUE(work.set > 0 && work.constants > 0 && work.copies > 0 && work.zeros > 0);
    EXPECT_EQ(forward_flops(c, zero, work).total(), forward) << bits;
    EXPECT_EQ(backward_flops(c, zero, work).total(), backward) << bits;
  }
}

TEST(ZeroWork, IsExpectedToBeSharedByTheNumbersOfExperts) {
  const ZeroWork work = predicted_work(config, zero, 3);
  EXPECT_EQ(work.rows, 6);
  EXPECT_DOUBLE_EQ(work.set, 2.0);
  EXPECT_DOUBLE_EQ(work.constants, 2.0);
  EXPECT_DOUBLE_EQ(work.copies, 1.0);
  EXPECT_DOUBLE_EQ(work.zeros, 1.0);
  EXPECT_DOUBLE_EQ(predicted_work(config, zero, 1).distinct_experts, 2.0 / 3.0);
}

TEST(ZeroParameters, AreThoseThatALayerHas) {
  const ParameterCount count = parameters(config, zero);
  EXPECT_EQ(count.total, parameters(make_layer<float>(config)));
  EXPECT_EQ(count.router, 6 * D);
  EXPECT_EQ(count.total, 6 * D + 2 * count.expert + 2 * 3 * D);
}

// A token chooses two of six, and four of these cost next to nothing.
TEST(ZeroParameters, ThatATokenUsesFollowTheShare) {
  const ParameterCount count = parameters(config, zero);
  const double expected = active_parameters(config, zero, predicted_work(config, zero, 3));
  EXPECT_DOUBLE_EQ(expected, 6 * D + 2.0 / 3.0 * static_cast<double>(count.expert + 3 * D));
  EXPECT_EQ(count.active, 6 * D + 2 * count.expert);
}

TEST(ZeroBytes, AreThoseOfTheDistinctExpertsAndOfTheConstants) {
  ZeroWork work = predicted_work(config, zero, 3);
  const double experts = work.distinct_experts * 3 * 3 * D;
  EXPECT_DOUBLE_EQ(forward_bytes(config, zero, work, 4).weights, 4 * (6 * D + experts + 2 * 3 * D));
  work.constants = 0;
  EXPECT_DOUBLE_EQ(forward_bytes(config, zero, work, 4).weights, 4 * (6 * D + experts));
  EXPECT_DOUBLE_EQ(forward_bytes(config, zero, work, 4).activations, 4 * (3 * 2 * D + 6 * 3 * D));
}

}  // namespace
}  // namespace moe::zero_cost_test
