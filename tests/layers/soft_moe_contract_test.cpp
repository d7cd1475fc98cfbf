// SPDX-License-Identifier: Apache-2.0
// Soft MoE and the numerical contract: bits, padding, NaN, memory, and what is refused.
#include <gtest/gtest.h>

#include "support/soft_layers.hpp"

namespace moe::soft_moe_contract_test {
namespace {

using namespace testing::soft;
using testing::message_of;
using testing::random_matrix;
using testing::refusal_after;
using testing::same_bits;

template <class T>
class SoftMoEContractOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(SoftMoEContractOf, Scalars);

TYPED_TEST(SoftMoEContractOf, HasTheSameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  const auto layer =
      make_soft<T>({.d_model = 40, .d_ff = 24, .num_experts = 4, .slots = 3, .d_out = 35});
  const auto x = random_matrix<T>(60, 40, 3);
  testing::expect_same_bits_for_any_threads(
      layer, 60, [&](const CallOptions& call) { return run_step(layer, x, call); },
      [&](const CallOptions& call) { return forward(layer, x, call); });
}

TYPED_TEST(SoftMoEContractOf, GivesASequenceTheSameBitsAloneAndAmongOthers) {
  using T = TypeParam;
  const auto layer = make_soft<T>({.d_model = 20, .d_ff = 12, .num_experts = 4, .slots = 3});
  const auto x = random_matrix<T>(N, 20, 3);
  const Matrix<T> y = forward(layer, x, {.tokens = {.sequence_offset = ragged}});
  for (std::size_t b = 0; b + 1 < ragged.size(); ++b) {
    const Index begin = ragged[b], rows = ragged[b + 1] - begin;
    const Matrix<T> alone = x.middleRows(begin, rows);
    EXPECT_TRUE(same_bits(forward(layer, alone), y.middleRows(begin, rows))) << b;
  }
}

TEST(SoftMoEContract, DoesNotSeePadding) {
  const auto layer = make_soft<double>(small_config());
  auto x = random_matrix<double>(N, layer.d_in(), 3);
  const CallOptions call{.tokens = {.sequence_offset = ragged, .padding = padding}};
  const auto want = run_step(layer, x, call);
  for (Index t = 0; t < N; ++t) {
    if (call.tokens.is_padding(t)) {
      x.row(t).setConstant(std::nan(""));
      EXPECT_TRUE(want.y.row(t).isZero(0) && want.dx.row(t).isZero(0));
    }
  }
  const auto step = run_step(layer, x, call);
  EXPECT_TRUE(same_bits(step.y, want.y) && same_bits(step.dx, want.dx));
  EXPECT_TRUE(testing::same_grads(layer, step.grads, want.grads));
}

TEST(SoftMoEContract, KeepsANaNInTheSequenceOfItsToken) {
  const auto layer = make_soft<float>(small_config());
  auto x = random_matrix<float>(N, layer.d_in(), 3);
  const CallOptions call{.tokens = {.sequence_length = 4}};
  const Matrix<float> want = forward(layer, x, call);
  x(6, 1) = std::nanf("");
  const Matrix<float> y = forward(layer, x, call);
  EXPECT_TRUE(y.middleRows(4, 4).array().isNaN().all());
  EXPECT_TRUE(same_bits(y.topRows(4), want.topRows(4)));
  EXPECT_TRUE(same_bits(y.bottomRows(4), want.bottomRows(4)));
}

TEST(SoftMoEContract, HasNoRowsOfABatchOfNothingOrOfPadding) {
  const auto layer = make_soft<float>(small_config());
  for (const Index rows : {0, 3}) {
    const std::vector<std::uint8_t> marks(static_cast<std::size_t>(rows), 1);
    const auto step = run_step(layer, random_matrix<float>(rows, layer.d_in(), 3),
                               {.tokens = {.padding = marks}});
    EXPECT_TRUE(step.y.isZero(0) && step.dx.isZero(0));
    EXPECT_TRUE(testing::same_grads(layer, step.grads, layer.zero_grads()));
  }
}

TEST(SoftMoEContract, MayWriteItsOutputOverItsInput) {
  SoftMoEConfig config = small_config();
  config.d_out.reset();
  const auto layer = make_soft<float>(config);
  auto x = random_matrix<float>(N, layer.d_in(), 3);
  for (const Tokens& tokens : all_tokens()) {
    const Matrix<float> want = forward(layer, x, {.tokens = tokens});
    Matrix<float> y = x;
    SoftMoELayer<float>::Scratch scratch;
    layer.forward(y, y, scratch, {.tokens = tokens});
    EXPECT_TRUE(same_bits(y, want));
  }
}

TEST(SoftMoEContract, NamesItsParameters) {
  const auto layer = make_soft<float>(small_config());
  std::vector<std::string> names;
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&) { names.push_back(name.text()); });
  EXPECT_EQ(names.size(), 2u + 3u * 3u);
  EXPECT_EQ(names.at(0), "router.weight");
  EXPECT_EQ(names.at(1), "router.scale");
  EXPECT_EQ(names.back(), "experts.2.down");
}

