// SPDX-License-Identifier: Apache-2.0
// The packed inference form: the bits of the layer it was made of, and the contract of its own.
#include "moe/layers/packed_layer.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "../support/count_allocations.hpp"
#include "../support/guarded.hpp"
#include "../support/layer_step.hpp"
#include "../support/storages.hpp"
#include "../support/throws.hpp"
#include "moe/reference.hpp"

namespace moe::packed_layer_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::same_bits;

/// Awkward sizes, and every part that a packed layer treats by itself.
std::vector<MoEConfig> configs() {
  const MoEConfig plain{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 2};
  MoEConfig biased = plain, selecting = plain, ungated = plain, shared = plain, on_input = plain,
            dropping = plain;
  biased.expert.bias = true;
  selecting.router = {.score = Score::sigmoid, .selection = {.bias = true}};
  ungated.expert = {.activation = Activation::gelu_erf, .gated = false, .bias = true};
  ungated.d_out = 67;
  shared.shared = SharedExpertConfig{.d_ff = 71, .output_gate = true};
  on_input.weight_on = WeightOn::input;
  on_input.shared = SharedExpertConfig{.d_ff = 13};
  dropping.capacity.factor = 0.6;
  std::vector<MoEConfig> all{plain, biased, ungated, shared, on_input, dropping, selecting};
  for (const ExpertConfig& pair :
       {ExpertConfig{.limit = 0.5}, ExpertConfig{.limit = 0.4, .clamp = Clamp::after},
        ExpertConfig{
            .activation = Activation::gelu_quick, .bias = true, .limit = 0.7, .up_offset = 1.0},
        ExpertConfig{.activation = Activation::situ, .gate_bound = 0.5, .up_bound = 0.7}}) {
    MoEConfig paired = plain;
    paired.expert = pair;
    paired.shared =
        SharedExpertConfig{.d_ff = 13, .limit = pair.limit ? std::optional(0.3) : std::nullopt};
    all.push_back(paired);
  }
  MoEConfig scaled = shared;
  scaled.routed_scale = 2.5;
  scaled.shared->scale = 0.5;
  all.push_back(scaled);
  MoEConfig on_hidden = biased;
  on_hidden.weight_on = WeightOn::hidden;
  all.push_back(on_hidden);
  MoEConfig always = plain;
  always.router.selection = {.bias = true, .always = 1};
  always.weight_on = WeightOn::hidden;
  all.push_back(always);
  MoEConfig latent = plain;
  latent.latent = LatentConfig{.width = 29, .norm = true};
  latent.shared = SharedExpertConfig{.d_ff = 13};
  all.push_back(latent);
  return all;
}

template <class S>
class PackedLayerOf : public ::testing::Test {};
TYPED_TEST_SUITE(PackedLayerOf, testing::AllStorages);

template <class S>
class ExactPackedLayerOf : public ::testing::Test {};
using ExactStorages = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ExactPackedLayerOf, ExactStorages);

TYPED_TEST(ExactPackedLayerOf, HasEveryTensorOfTheRouter) {
  using T = TypeParam;
  MoEConfig config{.d_model = 7, .d_ff = 5, .num_experts = 5, .top_k = 2};
  config.router = {.logits = {.bias = true, .noisy = true},
                   .selection = {.bias = true},
                   .weight = {.expert_scale = ExpertScale::learned}};
  const MoELayer<T> layer = make_layer<T>(config, 7), again = unpack<T>(pack<T>(layer));
  RouterParams<T>::for_each(
      [](std::string_view name, const Matrix<T>& packed, const Matrix<T>& tensor) {
        EXPECT_GT(tensor.size(), 0) << name;
        EXPECT_TRUE(same_bits(packed, tensor)) << name;
      },
      again.router().params(), layer.router().params());
}

TYPED_TEST(ExactPackedLayerOf, GivesTheBitsOfItsLayer) {
  using T = TypeParam;
  for (const MoEConfig& config : configs()) {
    const MoELayer<T> layer = make_layer<T>(config, 7);
    const PackedLayer<T> packed = pack<T>(layer);
    typename MoELayer<T>::Scratch scratch;
    typename PackedLayer<T>::Scratch packed_scratch;
    for (const Index tokens : {0, 1, 3, 50, 500}) {
      const Matrix<T> x = random_matrix<T>(tokens, config.d_model, 3);
      Matrix<T> want(tokens, layer.d_out()), got(tokens, layer.d_out());
      layer.forward(x, want, scratch);
      packed.forward(x, got, packed_scratch);
      EXPECT_TRUE(same_bits(got, want)) << tokens << " tokens";
    }
  }
}

