// SPDX-License-Identifier: Apache-2.0
// Experts of rank one: each is a feed-forward with one hidden number, and what is refused.
#include "moe/experts/rank_one.hpp"

#include <gtest/gtest.h>

#include "moe/layers/moe_layer.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe {

template class RankOneExperts<float>;
template class RankOneExperts<bf16>;

}  // namespace moe

namespace moe::rank_one_test {
namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;

constexpr Index N = 9, D = 5, D_out = 3, E = 6, K = 2;

/// The same experts, one by one.
std::vector<Expert<double>> feed_forwards(const RankOneExperts<double>& experts) {
  ExpertConfig config = experts.config();
  config.gated = false;
  std::vector<Expert<double>> list;
  for (Index e = 0; e < experts.num_experts(); ++e) {
    ExpertParams<double> params;
    params.up = experts.params().down.row(e);
    params.down = experts.params().up.row(e).transpose();
    list.emplace_back(params, config);
  }
  return list;
}

TEST(RankOneExperts, AreFeedForwardsWithOneHiddenNumber) {
  for (const Activation activation : all_activations) {
    const RankOneExperts<double> experts({D, E, D_out}, {.activation = activation}, 1);
    const MoELayer<double> layer(Router<double>(D, E, K, {}, 2), feed_forwards(experts));
    const auto x = random_matrix<double>(N, D, 3);
    const auto dy = random_matrix<double>(N, D_out, 4);
    MoELayer<double>::Tape tape;
    auto want = layer.zero_grads();
    Matrix<double> want_y(N, D_out), want_dx(N, D), y(N, D_out), dx(N, D), dlogits_dx(N, D);
    layer.forward(x, want_y, tape);
    layer.backward(x, dy, tape, want_dx, want);

    const RankOneInput<double> input{x, tape.routing, 2};
    RankOneExperts<double>::Tape mine;
    auto grads = zero_grads_of(experts);
    experts.activate(input, mine);
    experts.combine(input, mine, nullptr, y);
    EXPECT_TRUE(matrix_near(y, want_y, 1e-13));

    experts.backward(input, dy, tape.plan, mine, grads);
    RoutingGradient<double> gradient{.weight = mine.dweight};
    auto router_grads = zero_grads_of(layer.router());
    layer.router().backward(x, tape.routing, gradient, dx, router_grads);
    experts.input_backward(input, mine, nullptr, dx);
    EXPECT_TRUE(matrix_near(dx, want_dx, 1e-13));
    EXPECT_TRUE(matrix_near(router_grads.weight, want.router.weight, 1e-13));
    for (Index e = 0; e < E; ++e) {
      const auto& of_expert = want.experts[static_cast<std::size_t>(e)];
      EXPECT_TRUE(matrix_near(grads.down.row(e), of_expert.up, 1e-12)) << e;
      EXPECT_TRUE(matrix_near(grads.up.row(e), of_expert.down.transpose(), 1e-12)) << e;
    }
  }
}

TEST(RankOneExperts, LeaveOutChoicesThatAreNone) {
  const RankOneExperts<double> experts({D, E, D_out}, {}, 1);
  const auto x = random_matrix<double>(1, D, 3);
  RoutingTable<double> table;
  table.expert = (Matrix<ExpertId>(1, 2) << 4, none).finished();
  table.weight = Matrix<double>::Ones(1, 2);
  const RankOneInput<double> input{x, table};
  RankOneExperts<double>::Scratch scratch;
  Matrix<double> y(1, D_out);
  experts.activate(input, scratch);
  experts.combine(input, scratch, nullptr, y);
  const double inner = x.row(0).dot(experts.params().down.row(4));
  EXPECT_TRUE(matrix_near(y, inner / (1.0 + std::exp(-inner)) * experts.params().up.row(4), 1e-14));
}

TEST(RankOneExperts, RefuseSizesAndWeightsThatDoNotFit) {
  EXPECT_EQ(message_of([] {
              RankOneExperts<float>({5, 0, 3}, {}, 1);
            }),
            "RankOneExperts: sizes 5, 0, 3, expected above 0");
  EXPECT_EQ(message_of([] {
              RankOneExperts<float>({-5, 4, 3}, {}, 1);
            }),
            "RankOneExperts: sizes -5, 4, 3, expected above 0");
  EXPECT_EQ(message_of([] {
              const RankOneParams<float> params{Matrix<float>(4, 5), Matrix<float>(3, 5)};
              RankOneExperts<float>(params, {});
            }),
            "parameter experts.up is (3, 5), expected (4, 5)");
}

}  // namespace
}  // namespace moe::rank_one_test
