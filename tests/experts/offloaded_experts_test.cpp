// SPDX-License-Identifier: Apache-2.0
// A set of experts in a store: the bits of the resident set, in whatever order they arrive.
#include "moe/experts/offloaded_experts.hpp"

#include <gtest/gtest.h>

#include "moe/layers/packed_layer.hpp"
#include "support/shelf.hpp"
#include "support/storages.hpp"
#include "support/throws.hpp"

namespace moe::offloaded_experts_test {
namespace {

using testing::Extents;
using testing::make_layer;
using testing::offloaded_config;
using testing::random_matrix;
using testing::same_bits;

/// A store whose experts are all there, and arrive from the last to the first, so many at once.
template <class S>
class Shelf final : public ExpertStore {
 public:
  Shelf(const PackedExperts<S>& experts, std::size_t at_once, int failing_wait)
      : extents_(experts),
        num_experts_(experts.num_experts()),
        at_once_(at_once),
        failing_wait_(failing_wait) {}

  Index num_experts() const override { return num_experts_; }
  Index num_slots() const override { return num_experts_; }
  const std::byte* slot(Index number) const override {
    return extents_.memory.get() + extents_.offset(number);
  }
  void begin(std::span<const ExpertId> wanted) override {
    EXPECT_FALSE(in_call_);
    in_call_ = true;
    wanted_.assign(wanted.begin(), wanted.end());
  }
  void wait(std::vector<ExpertArrival>& arrived) override {
    if (failing_wait_-- == 0) {
      throw std::runtime_error("the disk is gone");
    }
    arrived.clear();
    for (std::size_t i = 0; i < at_once_ && !wanted_.empty(); ++i) {
      arrived.push_back({wanted_.back(), Index{wanted_.back()}});
      wanted_.pop_back();
    }
  }
  void release(std::span<const ExpertArrival>) override {}
  void end() noexcept override { in_call_ = false; }
  void prefetch(std::span<const ExpertId>) override {}
  StoreCounts counts() const override { return {}; }

