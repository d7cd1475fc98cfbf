// SPDX-License-Identifier: Apache-2.0
// README's numerical contract, as a packed layer keeps it in every storage: the names of the tests
// are its promises. What else a packed layer owes is in packed_layer_test.cpp.
#include <gtest/gtest.h>

#include "../support/alone_in_batch.hpp"
#include "../support/global_state.hpp"
#include "../support/layer_step.hpp"
#include "../support/storages.hpp"
#include "moe/layers/packed_layer.hpp"

namespace moe::packed_contract_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::same_bits;

template <class S>
class PackedContract : public ::testing::Test {
 public:
  static PackedLayer<S> packed_of(const MoEConfig& config, std::uint64_t seed) {
    return pack<S>(make_layer<Wide<S>>(config, seed));
  }
  static Matrix<Wide<S>> forward(const PackedLayer<S>& layer, const Matrix<Wide<S>>& x,
                                 const CallOptions& call = {}) {
    typename PackedLayer<S>::Scratch scratch;
    Matrix<Wide<S>> y = Matrix<Wide<S>>::Constant(x.rows(), layer.d_out(), Wide<S>(77));
    layer.forward(x, y, scratch, call);
    return y;
  }
};
TYPED_TEST_SUITE(PackedContract, testing::AllStorages);

/// Odd sizes, and all the parts a layer can have.
MoEConfig small_config() {
  return {.d_model = 39,
          .d_ff = 71,
          .num_experts = 5,
          .top_k = 2,
          .d_out = 17,
          .expert = {.bias = true},
          .router = {.logits = {.bias = true}},
          .shared = SharedExpertConfig{.d_ff = 29, .output_gate = true}};
}

MoEConfig wide_config() { return {.d_model = 192, .d_ff = 320, .num_experts = 6, .top_k = 2}; }

TYPED_TEST(PackedContract, TheOutputRowOfATokenDependsOnlyOnItsInputRowAndTheWeights) {
  using W = Wide<TypeParam>;
  for (const MoEConfig& config : {small_config(), wide_config()}) {
    const auto layer = this->packed_of(config, 1);
    const Matrix<W> x = random_matrix<W>(200, layer.d_in(), 2), y = this->forward(layer, x);
    const auto compare = [&](Index begin, Index rows) {
      const Matrix<W> part = this->forward(layer, x.middleRows(begin, rows));
      EXPECT_TRUE(same_bits(part, y.middleRows(begin, rows))) << begin << ", " << rows;
    };
    for (Index token = 0; token < 200; token += 13) {
      compare(token, 1);
    }
    for (const Index rows : {0, 2, 3, 5, 17, 64}) {
      compare(0, rows);
      compare(101, rows);
      compare(200 - rows, rows);
    }
    // At another place, between other rows.
    const Matrix<W> reversed = x.colwise().reverse();
    EXPECT_TRUE(same_bits(this->forward(layer, reversed), Matrix<W>(y.colwise().reverse())));
  }
}

TYPED_TEST(PackedContract, ATokenHasTheSameBitsAloneAndInALargeBatchForAnyThreadCount) {
  MoEConfig config = small_config();
  config.d_model = 11, config.d_ff = 13, config.shared->d_ff = 7;
  testing::expect_the_bits_of_a_large_batch_alone<Wide<TypeParam>>(this->packed_of(config, 24));
}

TYPED_TEST(PackedContract, NaNAndInfReachTheirOwnRowAndNeverMoveAnotherTokensRow) {
  using W = Wide<TypeParam>;
  for (const Score score : all_scores) {
    MoEConfig config = small_config();
    config.router.score = score;
    const auto layer = this->packed_of(config, 6);
    const Matrix<W> clean = random_matrix<W>(70, layer.d_in(), 7);
    const Matrix<W> y_clean = this->forward(layer, clean);
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      Matrix<W> x = clean;
      x(33, 34) = static_cast<W>(bad);
      const Matrix<W> y = this->forward(layer, x);
      EXPECT_TRUE(y.row(33).array().isNaN().all() || y.row(33).array().isInf().any());
      EXPECT_TRUE(same_bits(y.topRows(33), y_clean.topRows(33)));
      EXPECT_TRUE(same_bits(y.bottomRows(36), y_clean.bottomRows(36)));
    }
  }
}

