// SPDX-License-Identifier: Apache-2.0
// Mixture-of-Depths and the numerical contract: bits, padding, NaN, memory, and what is refused.
#include <gtest/gtest.h>

#include "support/depth_layers.hpp"

namespace moe::depth_contract_test {
namespace {

using namespace testing::depth;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::refusal_after;
using testing::same_bits;

template <class T>
class DepthContractOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(DepthContractOf, Scalars);

TYPED_TEST(DepthContractOf, HasTheSameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  const auto layer = make_depth<T>(make_ffn<T>(40), {.capacity = 0.4}, true);
  const auto x = random_matrix<T>(90, 40, 3);
  testing::expect_same_bits_for_any_threads(
      layer, 90, [&](const CallOptions& call) { return run_step(layer, x, call); },
      [&](const CallOptions& call) { return forward(layer, x, call); });
}

TEST(DepthContract, DoesNotSeePadding) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.5}, true);
  auto x = random_matrix<double>(N, D, 3);
  const CallOptions call{.tokens = {.sequence_offset = ragged, .padding = padding}};
  const auto want = run_step(layer, x, call);
  const Matrix<double> causal = forward(layer, x, call, true);
  for (Index t = 0; t < N; ++t) {
    if (call.tokens.is_padding(t)) {
      x.row(t).setConstant(std::nan(""));
      EXPECT_TRUE(want.y.row(t).isZero(0) && want.dx.row(t).isZero(0) && causal.row(t).isZero(0));
    }
  }
  const auto step = run_step(layer, x, call);
  EXPECT_TRUE(same_bits(step.y, want.y) && same_bits(step.dx, want.dx));
  EXPECT_TRUE(testing::same_grads(layer, step.grads, want.grads));
  EXPECT_TRUE(same_bits(forward(layer, x, call, true), causal));
}

TEST(DepthContract, PutsATokenWithANaNLastAndLeavesItNaN) {
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5});
  auto x = random_matrix<float>(N, D, 3);
  x(6, 1) = std::nanf("");
  for (const bool causal : {false, true}) {
    DepthLayer<float>::Scratch scratch;
    Matrix<float> y = forward(layer, x, {}, causal);
    EXPECT_TRUE(std::isnan(y(6, 1)));
    EXPECT_EQ(y.row(6).array().isNaN().all(), causal) << "alone it is taken, as its logit is NaN";
    y.row(6).setZero();
    EXPECT_TRUE(y.allFinite());
  }
  const auto all = make_depth<float>(make_ffn<float>(), {.capacity = 1.0});
  const Matrix<float> y = forward(all, x);
  EXPECT_TRUE(y.row(6).array().isNaN().all());
}

/// A token by itself, or the only one, with one that a mask keeps from the block.
void expect_nan_rows(const DepthLayer<double>& layer, const char* what) {
  const auto x = random_matrix<double>(N, D, 3);
  ExpertMask mask = ExpertMask::Ones(N, 1);
  mask(2, 0) = 0;
  const Matrix<double> y = forward(layer, x, {.expert_mask = &mask}, true);
  EXPECT_TRUE(same_bits(y.row(2), x.row(2))) << what;
  EXPECT_TRUE(y.topRows(2).array().isNaN().all() && y.bottomRows(N - 3).array().isNaN().all())
      << what;
}

TEST(DepthContract, TakesATokenAloneWhereNoNumberDecidesSoThatItsYIsNaN) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const double bad : {std::nan(""), inf, -inf}) {
    auto alone = make_depth<double>(make_ffn<double>(), {.capacity = 0.5});
    alone.router().params().gate_part().weight.setZero();
    alone.router().params().gate_part().bias.setConstant(bad);
    expect_nan_rows(alone, "router");
    auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.5}, true);
    layer.predictor()->params().gate_part().output.bias(0, 0) = bad;
    expect_nan_rows(layer, "predictor");
    layer.predictor()->params().gate_part().output.bias(0, 0) = 0.0;
    layer.predictor()->params().gate_part().hidden.bias(0, 0) = bad;
    expect_nan_rows(layer, "the predictor's hidden layer");
  }
}

