// SPDX-License-Identifier: Apache-2.0
// ReLU routing: its choices against plain loops, its gradients, also across the coming and going of
// an expert, and the contract.
#include "moe/routing/relu_routing.hpp"

#include "moe/reference/relu_routing.hpp"
#include "rule_checks.hpp"

namespace moe {

template class ReluRouting<float>;

}  // namespace moe

namespace moe::relu_routing_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Rule = ReluRouting<double>;
using Router = LinearRouter<double, Rule>;
static_assert(TokenRule<Rule, double> && TrainableRule<Rule, double>);

constexpr Index N = 8, D = 4, E = 5;

Router router() { return testing::random_router(D, E, Rule(E), 3); }

TEST(ReluRouting, ChoosesAsPlainLoopsDo) {
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 1) = mask(0, 4) = 0;
  for (const ExpertMask* expert_mask :
       {static_cast<const ExpertMask*>(nullptr), &std::as_const(mask)}) {
    Router::Table table;
    router().route(random_matrix<double>(40, D, 5), {.expert_mask = expert_mask}, table);
    reference::Routing want;
    for (const reference::Row& logits : testing::rows_of(table.logits)) {
      want.push_back(reference::relu_routing(
          logits, expert_mask == nullptr ? std::vector<std::uint8_t>()
                                         : std::vector<std::uint8_t>{1, 0, 1, 1, 0}));
    }
    EXPECT_TRUE(testing::has_choices(table, want));
    EXPECT_TRUE(testing::matrix_near(table.probs, table.logits.cwiseMax(0.0), 0.0));
    EXPECT_FALSE(table.probs_sum_to_one);
  }
}

TEST(ReluRouting, ScalesItsExpertsWithItsInput) {
  Router linear = linear_router<double>(D, E, Rule(E), 2);
  Router::Table once, twice;
  const Matrix<double> x = random_matrix<double>(N, D, 5);
  linear.route(x, {}, once);
  linear.route(2.0 * x, {}, twice);
  EXPECT_EQ(once.expert, twice.expert);
  EXPECT_TRUE(testing::matrix_near(twice.weight, 2.0 * once.weight, 1e-15));
}

TEST(ReluRouting, GivesATokenWithoutAPositiveLogitNothing) {
  Router none_of_them = router();
  none_of_them.params().weight.setZero();
  none_of_them.params().bias.setConstant(-1.0);
  none_of_them.params().bias(0, 2) = 0.0;
  const auto layer = testing::layer_of(none_of_them);
  const auto step = testing::run_step(layer, random_matrix<double>(N, D, 5));
  EXPECT_TRUE(step.y.isZero(0) && step.dx.isZero(0));
}

TEST(ReluRouting, IsContinuousWhereAnExpertComes) {
  Router one = linear_router<double>(1, 2, Rule(2), 1, {.bias = true});
  one.params().weight << 1.0, 1.0;
  one.params().bias << 1.0, 0.0;
  const auto layer = testing::layer_of(one);
  decltype(testing::layer_of(one))::Scratch scratch;
  Matrix<double> y(2, 1);
  layer.forward(Eigen::Vector2d(-1e-9, 1e-9), y, scratch);
  EXPECT_EQ(scratch.routing.expert(0, 1), none);
  EXPECT_NE(scratch.routing.expert(1, 1), none);
  EXPECT_NEAR(y(0, 0), y(1, 0), 1e-7);
}

TEST(ReluRouting, MatchesCentralDifferences) {
  testing::expect_gradients(router(), random_matrix<double>(N, D, 5));
}

TEST(ReluRouting, KeepsTheContractInALayer) {
  testing::expect_same_bits_for_any_threads(router());
  testing::expect_small_batches(router());
  testing::expect_padding_is_no_token(router());
  testing::expect_nan_stays_with_its_token(router());
  testing::expect_no_allocation_in_a_steady_state(router());
}

TEST(ReluRouting, RefusesToHaveNoExperts) {
  EXPECT_EQ(message_of([] { Rule(0); }), "ReluRouting: num_experts = 0, expected at least 1");
}

}  // namespace
}  // namespace moe::relu_routing_test