TYPED_TEST(ExactPackedLayerOf, TakesExpertsOfDifferentWidths) {
  using T = TypeParam;
  std::vector<Expert<T>> experts;
  for (const Index d_ff : {10, 150, 33}) {
    experts.push_back(Expert<T>({20, d_ff, 20}, ExpertConfig{}, 5));
  }
  const MoELayer<T> layer(Router<T>(20, 3, 2, {}, 6), experts);
  const Matrix<T> x = random_matrix<T>(90, 20, 3);
  Matrix<T> want(90, 20), got(90, 20);
  typename MoELayer<T>::Scratch scratch;
  typename PackedLayer<T>::Scratch packed_scratch;
  layer.forward(x, want, scratch);
  pack<T>(layer).forward(x, got, packed_scratch);
  EXPECT_TRUE(same_bits(got, want));
}

TYPED_TEST(ExactPackedLayerOf, UnpacksToTheSameWeights) {
  using T = TypeParam;
  for (const MoEConfig& config : configs()) {
    MoELayer<T> layer = make_layer<T>(config, 7);
    MoELayer<T> again = unpack<T>(pack<T>(layer));
    std::vector<Matrix<T>> want;
    layer.for_each_parameter([&](const std::string&, auto& w) { want.push_back(w); });
    std::size_t i = 0;
    again.for_each_parameter(
        [&](const std::string& name, auto& w) { EXPECT_TRUE(same_bits(w, want.at(i++))) << name; });
    EXPECT_EQ(i, want.size());
  }
}

/// Of a panel: its columns, the k of a step of it, and the bytes of such a step.
template <class S>
struct PanelStep {
  using Tile = kernels::RegisterTile<S>;
  static constexpr Index cols = Tile::cols, step = Tile::step, bytes = cols * step * sizeof(S);
};
template <class S>
requires(!Real<S> &&
         kernels::numbers_in < typename PackedMatrix<S>::Input >> 1) struct PanelStep<S> {
  using Block = typename PackedMatrix<S>::Weight;
  static constexpr Index cols = Block::cols, step = Block::depth, bytes = sizeof(Block);
};

template <>
struct PanelStep<fp8> {
  using Block = kernels::E4m3Block;
  static constexpr Index cols = Block::cols, step = Block::depth, bytes = sizeof(Block);
};

TYPED_TEST(PackedLayerOf, TakesTheBytesOfItsPanels) {
  using S = TypeParam;
  constexpr Index cols = PanelStep<S>::cols, step = PanelStep<S>::step;
  const auto bytes_of = [](const MoEConfig& config) {
    return static_cast<Index>(packed_bytes<S>(pack<S>(make_layer<Wide<S>>(config, 7))));
  };
  const auto bytes = [](Index weights) { return weights / (cols * step) * PanelStep<S>::bytes; };
  // Three experts whose gate, up and down fill their panels take no more than the weights.
  const Index d_ff = std::max(cols, step);
  const MoEConfig full{.d_model = 2 * d_ff, .d_ff = d_ff, .num_experts = 3, .top_k = 1};
  EXPECT_EQ(bytes_of(full), bytes(3 * 3 * (2 * d_ff * d_ff)));
  // A weight of one element takes a step of one panel, and gate and up share theirs.
  MoEConfig least{.d_model = 1, .d_ff = 1, .num_experts = 3, .top_k = 1};
  EXPECT_EQ(bytes_of(least), bytes(3 * 2 * (step * cols)));
  // A shared expert: gate and up begin a third panel of two weights, down has a step more.
  least.shared = SharedExpertConfig{.d_ff = cols + 1};
  const Index down = (cols + 1 + step - 1) / step * step;
  EXPECT_EQ(bytes_of(least), bytes((3 * 2 * step + 3 * step + down) * cols));
}