TYPED_TEST(PackedContract, NaNAndInfInTheWeightsOfAnExpertReachTheTokensRoutedThereAndNoOther) {
  using W = Wide<TypeParam>;
  using Tensor = Matrix<W> ExpertParams<W>::*;
  const MoELayer<W> clean = make_layer<W>(small_config(), 8);
  const Matrix<W> x = random_matrix<W>(60, clean.d_in(), 9);
  const Matrix<W> y_clean = this->forward(pack<TypeParam>(clean), x);
  for (const Tensor tensor :
       {&ExpertParams<W>::gate, &ExpertParams<W>::up, &ExpertParams<W>::down}) {
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      MoELayer<W> layer = clean;
      (layer.experts()[2].params().*tensor)(3, 4) = static_cast<W>(bad);
      const auto packed = pack<TypeParam>(layer);
      typename PackedLayer<TypeParam>::Scratch scratch;
      Matrix<W> y(60, layer.d_out());
      packed.forward(x, y, scratch);
      Index routed = 0;
      for (Index t = 0; t < 60; ++t) {
        if ((scratch.routing.expert.row(t).array() == 2).any()) {
          EXPECT_FALSE(y.row(t).allFinite()) << t;
          ++routed;
        } else {
          EXPECT_TRUE(same_bits(y.row(t), y_clean.row(t)));
        }
      }
      EXPECT_GT(routed, 0);
      EXPECT_LT(routed, 60);
    }
  }
}

TYPED_TEST(PackedContract, MaskedMeansExactlyZeroAndNotComputed) {
  using W = Wide<TypeParam>;
  MoEConfig config = small_config();
  config.shared.reset();
  MoELayer<W> layer = make_layer<W>(config, 10);
  // Were expert 3 computed for anyone, or token 5 for any expert, there would be NaN.
  layer.experts()[3].params().down.setConstant(std::numeric_limits<W>::quiet_NaN());
  ExpertMask mask = ExpertMask::Ones(40, 5);
  mask.col(3).setZero();
  mask.row(5).setZero();
  const Matrix<W> x = random_matrix<W>(40, config.d_model, 11);
  const Matrix<W> y = this->forward(pack<TypeParam>(layer), x, {.expert_mask = &mask});
  EXPECT_TRUE(y.allFinite());
  EXPECT_TRUE(y.row(5).isZero(W(0)));
}

// Two experts get every token, the three others none.
TYPED_TEST(PackedContract, IdleExpertsAreNotComputed) {
  using W = Wide<TypeParam>;
  MoELayer<W> layer = make_layer<W>(small_config(), 12);
  layer.router().params().bias << W(0), W(50), W(0), W(50), W(0);
  const Matrix<W> x = random_matrix<W>(33, layer.d_in(), 13);
  const Matrix<W> y = this->forward(pack<TypeParam>(layer), x);
  for (const std::size_t idle : {0u, 2u, 4u}) {
    layer.experts()[idle].params().up.setConstant(std::numeric_limits<W>::quiet_NaN());
  }
  EXPECT_TRUE(y.allFinite());
  EXPECT_TRUE(same_bits(this->forward(pack<TypeParam>(layer), x), y));
}

TYPED_TEST(PackedContract, NoTokensAreNoRows) {
  using W = Wide<TypeParam>;
  const auto layer = this->packed_of(small_config(), 14);
  const Matrix<W> y = this->forward(layer, Matrix<W>(0, layer.d_in()));
  EXPECT_EQ(y.rows(), 0);
  typename PackedLayer<TypeParam>::Scratch scratch;
  Matrix<W> none(0, layer.d_out()), some(3, layer.d_out());
  const Matrix<W> x = random_matrix<W>(3, layer.d_in(), 15);
  layer.forward(x, some, scratch);
  layer.forward(Matrix<W>(0, layer.d_in()), none, scratch);
  const Matrix<W> before = some;
  layer.forward(x, some, scratch);
  EXPECT_TRUE(same_bits(some, before));
}

