// SPDX-License-Identifier: Apache-2.0
// MoELayer::forward against the reference in plain loops, and what it says of parts, shapes and
// exceptions.
#include "moe/layers/moe_layer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <stdexcept>

#include "../support/layer_step.hpp"
#include "moe/reference.hpp"

namespace moe::moe_layer_test {
namespace {

using testing::forward;
using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

MoEConfig small_config() { return {.d_model = 7, .d_ff = 9, .num_experts = 5, .top_k = 2}; }

template <class T>
class MoELayerOf : public ::testing::Test {
 protected:
  /// Inference equals the reference to rounding, and training equals inference to the bit.
  static void check(const MoEConfig& config, Index tokens, CallOptions call = {}) {
    call.num_threads = 1;  // hundreds of tiny layers
    const MoELayer<T> layer = make_layer<T>(config, 1);
    const Matrix<T> x = random_matrix<T>(tokens, layer.d_in(), 2);
    const Matrix<T> y = forward(layer, x, call);
    EXPECT_TRUE(matrix_near(y, reference::forward(layer, x, call),
                            std::is_same_v<T, double> ? 1e-13 : 1e-5));
    typename MoELayer<T>::Tape tape;
    Matrix<T> y_taped(tokens, layer.d_out());
    layer.forward(x, y_taped, tape, call);
    EXPECT_TRUE(same_bits(y_taped, y));
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MoELayerOf, Scalars);

TYPED_TEST(MoELayerOf, EqualsTheReferenceOnAwkwardSizes) {
  const Index sizes[] = {1, 3, 7, 17, 64, 65};
  for (std::size_t i = 0; i < 6; ++i) {
    for (const Index tokens : sizes) {
      const Index experts = sizes[(i + 2) % 4];
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, number " << i);
      this->check({.d_model = sizes[i],
                   .d_ff = sizes[(i + 3) % 6],
                   .num_experts = experts,
                   .top_k = std::min<Index>(experts, 2),
                   .d_out = sizes[(i + 4) % 6]},
                  tokens);
    }
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForEveryExpertKind) {
  for (const auto activation : all_activations) {
    for (int bits = 0; bits < 8; ++bits) {
      MoEConfig config = small_config();
      config.expert = {.activation = activation,
                       .gated = (bits & 1) != 0,
                       .bias = (bits & 2) != 0,
                       .output_gate = (bits & 4) != 0};
      SCOPED_TRACE(::testing::Message() << static_cast<int>(activation) << " " << bits);
      this->check(config, 17);
    }
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForEveryRouterOption) {
  ExpertMask layer_mask = ExpertMask::Ones(1, 5), token_mask = ExpertMask::Ones(17, 5);
  layer_mask(0, 2) = 0;
  token_mask.row(3).setZero();
  token_mask.row(8) << 0, 0, 0, 0, 1;
  const ExpertMask* masks[] = {nullptr, &layer_mask, &token_mask};
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const auto weight :
         {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
      for (int bits = 0; bits < 4; ++bits) {
        for (const ExpertMask* mask : masks) {
          MoEConfig config = small_config();
          config.router = {.logits = {.bias = true},
                           .score = score,
                           .selection = {.bias = (bits & 1) != 0},
                           .weight = {weight, (bits & 2) != 0, 1.5}};
          this->check(config, 17, {.expert_mask = mask});
        }
      }
    }
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForEveryCapacityAndSharedExpert) {
  for (const auto policy : {DropPolicy::position, DropPolicy::probability,
                            DropPolicy::second_choices, DropPolicy::second_choices_by_priority}) {
    for (const Capacity& capacity :
         {Capacity{.factor = 0.5, .policy = policy}, Capacity{.factor = 1.25, .policy = policy},
          Capacity{.rows = 0, .policy = policy}, Capacity{.rows = 2, .policy = policy}}) {
      for (const Index sequence : {0, 6, 18}) {
        for (const auto weight_on : {WeightOn::output, WeightOn::input}) {
          MoEConfig config = small_config();
          config.capacity = capacity;
          config.weight_on = weight_on;
          config.shared =
              SharedExpertConfig{.d_ff = 4, .output_gate = weight_on == WeightOn::input};
          this->check(config, 36, {.tokens = {.sequence_length = sequence}});
        }
      }
    }
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForEveryScaleOfTheRoutedAndTheSharedOutput) {
  for (const double routed : {1.0, 0.5, 2.5}) {
    for (const double shared : {1.0, 0.5}) {
      MoEConfig config = small_config();
      config.routed_scale = routed;
      this->check(config, 17);
      config.shared = SharedExpertConfig{.d_ff = 4, .scale = shared};
      this->check(config, 17);
    }
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceWithTheWeightOnHiddenRows) {
  for (int bits = 0; bits < 8; ++bits) {
    MoEConfig config = small_config();
    config.weight_on = WeightOn::hidden;
    config.router.weight.renormalise = false;
    config.expert = {
        .gated = (bits & 1) != 0, .bias = (bits & 2) != 0, .output_gate = (bits & 4) != 0};
    SCOPED_TRACE(bits);
    this->check(config, 17);
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForExpertsThatAreAlwaysChosen) {
  for (const Index always : {1, 2}) {
    MoEConfig config = small_config();
    config.top_k = 3;
    config.router.score = Score::sigmoid;
    config.router.selection = {.bias = true, .always = always};
    config.router.weight.expert_scale = ExpertScale::learned_for_all;
    config.weight_on = WeightOn::hidden;
    this->check(config, 17);
    config.capacity.factor = 1.0;
    this->check(config, 17);
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForLatentExperts) {
  for (const bool norm : {false, true}) {
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      MoEConfig config = small_config();
      config.latent = LatentConfig{.width = 9, .norm = norm, .eps = 0.01};
      config.weight_on = weight_on;
      this->check(config, 17);
      config.routed_scale = 2.5;
      this->check(config, 17);
      config.shared = SharedExpertConfig{.d_ff = 4};
      this->check(config, 17);
    }
  }
}

TYPED_TEST(MoELayerOf, EqualsTheReferenceForPaddingAndSequencesOfAnyLengths) {
  std::vector<std::uint8_t> padding(36, 0);
  for (const std::size_t token : {3U, 4U, 11U, 20U, 35U}) {
    padding[token] = 1;
  }
  const std::vector<Index> offset{0, 9, 9, 12, 36};
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    for (const Tokens& tokens :
         {Tokens{.padding = padding}, Tokens{.sequence_length = 12, .padding = padding},
          Tokens{.sequence_offset = offset},
          Tokens{.sequence_offset = offset, .padding = padding}}) {
      MoEConfig config = small_config();
      config.capacity = {.factor = 0.8, .policy = policy};
      config.shared = SharedExpertConfig{.d_ff = 4, .output_gate = true};
      this->check(config, 36, {.tokens = tokens});
    }
  }
}

TYPED_TEST(MoELayerOf, GivesTheSameBitsWhenItWritesOverItsInput) {
  MoEConfig config = small_config();
  for (const bool shared : {false, true}) {
    if (shared) {
      config.shared = SharedExpertConfig{.d_ff = 4};
    }
    const MoELayer<TypeParam> layer = make_layer<TypeParam>(config, 3);
    Matrix<TypeParam> x = random_matrix<TypeParam>(65, 7, 4);
    const Matrix<TypeParam> y = forward(layer, x);
    typename MoELayer<TypeParam>::Scratch scratch;
    layer.forward(x, x, scratch);
    EXPECT_TRUE(same_bits(x, y));
  }
}

TYPED_TEST(MoELayerOf, ReadsAndWritesRowsOfAnyStride) {
  const MoELayer<TypeParam> layer = make_layer<TypeParam>(small_config(), 5);
  const Matrix<TypeParam> x = random_matrix<TypeParam>(20, 7, 6);
  Matrix<TypeParam> wide_x = random_matrix<TypeParam>(20, 16, 7),
                    wide_y = Matrix<TypeParam>::Zero(20, 30);
  wide_x.middleCols(3, 7) = x;
  typename MoELayer<TypeParam>::Scratch scratch;
  layer.forward(wide_x.middleCols(3, 7), wide_y.middleCols(11, 7), scratch);
  EXPECT_TRUE(same_bits(Matrix<TypeParam>(wide_y.middleCols(11, 7)), forward(layer, x)));
  EXPECT_TRUE(wide_y.leftCols(11).isZero(0));
  EXPECT_TRUE(wide_y.rightCols(12).isZero(0));
}

TEST(MoELayer, TakesNoTokensAndOneToken) {
  const MoELayer<double> layer = make_layer<double>(small_config(), 8);
  EXPECT_EQ(forward(layer, Matrix<double>(0, 7)).rows(), 0);
  const Matrix<double> x = random_matrix<double>(1, 7, 9);
  EXPECT_TRUE(matrix_near(forward(layer, x), reference::forward(layer, x), 1e-13));
}

TEST(MoELayer, RefusesShapesAndOptionsThatDoNotFit) {
  const MoELayer<double> layer = make_layer<double>(small_config(), 10);
  Matrix<double> x = random_matrix<double>(6, 7, 11), y(6, 7), narrow(6, 5), few(5, 7);
  MoELayer<double>::Scratch scratch;
  MoELayer<double>::Tape tape;
  EXPECT_THROW(layer.forward(narrow, y, scratch), std::invalid_argument);
  EXPECT_THROW(layer.forward(x, narrow, scratch), std::invalid_argument);
  EXPECT_THROW(layer.forward(x, few, scratch), std::invalid_argument);
  EXPECT_THROW(layer.forward(x, y, scratch, {.tokens = {.sequence_length = 4}}),
               std::invalid_argument);
  EXPECT_THROW(layer.forward(x, x, tape), std::invalid_argument) << "backward needs x again";
  EXPECT_THROW(layer.forward(x, y, scratch, {.num_threads = -1}), std::invalid_argument);
  EXPECT_NO_THROW(layer.forward(x, y, scratch, {.tokens = {.sequence_length = 3}}));
}

TEST(MoELayer, OfAnotherSeedSharesNoNumberWithIt) {
  MoEConfig config = small_config();
  config.expert.bias = config.router.logits.bias = false;
  std::set<double> seen;
  Index drawn = 0;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    MoELayer<double> layer(config, seed);
    layer.for_each_parameter([&](const std::string&, const Matrix<double>& weight) {
      for (const double value : weight.reshaped()) {
        seen.insert(value * std::sqrt(static_cast<double>(weight.cols())));
        drawn += value == 0.0 ? 0 : 1;
      }
    });
  }
  EXPECT_GE(seen.size(), static_cast<std::size_t>(drawn));
}

TEST(MoELayer, RefusesPartsThatDoNotFitTogether) {
  const auto make = [](Index d_model, Index d_expert, Index experts, Index d_shared) {
    std::vector<Expert<float>> list(3, Expert<float>({d_expert, 4, d_expert}, ExpertConfig{}, 1));
    std::optional<DenseFfn<float>> shared;
    if (d_shared > 0) {
      shared = DenseFfn<float>({d_shared, 4, d_shared}, ExpertConfig{}, 2);
    }
    return MoELayer<float>(Router<float>(d_model, experts, 1, {}, 3), list, {}, shared);
  };
  EXPECT_NO_THROW(make(5, 5, 3, 5));
  EXPECT_THROW(make(6, 5, 3, 0), std::invalid_argument);
  EXPECT_THROW(make(5, 5, 4, 0), std::invalid_argument);
  EXPECT_THROW(make(5, 5, 3, 6), std::invalid_argument);
  EXPECT_THROW(MoELayer<float>(Router<float>(5, 1, 1, {}, 3), {}), std::invalid_argument);
  MoEConfig config = small_config();
  config.top_k = 6;
  EXPECT_THROW(MoELayer<float>(config, 1), std::invalid_argument);
}

TEST(MoELayer, KeepsTheJitterOfItsRouterFromItsExperts) {
  MoEConfig config = small_config();
  config.router = {.logits = {.input_jitter = 0.5}, .weight = {.source = WeightSource::one}};
  config.top_k = config.num_experts;
  const MoELayer<double> layer = make_layer<double>(config, 1);
  const Matrix<double> x = random_matrix<double>(9, 7, 2);
  EXPECT_TRUE(matrix_near(forward(layer, x, {.noise_seed = 3}), forward(layer, x), 1e-14));
}

TEST(MoELayer, ScalesItsRoutedPartOnceAndNotTheSharedExpert) {
  MoEConfig config = small_config();
  config.shared = SharedExpertConfig{.d_ff = 6};
  const Matrix<double> x = random_matrix<double>(9, 7, 3);
  const auto output = [&](double scale, bool routed) {
    config.router.weight.scale = scale;
    MoELayer<double> layer = make_layer<double>(config, 4);
    for (auto& expert : layer.experts()) {
      expert.params().down *= routed ? 1.0 : 0.0;
    }
    return forward(layer, x);
  };
  const Matrix<double> shared = output(1.0, false), one = output(1.0, true);
  EXPECT_TRUE(same_bits(output(4.0, false), shared));
  EXPECT_TRUE(matrix_near(output(4.0, true), 4.0 * one - 3.0 * shared, 1e-13));
}

/// Doubles its input, and throws at a row that begins with 13.
struct Picky {
  struct Scratch {};
  struct Tape {};
  struct Params {
    Matrix<float> w;
    template <class Visit, class... P>
    static void for_each(Visit&& visit, P&... p) {
      visit(std::string_view("w"), p.w...);
    }
  };
  Params own{Matrix<float>::Zero(1, 1)};

  Index d_in() const { return 3; }
  Index d_out() const { return 3; }
  Params& params() { return own; }
  const Params& params() const { return own; }
  template <class State>
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, State&) const {
    if ((x.col(0).array() == 13.0F).any()) {
      throw std::domain_error("thirteen");
    }
    y = 2.0F * x;
  }
  void backward(ConstMatrixRef<float>, ConstMatrixRef<float> dy, Tape&, MatrixRef<float> dx,
                Params&) const {
    dx = 2.0F * dy;
  }
};
static_assert(TrainableExpert<Picky, float>);

TEST(MoELayer, LetsAnExpertsExceptionOutAndCanBeUsedAfterwards) {
  using Layer = MoELayer<float, Router<float>, Picky>;
  const Layer layer(Router<float>(3, 4, 2, {}, 23), std::vector<Picky>(4));
  Matrix<float> good = random_matrix<float>(300, 3, 24), bad = good, y(300, 3), dx(300, 3);
  bad(150, 0) = 13.0F;
  for (const int threads : {1, 2, 3}) {
    const CallOptions call{.num_threads = threads};
    Layer::Scratch scratch;
    Layer::Tape tape;
    Layer::Grads grads = layer.zero_grads();
    y.setConstant(5.0F);
    EXPECT_THROW(layer.forward(bad, y, scratch, call), std::domain_error);
    EXPECT_THROW(layer.forward(bad, y, tape, call), std::domain_error);
    EXPECT_TRUE((y.array() == 5.0F).all()) << "y is as before";
    EXPECT_THROW(layer.backward(bad, y, tape, dx, grads), std::invalid_argument)
        << "the tape of a failed forward";
    layer.forward(good, y, scratch, call);
    EXPECT_TRUE(matrix_near(y, 2.0F * good, 1e-6));
    layer.forward(good, y, tape, call);
    EXPECT_TRUE(matrix_near(y, 2.0F * good, 1e-6));
    EXPECT_NO_THROW(layer.backward(good, y, tape, dx, grads));
  }
}

}  // namespace
}  // namespace moe::moe_layer_test