#if MOE_COUNTS_ALLOCATIONS
template <class T>
void expect_no_allocation() {
  const auto layer = make_soft<T>(small_config());
  const auto x = random_matrix<T>(60, layer.d_in(), 3);
  const auto dy = random_matrix<T>(60, layer.d_out(), 4);
  Matrix<T> y = dy, dx = x;
  typename SoftMoELayer<T>::Scratch scratch;
  typename SoftMoELayer<T>::Tape tape;
  auto grads = layer.zero_grads();
  testing::expect_no_allocation([&](Index rows, std::span<const std::uint8_t> padded) {
    for (const Index length : {Index(0), Index(3)}) {
      const CallOptions call{.num_threads = 2,
                             .tokens = {.sequence_length = length, .padding = padded}};
      layer.forward(x.topRows(rows), y.topRows(rows), scratch, call);
      layer.forward(x.topRows(rows), y.topRows(rows), tape, call);
      layer.backward(x.topRows(rows), dy.topRows(rows), tape, dx.topRows(rows), grads);
    }
  });
}

TEST(SoftMoEContract, AllocatesNothingForBatchesNoLargerThanItHasSeen) {
  expect_no_allocation<float>();
  expect_no_allocation<bf16>();
}
#endif

TEST(SoftMoEContract, RefusesWhatItHasNotAndNamesIt) {
  const auto layer = make_soft<float>(small_config());
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  const ExpertMask mask = ExpertMask::Ones(1, 3);
  for (const CallOptions& call :
       {CallOptions{.expert_mask = &mask}, CallOptions{.top_k = 1},
        CallOptions{.capacity = Capacity{}}, CallOptions{.noise_seed = 1, .expert_dropout = 0.5}}) {
    EXPECT_EQ(
        message_of([&] { forward(layer, x, call); }),
        "SoftMoELayer: the call sets expert_mask, experts, top_k, capacity or expert_dropout, "
        "expected none: all tokens are in all slots");
  }
  EXPECT_EQ(message_of([&] { forward(layer, random_matrix<float>(N, 4, 3)); }),
            "SoftMoELayer: x is (12, 4), expected (12, 5)");
  EXPECT_EQ(message_of([] {
              SoftMoELayer<float>({.d_model = 5, .d_ff = 6, .num_experts = 3, .slots = 0}, 1);
            }),
            "SoftMoEConfig: slots = 0, expected at least 1");
  EXPECT_EQ(message_of([&] {
              SoftMoEConfig config = small_config();
              config.num_experts = 4;
              SoftMoELayer<float>(layer.router(), make_experts<float>(config.experts(), 1));
            }),
            "SoftMoELayer: the router has 6 slots, expected a multiple of num_experts = 4");
}

TEST(SoftMoEContract, RefusesATapeOfAnotherLayerAndGradientsThatOverlap) {
  const auto layer = make_soft<float>(small_config());
  const auto copy = layer;
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  Matrix<float> y(N, layer.d_out()), dx = x;
  SoftMoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { copy.backward(x, y, tape, dx, grads); }),
            "SoftMoELayer: the tape is of another layer, expected this one's");
  EXPECT_EQ(message_of([&] { layer.backward(dx, y, tape, dx, grads); }),
            "SoftMoELayer: dx overlaps x or dy, expected memory of its own");
  grads.experts.pop_back();
  EXPECT_EQ(message_of([&] { layer.backward(x, y, tape, dx, grads); }),
            "gradient experts has 2 experts, expected 3");
}

TEST(SoftMoEContract, RefusesATapeOfPartsThatWereReplacedBeforeAnythingIsWritten) {
  SoftMoEConfig more = small_config();
  more.slots = small_config().slots + 2;
  const auto layer = make_soft<double>(small_config()), other = make_soft<double>(small_config());
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.router() = make_slot_router<double>(more, 5); }),
            "SoftMoELayer.router: the table is of another router, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.experts() = other.experts(); }),
            "SoftMoELayer.experts: the tape is of another set of experts, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.experts()[1] = other.experts()[1]; }),
            "SoftMoELayer.experts.1: the tape is of another expert, expected this one's");
}

}  // namespace
}  // namespace moe::soft_moe_contract_test