TEST(DepthContract, TakesNothingOfABatchOfNothingOfPaddingOrOfMaskedTokens) {
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5}, true);
  const ExpertMask mask = ExpertMask::Zero(1, 1);
  const std::vector<std::uint8_t> marks(3, 1);
  const auto x = random_matrix<float>(3, D, 3);
  const auto none_at_all = run_step(layer, Matrix<float>(0, D));
  EXPECT_EQ(none_at_all.y.rows(), 0);
  const auto padded = run_step(layer, x, {.tokens = {.padding = marks}});
  EXPECT_TRUE(padded.y.isZero(0) && padded.dx.isZero(0));
  EXPECT_TRUE(testing::same_grads(layer, padded.grads, layer.zero_grads()));
  const auto masked = run_step(layer, x, {.expert_mask = &mask});
  EXPECT_TRUE(same_bits(masked.y, x) && same_bits(masked.dx, masked.dy));
  EXPECT_TRUE(testing::same_grads(layer, masked.grads, layer.zero_grads()));
}

TEST(DepthContract, MayWriteItsOutputOverItsInput) {
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5});
  const auto x = random_matrix<float>(N, D, 3);
  for (const Tokens& tokens : all_tokens()) {
    Matrix<float> y = x;
    DepthLayer<float>::Scratch scratch;
    layer.forward(y, y, scratch, {.tokens = tokens});
    EXPECT_TRUE(same_bits(y, forward(layer, x, {.tokens = tokens})));
  }
}

TEST(DepthContract, NamesItsParameters) {
  const auto layer = make_depth<float>(make_ffn<float>(), {}, true);
  std::vector<std::string> names;
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&) { names.push_back(name.text()); });
  const std::vector<std::string> want = {"router.weight",
                                         "router.bias",
                                         "block.gate",
                                         "block.up",
                                         "block.down",
                                         "predictor.hidden",
                                         "predictor.hidden_bias",
                                         "predictor.weight",
                                         "predictor.bias"};
  EXPECT_EQ(names, want);
}

#if MOE_COUNTS_ALLOCATIONS
template <class T>
void expect_no_allocation() {
  const auto layer = make_depth<T>(make_ffn<T>(), {.capacity = 0.5}, true);
  const auto x = random_matrix<T>(60, D, 3);
  Matrix<T> y = x, dx = x;
  const std::vector<std::int32_t> ids(60, 7);
  typename DepthLayer<T>::Scratch scratch;
  typename DepthLayer<T>::Tape tape;
  RoutingLoss<Wide<T>> loss;
  auto grads = layer.zero_grads();
  testing::expect_no_allocation([&](Index rows, std::span<const std::uint8_t> padded) {
    CallOptions call{.num_threads = 2};
    call.tokens = {.ids = std::span(ids).first(static_cast<std::size_t>(rows)),
                   .sequence_length = 3,
                   .padding = padded};
    layer.forward(x.topRows(rows), y.topRows(rows), scratch, call);
    layer.forward_causal(x.topRows(rows), y.topRows(rows), scratch, call);
    layer.forward(x.topRows(rows), y.topRows(rows), tape, call);
    selection_loss(tape.predicted, {}, loss);
    layer.backward(x.topRows(rows), x.topRows(rows), tape, dx.topRows(rows), grads, {},
                   loss.gradient);
  });
}

TEST(DepthContract, AllocatesNothingForBatchesNoLargerThanItHasSeen) {
  expect_no_allocation<float>();
  expect_no_allocation<bf16>();
}
#endif

