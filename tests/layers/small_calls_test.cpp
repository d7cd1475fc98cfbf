// SPDX-License-Identifier: Apache-2.0
// A call that is small takes one thread, whatever it is allowed: on a busy machine a second one
// would come a whole time slice late. What its size is, every part states for itself.
#include <gtest/gtest.h>

#include "moe/layers/packed_layer.hpp"
#include "moe/routing.hpp"
#include "support/layer_step.hpp"

namespace moe::small_calls_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

const MoEConfig config{.d_model = 32, .d_ff = 64, .num_experts = 8, .top_k = 2};
// Two experts of three projections, a gate, and eight for each score.
constexpr double of_a_token = 2 * 3 * 32 * 64 + 8 * 32 + 8 * 8;

TEST(SmallCalls, AreMeasuredInMultiplyAddsOfAllParts) {
  const MoELayer<float> layer(config, 1);
  EXPECT_EQ(layer.multiply_adds(1), of_a_token);
  EXPECT_EQ(layer.multiply_adds(7), 7 * of_a_token);
  EXPECT_EQ(pack<float>(layer).multiply_adds(7), 7 * of_a_token);
  EXPECT_EQ(pack<bf16>(layer).multiply_adds(1), of_a_token);
  MoEConfig more = config;
  more.expert.gated = false;
  more.router.logits.noisy = true;
  more.shared = SharedExpertConfig{.d_ff = 16};
  EXPECT_EQ(MoELayer<float>(more, 1).multiply_adds(1),
            2 * 2 * 32 * 64 + 2 * 8 * 32 + 8 * 8 + 2 * 32 * 16);
}

#ifdef _OPENMP
TEST(SmallCalls, TakeOneThreadAndLargerOnesThoseAllowed) {
  const MoELayer<float> layer(config, 2);
  const auto few = static_cast<Index>(detail::least_work / of_a_token);
  for (const Index tokens : {Index{1}, few, few + 1}) {
    const Matrix<float> x = random_matrix<float>(tokens, 32, 3);
    Matrix<float> y = x, want = x;
    MoELayer<float>::Tape tape;
    layer.forward(x, y, tape, {.num_threads = 2});
    EXPECT_EQ(tape.num_threads, tokens > few ? 2 : 1) << tokens;
    EXPECT_EQ(tape.routing.num_threads, tape.num_threads);
    layer.forward(x, want, tape, {.num_threads = 1});
    EXPECT_TRUE(same_bits(y, want));
    EXPECT_EQ(tape.num_threads, 1);
  }
}

TEST(SmallCalls, OfADenseLayerOrARouterAloneTakeOneThread) {
  const DenseFfn<float> dense({32, 64, 32}, {}, 4);
  const Router<float> router(32, 8, 2, {}, 5);
  for (const Index tokens : {8, 2000}) {
    const Matrix<float> x = random_matrix<float>(tokens, 32, 6);
    Matrix<float> y = x;
    DenseFfn<float>::Tape tape;
    Router<float>::Table table;
    dense.forward(x, y, tape, {.num_threads = 2});
    router.route(x, {.num_threads = 2}, table);
    EXPECT_EQ(tape.num_threads, tokens == 8 ? 1 : 2);
    EXPECT_EQ(table.num_threads, tokens == 8 ? 1 : 2);
  }
}

template <class Rule>
void expect_small_calls_on_one_thread(Rule rule) {
  const auto router = linear_router<float>(32, 8, std::move(rule), 5);
  for (const Index tokens : {8, 2000}) {
    const Matrix<float> x = random_matrix<float>(tokens, 32, 6);
    typename decltype(router)::Table table;
    router.route(x, {.num_threads = 2}, table);
    EXPECT_EQ(table.num_threads, tokens == 8 ? 1 : 2);
  }
}

TEST(SmallCalls, OfEveryRuleForTheWholeTableTakeOneThread) {
  expect_small_calls_on_one_thread(ExpertChoice<float>({}));
  expect_small_calls_on_one_thread(Sinkhorn<float>(8, {}));
  expect_small_calls_on_one_thread(SequenceTopK<float>(8, {}));
  expect_small_calls_on_one_thread(BalancedAssignment<float>({}));
}

/// May be of any size: it does not say.
struct Unknown {
  struct Scratch {};
  Index d_in() const { return 4; }
  Index d_out() const { return 4; }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Scratch&) const { y = x; }
};

TEST(SmallCalls, AreNoneWhereAnExpertDoesNotStateItsSize) {
  const MoELayer<float, Router<float>, Unknown> layer(Router<float>(4, 2, 1, {}, 7),
                                                      std::vector<Unknown>(2));
  const Matrix<float> x = random_matrix<float>(1, 4, 8);
  Matrix<float> y = x;
  MoELayer<float, Router<float>, Unknown>::Scratch scratch;
  layer.forward(x, y, scratch, {.num_threads = 2});
  EXPECT_EQ(scratch.routing.num_threads, 2);
}
#endif

}  // namespace
}  // namespace moe::small_calls_test