TEST(PackedLayer, RoundsWeightsAndRowsToBfloat16OnceEach) {
  for (const MoEConfig& config : configs()) {
    const PackedLayer<bf16> packed = pack<bf16>(make_layer<float>(config, 7));
    // The unpacked layer has the rounded weights, so only the hidden row's rounding is left: 2^-9
    // of each of its elements, whose signs are random.
    const MoELayer<float> rounded = unpack<bf16>(packed);
    const Matrix<float> x =
        random_matrix<float>(40, config.d_model, 3).template cast<bf16>().template cast<float>();
    Matrix<float> got(40, packed.d_out());
    PackedLayer<bf16>::Scratch scratch;
    packed.forward(x, got, scratch);
    EXPECT_TRUE(testing::matrix_near(got, reference::forward(rounded, x), 1.0 / 256));
  }
}

TYPED_TEST(PackedLayerOf, RowHasTheSameBitsAloneAndInABatch) {
  using W = Wide<TypeParam>;
  const MoEConfig config{.d_model = 129, .d_ff = 200, .num_experts = 6, .top_k = 3};
  const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(config, 7));
  const Matrix<W> x = random_matrix<W>(700, config.d_model, 3);
  Matrix<W> all(700, config.d_model), one(1, config.d_model);
  typename PackedLayer<TypeParam>::Scratch scratch;
  packed.forward(x, all, scratch);
  for (const Index token : {0, 1, 191, 350, 699}) {
    packed.forward(x.row(token), one, scratch);
    EXPECT_TRUE(same_bits(one, Matrix<W>(all.row(token)))) << token;
  }
}

TYPED_TEST(PackedLayerOf, BitsDoNotDependOnWhereTheRowsOfAnExpertAreCutIntoParts) {
  using W = Wide<TypeParam>;
  const Index tokens = 1029, border = tokens / 2;
  const PackedLayer<TypeParam> packed =
      pack<TypeParam>(make_layer<W>({.d_model = 11, .d_ff = 13, .num_experts = 2, .top_k = 2}, 7));
  const Matrix<W> x = random_matrix<W>(tokens, packed.d_in(), 3);
  Matrix<W> all(tokens, packed.d_out()), again = all, part(9, packed.d_out());
  typename PackedLayer<TypeParam>::Scratch scratch;
  packed.forward(x, all, scratch, {.num_threads = 1});
  ASSERT_EQ(scratch.experts.parts().size(), 10u) << "of at most 256 rows";
  detail::with_team(3, [&] { packed.forward(x, again, scratch, {.num_threads = 3}); });
  EXPECT_TRUE(same_bits(again, all));
  for (const Index begin : {Index(0), border - 3, border, tokens - 9}) {
    packed.forward(x.middleRows(begin, 9), part, scratch);
    EXPECT_TRUE(same_bits(part, Matrix<W>(all.middleRows(begin, 9)))) << begin;
  }
}

TYPED_TEST(PackedLayerOf, BitsDoNotDependOnTheNumberOfThreads) {
  using W = Wide<TypeParam>;
  const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(configs()[3], 7));
  const Matrix<W> x = random_matrix<W>(300, packed.d_in(), 3);
  Matrix<W> want(300, packed.d_out()), got(300, packed.d_out());
  typename PackedLayer<TypeParam>::Scratch scratch;
  packed.forward(x, want, scratch, {.num_threads = 1});
  for (const int threads : {2, 3, 8}) {
    detail::with_team(threads, [&] { packed.forward(x, got, scratch, {.num_threads = threads}); });
    EXPECT_TRUE(same_bits(got, want)) << threads << " threads";
  }
}

TYPED_TEST(PackedLayerOf, WritesOverItsInputWithTheSameBits) {
  using W = Wide<TypeParam>;
  const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(configs()[3], 7));
  Matrix<W> x = random_matrix<W>(30, packed.d_in(), 3), y(30, packed.d_out());
  typename PackedLayer<TypeParam>::Scratch scratch;
  packed.forward(x, y, scratch);
  packed.forward(x, x, scratch);
  EXPECT_TRUE(same_bits(x, y));
}