TEST(DepthContract, RefusesWhatDoesNotFitAndNamesIt) {
  const auto layer = make_depth<float>(make_ffn<float>(), {}, true);
  const auto x = random_matrix<float>(N, D, 3);
  for (const CallOptions& call : {CallOptions{.top_k = 1}, CallOptions{.capacity = Capacity{}}}) {
    EXPECT_EQ(message_of([&] { forward(layer, x, call); }),
              "DepthLayer: the call sets experts, top_k or capacity, expected none: how many "
              "tokens are taken is TopTokensConfig's");
  }
  EXPECT_EQ(message_of([&] { forward(layer, random_matrix<float>(N, 4, 3)); }),
            "DepthLayer: x is (12, 4), expected (12, 5)");
  EXPECT_EQ(message_of([&] {
              DepthLayer<float>(layer.router(), DenseFfn<float>({D, 7, 4}, {}, 1));
            }),
            "DepthLayer: the block is 5 to 4 wide, expected one width: its output is added to its "
            "input");
  EXPECT_EQ(message_of([&] { DepthLayer<float>(layer.router(), make_ffn<float>(6)); }),
            "DepthLayer: the router is (1, 5), expected (1, 6)");
  EXPECT_EQ(message_of([] { TopTokens<float>({.capacity = 0.0}); }),
            "TopTokens: capacity = 0, expected in (0, 1]");
  EXPECT_EQ(message_of([] { TopTokens<float>({.threshold = HUGE_VAL}); }),
            "TopTokens: threshold = inf, expected finite");
}

TEST(DepthContract, RefusesATapeOfAnotherLayerAndGradientsThatOverlap) {
  const auto layer = make_depth<float>(make_ffn<float>(), {});
  const auto copy = layer;
  const auto x = random_matrix<float>(N, D, 3);
  Matrix<float> y = x, dx = x;
  DepthLayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { copy.backward(x, y, tape, dx, grads); }),
            "DepthLayer: the tape is of another layer, expected this one's");
  EXPECT_EQ(message_of([&] { layer.backward(dx, y, tape, dx, grads); }),
            "DepthLayer: dx overlaps x or dy, expected memory of its own");
}

TEST(DepthContract, RefusesATapeOfPartsThatWereReplacedBeforeAnythingIsWritten) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.5}, true);
  const auto other = layer;
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.router() = other.router(); }),
            "DepthLayer.router: the table is of another router, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.predictor() = *other.predictor(); }),
            "DepthLayer.predictor: the table is of another router, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.block() = other.block(); }),
            "DepthLayer.block: the tape is of another layer, expected this one's");
  const auto alone = make_depth<double>(make_ffn<double>(), {.capacity = 0.5});
  EXPECT_EQ(refusal_after(alone, [&](auto& l) { l.predictor() = *other.predictor(); }),
            "DepthLayer.predictor: the table is of another router, expected this one's");
}

TEST(DepthContract, RefusesATapeOfAPredictorThatWasRemovedAndTakesOneOfAForwardSince) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.5}, true);
  EXPECT_EQ(refusal_after(layer, [](auto& l) { l.predictor().reset(); }),
            "DepthLayer: the tape is of a predictor, expected none, as this layer has none");
}

/// A block that only infers.
struct Twice {
  struct Scratch {};
  Index d_in() const { return D; }
  Index d_out() const { return D; }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Scratch&) const { y = 2.0F * x; }
};

TEST(DepthContract, InfersWithABlockThatCannotTrain) {
  const auto layer = make_depth<float>(Twice(), {.capacity = 1.0});
  const auto x = random_matrix<float>(N, D, 3);
  DepthLayer<float, Twice>::Scratch scratch;
  Matrix<float> y(N, D);
  layer.forward(x, y, scratch);
  const auto factor = (1.0F + 2.0F * scratch.routing.logits.array()).matrix().replicate(1, D);
  EXPECT_TRUE(matrix_near(y, (x.array() * factor.array()).matrix(), 1e-6));
}

}  // namespace
}  // namespace moe::depth_contract_test