 private:
  Extents<S> extents_;
  Index num_experts_;
  std::size_t at_once_;
  int failing_wait_;
  bool in_call_ = false;
  std::vector<ExpertId> wanted_;
};

template <class S>
OffloadedExperts<S> on_shelf(const PackedExperts<S>& experts, std::size_t at_once,
                             int failing_wait = -1) {
  return {ExpertExtent<S>::of(experts.expert(0)),
          std::make_unique<Shelf<S>>(experts, at_once, failing_wait)};
}

template <class S>
class OffloadedExpertsOf : public ::testing::Test {};
TYPED_TEST_SUITE(OffloadedExpertsOf, testing::FileStorages);

static_assert(FileStorage<q8> && FileStorage<q4> && FileStorage<q4_k> && FileStorage<mxfp4> &&
              FileStorage<fp8>);
static_assert(!FileStorage<float> && !FileStorage<bf16>);
static_assert(ExpertSet<OffloadedExperts<q4>, float>);

TYPED_TEST(OffloadedExpertsOf, HaveTheBitsOfResidentOnesInAnyOrderOfArrival) {
  const auto packed = pack<TypeParam>(make_layer<float>(offloaded_config(), 7));
  const Matrix<float> x = random_matrix<float>(40, packed.d_in(), 3);
  std::vector<std::uint8_t> padding(40);
  padding[3] = padding[39] = 1;
  Matrix<float> want(40, packed.d_out());
  typename PackedLayer<TypeParam>::Scratch scratch;
  packed.forward(x, want, scratch, {.tokens = {.padding = padding}});
  for (const std::size_t at_once : {1U, 2U, 7U}) {
    const auto layer = offload(packed, on_shelf(packed.experts(), at_once));
    typename std::remove_cvref_t<decltype(layer)>::Scratch own;
    for (const int threads : {1, 3}) {
      Matrix<float> y = Matrix<float>::Constant(40, packed.d_out(), std::nanf(""));
      detail::with_team(threads, [&] {
        layer.forward(x, y, own, {.num_threads = threads, .tokens = {.padding = padding}});
      });
      EXPECT_TRUE(same_bits(y, want)) << at_once << " at once, " << threads << " threads";
    }
  }
}

TYPED_TEST(OffloadedExpertsOf, TakeWeightsOnInputAndHiddenRows) {
  for (const WeightOn place : {WeightOn::input, WeightOn::hidden}) {
    MoEConfig config = offloaded_config();
    config.weight_on = place;
    config.expert.gated = false;
    config.expert.limit.reset();
    const auto packed = pack<TypeParam>(make_layer<float>(config, 7));
    const auto layer = offload(packed, on_shelf(packed.experts(), 2));
    const Matrix<float> x = random_matrix<float>(9, packed.d_in(), 3);
    Matrix<float> want(9, packed.d_out()), y = want;
    typename PackedLayer<TypeParam>::Scratch scratch;
    typename std::remove_cvref_t<decltype(layer)>::Scratch own;
    packed.forward(x, want, scratch);
    layer.forward(x, y, own);
    EXPECT_TRUE(same_bits(y, want));
  }
}

TEST(OffloadedExperts, LeaveYAsItWasWhereAnExpertCannotBeRead) {
  const auto packed = pack<q8>(make_layer<float>(offloaded_config(), 7));
  const Matrix<float> x = random_matrix<float>(40, packed.d_in(), 3);
  Matrix<float> want(40, packed.d_out());
  PackedLayer<q8>::Scratch scratch;
  packed.forward(x, want, scratch);
  for (int failing = 0; failing < 7; ++failing) {
    const auto layer = offload(packed, on_shelf(packed.experts(), 1, failing));
    std::remove_cvref_t<decltype(layer)>::Scratch own;
    const Matrix<float> before = Matrix<float>::Constant(40, packed.d_out(), 5.0F);
    Matrix<float> y = before;
    EXPECT_THROW(layer.forward(x, y, own, {.num_threads = 2}), std::runtime_error) << failing;
    EXPECT_TRUE(same_bits(y, before)) << failing;
    layer.forward(x, y, own, {.num_threads = 2});
    EXPECT_TRUE(same_bits(y, want)) << failing;
  }
}

TEST(OffloadedExperts, AreAsManyAndAsWideAsTheyWere) {
  const auto packed = pack<q4>(make_layer<float>(offloaded_config(), 7));
  const auto experts = on_shelf(packed.experts(), 1);
  EXPECT_EQ(experts.num_experts(), 7);
  EXPECT_EQ(experts.d_in(), 37);
  EXPECT_EQ(experts.d_out(), packed.d_out());
  EXPECT_EQ(experts.multiply_adds(3), packed.experts().multiply_adds(3));
  EXPECT_EQ(experts.bytes() % 4096, 0U);
  EXPECT_GE(experts.bytes(), packed.experts().bytes());
}

TEST(OffloadedExperts, OfAnotherNumberWidthOrConfigAreNotALayers) {
  const auto packed = pack<q8>(make_layer<float>(offloaded_config(), 7));
  const MoEConfig own = offloaded_config();
  MoEConfig more = own, broader = own, broader_out = own, wider = own, other = own;
  ++more.num_experts;
  broader.d_model += 32;
  broader.d_out = packed.d_out();
  broader_out.d_out = packed.d_out() + 32;
  wider.d_ff += 32;
  other.expert.activation = Activation::relu;
  const auto offloaded_as = [&](const MoEConfig& config) {
    const auto experts = pack<q8>(make_layer<float>(config, 7));
    return testing::message_of([&] { offload(packed, on_shelf(experts.experts(), 1)); });
  };
  const auto refusal = [](const char* what, Index found, Index expected) {
    return "offload: " + std::string(what) + std::to_string(found) + ", expected the layer's, " +
           std::to_string(expected);
  };
  EXPECT_EQ(offloaded_as(more),
            refusal("the number of experts = ", more.num_experts, own.num_experts));
  const auto refused_width = [&](Index d_in, Index d_out) {
    return detail::joined("offload: the experts are ", d_in, " to ", d_out,
                          " wide, expected as the layer's, ", packed.d_in(), " to ",
                          packed.d_out());
  };
  EXPECT_EQ(offloaded_as(broader), refused_width(packed.d_in() + 32, packed.d_out()));
  EXPECT_EQ(offloaded_as(broader_out), refused_width(packed.d_in(), packed.d_out() + 32));
  EXPECT_EQ(offloaded_as(wider), refusal("d_ff of the experts = ", wider.d_ff, own.d_ff));
  EXPECT_EQ(offloaded_as(other),
            "offload: the experts have another ExpertConfig than the layer's, expected the same");
}

TEST(OffloadedExperts, RefuseHintsForExpertsThatThereAreNot) {
  const auto packed = pack<q4>(make_layer<float>(offloaded_config(), 7));
  const auto experts = on_shelf(packed.experts(), 1);
  const std::vector<ExpertId> good{0, none, 6}, high{7}, low{-2};
  experts.prefetch(good);
  EXPECT_EQ(testing::message_of([&] { experts.prefetch(high); }),
            "prefetch: expert 7, expected in [-1, num_experts = 7)");
  EXPECT_EQ(testing::message_of([&] { experts.prefetch(low); }),
            "prefetch: expert -2, expected in [-1, num_experts = 7)");
}

}  // namespace
}  // namespace moe::offloaded_experts_test