TYPED_TEST(PackedLayerOf, TouchesNoMemoryOutsideItsInputAndOutput) {
  using W = Wide<TypeParam>;
  for (const MoEConfig& config : configs()) {
    const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(config, 7));
    for (const Index rows : {1, 7, 30}) {
      const Matrix<W> x = random_matrix<W>(rows, packed.d_in(), 3);
      Matrix<W> want(rows, packed.d_out());
      typename PackedLayer<TypeParam>::Scratch scratch;
      packed.forward(x, want, scratch);
      for (const testing::Flush flush : {testing::Flush::front, testing::Flush::back}) {
        testing::Guarded<W> guarded_x(x, flush), y(Matrix<W>::Zero(rows, packed.d_out()), flush);
        packed.forward(guarded_x.map(), y.map(), scratch);
        EXPECT_TRUE(same_bits(y.map(), want)) << rows << " rows";
      }
    }
  }
}

TYPED_TEST(PackedLayerOf, NanReachesItsOwnRowAndMovesNoOther) {
  using W = Wide<TypeParam>;
  const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(configs()[1], 7));
  Matrix<W> x = random_matrix<W>(20, packed.d_in(), 3);
  Matrix<W> want(20, packed.d_out()), got(20, packed.d_out());
  typename PackedLayer<TypeParam>::Scratch scratch;
  packed.forward(x, want, scratch);
  x(4, 2) = std::numeric_limits<W>::quiet_NaN();
  packed.forward(x, got, scratch);
  EXPECT_TRUE(got.row(4).array().isNaN().all());
  got.row(4) = want.row(4);
  EXPECT_TRUE(same_bits(got, want));
}

TYPED_TEST(PackedLayerOf, IsSharedByThreadsWithTheirOwnScratch) {
  using W = Wide<TypeParam>;
  const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(configs()[0], 7));
  const Matrix<W> x = random_matrix<W>(60, packed.d_in(), 3);
  std::vector<Matrix<W>> y(4, Matrix<W>(60, packed.d_out()));
  std::vector<std::thread> threads;
  for (Matrix<W>& mine : y) {
    threads.emplace_back([&] {
      typename PackedLayer<TypeParam>::Scratch scratch;
      packed.forward(x, mine, scratch, {.num_threads = 1});
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Matrix<W>& other : y) {
    EXPECT_TRUE(same_bits(other, y.front()));
  }
}

TEST(PackedLayer, KeepsNanWeightsAndRoundsHalvesToEven) {
  MoELayer<float> layer = make_layer<float>(configs()[0], 7);
  Matrix<float>& up = layer.experts()[0].params().up;
  up(0, 0) = std::numeric_limits<float>::quiet_NaN();
  up(0, 1) = 1.0f + 1.0f / 256;  // half way between 1 and 1 + 2^-7: to the even 1
  up(0, 2) = 1.0f + 3.0f / 256;  // to the even 1 + 2^-6
  const MoELayer<float> rounded = unpack<bf16>(pack<bf16>(layer));
  EXPECT_TRUE(std::isnan(rounded.experts()[0].params().up(0, 0)));
  EXPECT_EQ(rounded.experts()[0].params().up(0, 1), 1.0f);
  EXPECT_EQ(rounded.experts()[0].params().up(0, 2), 1.0f + 1.0f / 64);
}

TEST(PackedLayer, RefusesOtherShapes) {
  const PackedLayer<float> packed = pack<float>(make_layer<float>(configs()[0], 7));
  PackedLayer<float>::Scratch scratch;
  const Matrix<float> x = random_matrix<float>(3, 36, 3);
  Matrix<float> y(3, 37);
  EXPECT_THROW(packed.forward(x, y, scratch), std::invalid_argument);
}

#if MOE_COUNTS_ALLOCATIONS
TYPED_TEST(PackedLayerOf, AllocatesNothingInSteadyState) {
  using W = Wide<TypeParam>;
  for (const MoEConfig& config : configs()) {
    const PackedLayer<TypeParam> packed = pack<TypeParam>(make_layer<W>(config, 7));
    const Matrix<W> x = random_matrix<W>(100, packed.d_in(), 3);
    const Matrix<W> other = random_matrix<W>(100, packed.d_in(), 4);  // another routing
    Matrix<W> y(100, packed.d_out());
    typename PackedLayer<TypeParam>::Scratch scratch;
    packed.forward(x, y, scratch);
    EXPECT_EQ(testing::count_allocations([&] { packed.forward(x, y, scratch); }), 0);
    packed.forward(other, y, scratch);
    EXPECT_EQ(testing::count_allocations([&] { packed.forward(x, y, scratch); }), 0);
  }
}
#endif

}  // namespace
}  // namespace moe::packed_layer_test
