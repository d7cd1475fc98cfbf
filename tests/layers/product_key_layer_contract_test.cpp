// SPDX-License-Identifier: Apache-2.0
// Product keys and the numerical contract: bits, padding, NaN, memory, and what is refused.
#include <gtest/gtest.h>

#include "support/product_key_layers.hpp"

namespace moe::product_key_layer_contract_test {
namespace {

using namespace testing::product_keys;
using testing::message_of;
using testing::random_matrix;
using testing::refusal_after;
using testing::same_bits;

template <class T>
class ProductKeyContractOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(ProductKeyContractOf, Scalars);

template <class T>
ProductKeyLayer<T> wide_layer(KeyReading reading) {
  return make_layer<T>({.d_model = 40,
                        .keys = {.num_keys = 9, .top_k = 8, .reading = reading},
                        .d_out = 600,
                        .shared_d_ff = 24});
}

TYPED_TEST(ProductKeyContractOf, HasTheSameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  for (const KeyReading reading : all_readings) {
    const auto layer = wide_layer<T>(reading);
    const auto x = random_matrix<T>(60, 40, 3);
    testing::expect_same_bits_for_any_threads(
        layer, 60, [&](const CallOptions& call) { return run_step(layer, x, call); },
        [&](const CallOptions& call) { return forward(layer, x, call); });
  }
}

TYPED_TEST(ProductKeyContractOf, GivesATokenTheSameBitsAloneAndAmongOthers) {
  using T = TypeParam;
  const auto layer = wide_layer<T>(KeyReading::per_token);
  const auto x = random_matrix<T>(N, 40, 3);
  const auto all = run_step(layer, x);
  for (Index t = 0; t < N; ++t) {
    const Matrix<T> alone = x.row(t);
    const auto step = run_step(layer, alone, {.num_threads = 3});
    EXPECT_TRUE(same_bits(step.y, all.y.row(t)) && same_bits(step.y, forward(layer, alone))) << t;
  }
}

TEST(ProductKeyContract, DoesNotSeePadding) {
  for (const KeyReading reading : all_readings) {
    const auto layer = make_layer<double>(small_config(reading));
    auto x = random_matrix<double>(N, layer.d_in(), 3);
    const CallOptions call{.tokens = {.padding = padding}};
    const auto want = run_step(layer, x, call);
    Matrix<double> tokens(0, layer.d_in()), y(0, layer.d_out());
    for (Index t = 0; t < N; ++t) {
      if (call.tokens.is_padding(t)) {
        x.row(t).setConstant(std::nan(""));
        EXPECT_TRUE(want.y.row(t).isZero(0) && want.dx.row(t).isZero(0));
      } else {
        tokens.conservativeResize(tokens.rows() + 1, Eigen::NoChange);
        y.conservativeResize(y.rows() + 1, Eigen::NoChange);
        tokens.bottomRows(1) = x.row(t);
        y.bottomRows(1) = want.y.row(t);
      }
    }
    const auto step = run_step(layer, x, call);
    EXPECT_TRUE(same_bits(step.y, want.y) && same_bits(step.dx, want.dx));
    EXPECT_TRUE(testing::same_grads(layer, step.grads, want.grads));
    EXPECT_TRUE(same_bits(forward(layer, tokens), y)) << "as if it had been left out";
  }
}

TEST(ProductKeyContract, KeepsANaNInTheRowOfItsToken) {
  const auto layer = make_layer<float>(small_config());
  auto x = random_matrix<float>(N, layer.d_in(), 3);
  const Matrix<float> want = forward(layer, x);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    x(6, 1) = bad;
    const Matrix<float> y = forward(layer, x);
    EXPECT_FALSE(y.row(6).array().isFinite().any()) << bad;
    EXPECT_TRUE(same_bits(y.topRows(6), want.topRows(6)));
    EXPECT_TRUE(same_bits(y.bottomRows(N - 7), want.bottomRows(N - 7)));
  }
}

TEST(ProductKeyContract, HasNoRowsOfABatchOfNothingOrOfPadding) {
  for (const KeyReading reading : all_readings) {
    const auto layer = make_layer<float>(small_config(reading));
    for (const Index rows : {0, 3}) {
      const std::vector<std::uint8_t> marks(static_cast<std::size_t>(rows), 1);
      const auto step = run_step(layer, random_matrix<float>(rows, layer.d_in(), 3),
                                 {.tokens = {.padding = marks}});
      EXPECT_TRUE(step.y.isZero(0) && step.dx.isZero(0));
      EXPECT_TRUE(testing::same_grads(layer, step.grads, layer.zero_grads()));
    }
  }
}

TEST(ProductKeyContract, GivesAnExpertWithoutTokensAGradientOfExactlyZero) {
  const auto layer = make_layer<double>(small_config());
  const auto x = random_matrix<double>(1, layer.d_in(), 3);
  const auto step = run_step(layer, x);
  EXPECT_EQ((step.grads.experts.down.rowwise().squaredNorm().array() > 0.0).count(), 3);
  EXPECT_EQ((step.grads.experts.up.rowwise().squaredNorm().array() > 0.0).count(), 3);
}

TEST(ProductKeyContract, MayWriteItsOutputOverItsInput) {
  ProductKeyLayerConfig config = small_config();
  config.d_out.reset();
  const auto layer = make_layer<float>(config);
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  for (const Tokens& tokens : all_tokens()) {
    const Matrix<float> want = forward(layer, x, {.tokens = tokens});
    Matrix<float> y = x;
    ProductKeyScratch<float> scratch;
    layer.forward(y, y, scratch, {.tokens = tokens});
    EXPECT_TRUE(same_bits(y, want));
  }
}

TEST(ProductKeyContract, NamesItsParameters) {
  const auto layer = make_layer<float>(small_config());
  std::vector<std::string> names;
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&) { names.push_back(name.text()); });
  EXPECT_EQ(names, (std::vector<std::string>{"router.weight", "experts.down", "experts.up",
                                             "shared.gate", "shared.up", "shared.down"}));
}