// Padding takes no place either: rows 2, 3 and 7 are NaN and leave the others as they are alone.
TYPED_TEST(PackedContract, PaddingGetsZeroAndReachesNoToken) {
  using W = Wide<TypeParam>;
  MoEConfig dropping = small_config();
  dropping.capacity.factor = 0.75;
  const std::vector<std::uint8_t> padding{0, 0, 1, 1, 0, 0, 0, 1, 0};
  for (const MoEConfig& config : {small_config(), dropping}) {
    const auto layer = this->packed_of(config, 16);
    Matrix<W> x = random_matrix<W>(9, layer.d_in(), 17), tokens(6, layer.d_in());
    for (Index row = 0, token = 0; row < 9; ++row) {
      if (padding[static_cast<std::size_t>(row)] == 0) {
        tokens.row(token++) = x.row(row);
      } else {
        x.row(row).setConstant(std::numeric_limits<W>::quiet_NaN());
      }
    }
    const Matrix<W> want = this->forward(layer, tokens);
    const Matrix<W> got = this->forward(layer, x, {.tokens = {.padding = padding}});
    for (Index row = 0, token = 0; row < 9; ++row) {
      if (padding[static_cast<std::size_t>(row)] == 0) {
        EXPECT_TRUE(same_bits(got.row(row), want.row(token++))) << row;
      } else {
        EXPECT_TRUE(got.row(row).isZero(W(0))) << row;
      }
    }
  }
}

// The first token keeps both of its experts, and whatever comes later may have none.
TYPED_TEST(PackedContract, WhatIsDroppedOverCapacityAddsExactlyZero) {
  using W = Wide<TypeParam>;
  MoEConfig config = small_config();
  config.shared.reset();
  const auto layer = this->packed_of(config, 18);
  const Matrix<W> x = random_matrix<W>(30, layer.d_in(), 19), all = this->forward(layer, x);
  typename PackedLayer<TypeParam>::Scratch scratch;
  Matrix<W> y(30, layer.d_out());
  layer.forward(x, y, scratch, {.capacity = Capacity{.rows = 3}});
  Index kept = 0, dropped = 0;
  for (Index t = 0; t < 30; ++t) {
    const bool first = scratch.kept[2 * t], second = scratch.kept[2 * t + 1];
    if (first && second) {
      EXPECT_TRUE(same_bits(y.row(t), all.row(t))) << t;
      ++kept;
    } else if (!first && !second) {
      EXPECT_TRUE(y.row(t).isZero(W(0))) << t;
      ++dropped;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(dropped, 0);
  EXPECT_TRUE(this->forward(layer, x, {.capacity = Capacity{.rows = 0}}).isZero(W(0)));
}

TYPED_TEST(PackedContract, TiesGoToTheLowestExpertIndex) {
  using W = Wide<TypeParam>;
  MoELayer<W> layer(wide_config(), 12);
  layer.router().params().weight.setZero();
  const Matrix<W> x = random_matrix<W>(9, 192, 13);
  Matrix<W> y(9, 192);
  typename PackedLayer<TypeParam>::Scratch scratch;
  pack<TypeParam>(layer).forward(x, y, scratch);
  EXPECT_TRUE((scratch.routing.expert.col(0).array() == 0).all());
  EXPECT_TRUE((scratch.routing.expert.col(1).array() == 1).all());
}

TYPED_TEST(PackedContract, ACallLeavesNoGlobalStateBehind) {
  const auto before = testing::global_state();
  const auto layer = this->packed_of(small_config(), 19);
  this->forward(layer, random_matrix<Wide<TypeParam>>(50, layer.d_in(), 20), {.num_threads = 3});
  EXPECT_EQ(testing::global_state(), before);
}

#ifdef _OPENMP
TYPED_TEST(PackedContract, ALayerMayBeCalledInsideTheUsersOwnParallelRegion) {
  using W = Wide<TypeParam>;
  const auto layer = this->packed_of(small_config(), 23);
  const Matrix<W> x = random_matrix<W>(80, layer.d_in(), 24), want = this->forward(layer, x);
  std::vector<Matrix<W>> outputs(6);
#pragma omp parallel for num_threads(3)
  for (std::size_t i = 0; i < 6; ++i) {
    outputs[i] = this->forward(layer, x, {.num_threads = 2});
  }
  for (const Matrix<W>& y : outputs) {
    EXPECT_TRUE(same_bits(y, want));
  }
}
#endif

}  // namespace
}  // namespace moe::packed_contract_test