#if MOE_COUNTS_ALLOCATIONS
template <class T>
void expect_no_allocation(KeyReading reading) {
  const auto layer = make_layer<T>(small_config(reading));
  const auto x = random_matrix<T>(60, layer.d_in(), 3);
  const auto dy = random_matrix<T>(60, layer.d_out(), 4);
  Matrix<T> y = dy, dx = x;
  ProductKeyScratch<T> scratch;
  ProductKeyTape<T> tape;
  auto grads = layer.zero_grads();
  testing::expect_no_allocation([&](Index rows, std::span<const std::uint8_t> padded) {
    const CallOptions call{.num_threads = 2, .tokens = {.padding = padded}};
    layer.forward(x.topRows(rows), y.topRows(rows), scratch, call);
    layer.forward(x.topRows(rows), y.topRows(rows), tape, call);
    layer.backward(x.topRows(rows), dy.topRows(rows), tape, dx.topRows(rows), grads);
  });
}

TEST(ProductKeyContract, AllocatesNothingForBatchesNoLargerThanItHasSeen) {
  for (const KeyReading reading : all_readings) {
    expect_no_allocation<float>(reading);
    expect_no_allocation<bf16>(reading);
  }
}
#endif

TEST(ProductKeyContract, RefusesWhatItHasNotAndNamesIt) {
  const auto layer = make_layer<float>(small_config());
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  const ExpertMask mask = ExpertMask::Ones(1, 16);
  for (const CallOptions& call : {CallOptions{.expert_mask = &mask}, CallOptions{.top_k = 1}}) {
    EXPECT_EQ(message_of([&] { forward(layer, x, call); }),
              "ProductKeyRouter: the call sets expert_mask, experts or top_k, expected none");
  }
  for (const CallOptions& call :
       {CallOptions{.capacity = Capacity{}}, CallOptions{.expert_dropout = 0.5}}) {
    EXPECT_EQ(message_of([&] { forward(layer, x, call); }),
              "ProductKeyLayer: the call sets capacity or expert_dropout, expected neither");
  }
  EXPECT_EQ(message_of([&] { forward(layer, random_matrix<float>(N, 4, 3)); }),
            "ProductKeyLayer: x is (12, 4), expected (12, 5)");
  const auto made = [](const auto& change) {
    ProductKeyLayerConfig config = small_config();
    change(config);
    return message_of([&] { ProductKeyLayer<float>(config, 1); });
  };
  EXPECT_EQ(made([](auto& c) { c.keys.num_keys = 0; }),
            "ProductKeyConfig: num_keys = 0, expected in [1, 46340]");
  EXPECT_EQ(made([](auto& c) { c.keys.top_k = 17; }),
            "ProductKeyConfig: top_k = 17, expected in [1, num_keys^2 = 16]");
  EXPECT_EQ(made([](auto& c) { c.d_model = 0; }),
            "ProductKeyLayerConfig: d_model = 0, expected above 0");
  EXPECT_EQ(made([](auto& c) { c.shared_d_ff = 0; }),
            "ProductKeyLayerConfig: shared_d_ff = 0, expected above 0");
  EXPECT_EQ(message_of([&] {
              const RankOneExperts<float> nine({5, 9, 4}, {}, 1);
              ProductKeyLayer<float>(layer.router(), nine);
            }),
            "ProductKeyLayer: the router has 16 experts, expected 9");
}

TEST(ProductKeyContract, RefusesToRunOnceItWasMovedFrom) {
  const auto x = random_matrix<float>(N, small_config().d_model, 3);
  auto layer = make_layer<float>(small_config());
  const Matrix<float> want = forward(layer, x);
  const auto moved = std::move(layer);
  EXPECT_TRUE(same_bits(forward(moved, x), want));
  EXPECT_EQ(message_of([&] { forward(layer, x); }),
            "ProductKeyLayer: the shared expert is 0 to 0 wide, expected 5 to 4");
  layer = moved;
  EXPECT_TRUE(same_bits(forward(layer, x), want));
  layer.shared().reset();
  const auto without = std::move(layer);
  EXPECT_EQ(message_of([&] { forward(layer, x); }),
            "parameter router.weight is (0, 0), expected (8, 5)");
}

TEST(ProductKeyContract, RefusesATapeOfAnotherLayerOrOfPartsThatWereReplaced) {
  const auto layer = make_layer<double>(small_config()), other = make_layer<double>(small_config());
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l = other; }),
            "ProductKeyLayer: the tape is of another layer, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.router() = other.router(); }),
            "ProductKeyLayer.router: the table is of another router, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.experts() = other.experts(); }),
            "ProductKeyLayer.experts: the tape is of another set of experts, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.shared().reset(); }),
            "ProductKeyLayer: the tape is of another shared expert, expected this layer's");
}

}  // namespace
}  // namespace moe::product_key_layer_contract_test
