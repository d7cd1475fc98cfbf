// SPDX-License-Identifier: Apache-2.0
// Tests of the cost model: published layers by hand, and FLOPs against a layer that counts its own.
#include "moe/cost/cost.hpp"

#include <gtest/gtest.h>

#include "../support/counting_scalar.hpp"
#include "../support/laid_rows.hpp"
#include "../support/pairs.hpp"
#include "../support/random_matrix.hpp"
#include "moe/cost/models.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::cost_test {
namespace {

using testing::Counting;

MoEConfig mixtral() { return published_model("Mixtral-8x7B").moe; }

TEST(Parameters, AreThoseOfMixtral) {
  const ParameterCount count = parameters(mixtral());
  EXPECT_EQ(count.router, 8 * 4096);
  EXPECT_EQ(count.expert, Index(3) * 4096 * 14336);
  EXPECT_EQ(count.shared, 0);
  EXPECT_EQ(count.total, 1'409'318'912);  // 8 * 176 160 768 + 32 768
  EXPECT_EQ(count.active, 352'354'304);   // 2 * 176 160 768 + 32 768
}

TEST(Parameters, AreThoseOfDeepSeekV3) {
  const ParameterCount count = parameters(published_model("DeepSeek-V3").moe);
  EXPECT_EQ(count.expert, 44'040'192);
  EXPECT_EQ(count.shared, 44'040'192);
  EXPECT_EQ(count.total, 11'320'164'608);  // 257 * 44 040 192 + 256 * (7168 + 1)
  EXPECT_EQ(count.active, 398'196'992);    // 9 * 44 040 192 + 256 * (7168 + 1)
}

TEST(Parameters, CountBiasesGatesAndTheNoiseProjection) {
  const MoEConfig config{
      .d_model = 5,
      .d_ff = 7,
      .num_experts = 3,
      .top_k = 1,
      .d_out = 2,
      .expert = {.bias = true},
      .router = {.logits = {.bias = true, .noisy = true}, .selection = {.bias = true}},
      .shared = SharedExpertConfig{.d_ff = 4, .output_gate = true}};
  const ParameterCount count = parameters(config);
  EXPECT_EQ(count.router, 3 * 5 + 3 + 3 * 5 + 3);
  EXPECT_EQ(count.expert, 2 * (7 * 5 + 7) + 2 * 7 + 2);
  EXPECT_EQ(count.shared, 2 * (4 * 5 + 4) + 2 * 4 + 2 + 5);
}

TEST(Parameters, AreThoseThatALayerHas) {
  for (int bits = 0; bits < 32; ++bits) {
    const MoEConfig config{
        .d_model = 5,
        .d_ff = 7,
        .num_experts = 3,
        .top_k = 2,
        .d_out = 4,
        .expert = {.gated = (bits & 1) != 0, .bias = (bits & 2) != 0},
        .router = {.logits = {.bias = (bits & 4) != 0, .noisy = (bits & 8) != 0},
                   .selection = {.bias = (bits & 16) != 0}},
        .shared =
            SharedExpertConfig{
                .d_ff = 6, .output_gate = (bits & 4) != 0, .coefficients = (bits & 8) != 0},
        .output_norm = (bits & 1) != 0 ? std::optional(OutputNormConfig{}) : std::nullopt};
    MoELayer<float> layer(config, 1);
    Index size = 0;
    layer.for_each_parameter([&](const std::string&, auto& tensor) { size += tensor.size(); });
    EXPECT_EQ(parameters(config).total, size);
  }
}

TEST(Parameters, RejectAnInvalidConfig) {
  EXPECT_THROW(parameters(MoEConfig{}), std::invalid_argument);
}

/// x with two thirds of its tokens alike, so that routing is ragged.
Matrix<Counting> ragged_tokens(Index num_tokens, Index width) {
  Matrix<Counting> x = testing::random_matrix<Counting>(num_tokens, width, 1);
  for (Index t = 0; t < num_tokens; ++t) {
    if (t % 3 != 0) {
      x.row(t) = x.row(0);
    }
  }
  return x;
}

/// Runs the layer of a config in the counting scalar and compares every count.
void expect_exact_flops(const MoEConfig& config, Index num_tokens) {
  const MoELayer<Counting> layer(config, 3);
  const Matrix<Counting> x = ragged_tokens(num_tokens, layer.d_in());
  const auto dy = testing::random_matrix<Counting>(num_tokens, layer.d_out(), 2);
  Matrix<Counting> y(num_tokens, layer.d_out()), dx(num_tokens, layer.d_in());
  MoELayer<Counting>::Scratch scratch;
  MoELayer<Counting>::Tape tape;
  auto grads = layer.zero_grads();
  const CallOptions one_thread{.num_threads = 1};
  const auto inference = testing::count_flops([&] { layer.forward(x, y, scratch, one_thread); });
  const auto training = testing::count_flops([&] { layer.forward(x, y, tape, one_thread); });
  const auto backward = testing::count_flops([&] { layer.backward(x, dy, tape, dx, grads); });
  const Work work = executed_work(tape.plan);
  EXPECT_EQ(forward_flops(config, work).total(), inference);
  EXPECT_EQ(forward_flops(config, work).total(), training);
  EXPECT_EQ(backward_flops(config, work).total(), backward);
}

MoEConfig small() { return {.d_model = 5, .d_ff = 3, .num_experts = 4, .top_k = 2}; }

TEST(Flops, AreExactForEveryRouter) {
  for (const Score score : all_scores) {
    for (const WeightSource weight :
         {WeightSource::score, WeightSource::softmax_of_chosen, WeightSource::one}) {
      for (int bits = 0; bits < 16; ++bits) {
        MoEConfig config = small();
        config.top_k = (bits & 4) != 0 ? 1 : 3;
        config.router = {
            .logits = {.bias = (bits & 1) != 0, .softcap = (bits & 1) != 0 ? 3.0 : 0.0},
            .score = score,
            .selection = {.bias = (bits & 8) != 0},
            .weight = {.source = weight, .renormalise = (bits & 2) != 0, .scale = 2.5}};
        SCOPED_TRACE(::testing::Message() << "score " << static_cast<int>(score) << ", weight "
                                          << static_cast<int>(weight) << ", bits " << bits);
        expect_exact_flops(config, 7);
      }
    }
  }
}

TEST(Flops, AreExactForEveryKindOfWeight) {
  for (const auto source : {WeightSource::score, WeightSource::biased_score,
                            WeightSource::softmax_of_chosen, WeightSource::one}) {
    for (const auto kind : {ExpertScale::off, ExpertScale::fixed, ExpertScale::learned,
                            ExpertScale::learned_for_all}) {
      for (int bits = 0; bits < 4; ++bits) {
        if (source == WeightSource::biased_score && bits == 3) {
          continue;  // is refused
        }
        MoEConfig config = small();
        config.router.selection.bias = true;
        config.router.weight = {
            .source = source,
            .renormalise = (bits & 1) != 0,
            .epsilon_rule = (bits & 2) != 0 ? EpsilonRule::least : EpsilonRule::added,
            .expert_scale = kind};
        SCOPED_TRACE(::testing::Message() << "weight " << static_cast<int>(source) << ", scale "
                                          << static_cast<int>(kind) << ", bits " << bits);
        expect_exact_flops(config, 7);
      }
    }
  }
}

TEST(Flops, AreExactForEveryRuleOfGroups) {
  for (const GroupRule rule :
       {GroupRule::best, GroupRule::sum_of_two_best, GroupRule::equal_quota}) {
    for (const bool bias : {false, true}) {
      MoEConfig config = small();
      config.router.selection = {.bias = bias, .groups = GroupLimit{2, rule, 1}};
      expect_exact_flops(config, 7);
    }
  }
}

TEST(Flops, AreExactForExpertsThatAreAlwaysChosen) {
  for (const bool bias : {false, true}) {
    MoEConfig config = small();
    config.router.selection = {.bias = bias, .always = 1};
    expect_exact_flops(config, 7);
  }
}

TEST(Flops, AreExactForEveryExpert) {
  for (const auto activation : all_activations) {
    for (int bits = 0; bits < 8; ++bits) {
      MoEConfig config = small();
      config.expert = {.activation = activation,
                       .gated = (bits & 1) != 0,
                       .bias = (bits & 2) != 0,
                       .output_gate = (bits & 4) != 0};
      SCOPED_TRACE(::testing::Message()
                   << "activation " << static_cast<int>(activation) << ", bits " << bits);
      expect_exact_flops(config, 6);
    }
  }
}

TEST(Flops, AreExactForEveryPair) {
  testing::for_each_pair([](const ExpertConfig& pair) {
    MoEConfig config = small();
    config.expert = pair;
    config.expert.bias = true;
    config.shared = SharedExpertConfig{.d_ff = 6};
    expect_exact_flops(config, 6);
    if (pair.limit) {
      config.shared->limit = 3.0;
      expect_exact_flops(config, 6);
    }
  });
}

TEST(Flops, AreExactForEveryLayerAroundThem) {
  for (int shared = 0; shared < 3; ++shared) {
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      for (const Index d_out : {5, 2, 9}) {
        for (const Index num_tokens : {1, 6}) {
          MoEConfig config = small();
          config.expert.bias = true;
          config.d_out = d_out;
          config.weight_on = weight_on;
          if (shared > 0) {
            config.shared = SharedExpertConfig{.d_ff = 6, .output_gate = shared == 2};
          }
          SCOPED_TRACE(::testing::Message()
                       << "shared " << shared << ", weight on " << static_cast<int>(weight_on)
                       << ", d_out " << d_out << ", tokens " << num_tokens);
          expect_exact_flops(config, num_tokens);
        }
      }
    }
  }
}

TEST(Flops, AreExactForScalesOfTheRoutedAndTheSharedOutput) {
  for (const auto& [routed, shared] : {std::pair{2.5, 1.0}, {1.0, 0.25}, {0.5, 0.5}}) {
    MoEConfig config = small();
    config.routed_scale = routed;
    if (shared == 1.0) {
      expect_exact_flops(config, 6);
    }
    config.shared = SharedExpertConfig{.d_ff = 6, .scale = shared};
    expect_exact_flops(config, 6);
  }
}

TEST(Flops, AreExactForCoefficientsOfTheRoutedAndTheSharedOutput) {
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input, WeightOn::hidden}) {
    MoEConfig config = small();
    config.d_out = 6;
    config.weight_on = weight_on;
    config.shared = SharedExpertConfig{.d_ff = 6, .coefficients = true};
    SCOPED_TRACE(::testing::Message() << "weight on " << static_cast<int>(weight_on));
    expect_exact_flops(config, 6);
  }
}

TEST(Flops, AreExactForANormOfTheOutput) {
  for (int bits = 0; bits < 8; ++bits) {
    MoEConfig config = small();
    config.d_out = 6;
    config.output_norm = OutputNormConfig{};
    config.routed_scale = (bits & 1) != 0 ? 2.5 : 1.0;
    if ((bits & 2) != 0) {
      config.shared = SharedExpertConfig{.d_ff = 6};
    }
    if ((bits & 4) != 0) {
      config.latent = LatentConfig{.width = 4, .norm = true};
    }
    SCOPED_TRACE(::testing::Message() << "bits " << bits);
    expect_exact_flops(config, 6);
  }
}

TEST(Flops, AreExactWithTheWeightOnHiddenRows) {
  for (int bits = 0; bits < 8; ++bits) {
    MoEConfig config = small();
    config.weight_on = WeightOn::hidden;
    config.d_out = 6;
    config.expert = {
        .gated = (bits & 1) != 0, .bias = (bits & 2) != 0, .output_gate = (bits & 4) != 0};
    SCOPED_TRACE(::testing::Message() << "bits " << bits);
    expect_exact_flops(config, 6);
  }
}

TEST(Flops, AreExactForLatentExperts) {
  for (int bits = 0; bits < 16; ++bits) {
    MoEConfig config = small();
    config.d_out = 6;
    config.latent = LatentConfig{.width = 4, .norm = (bits & 1) != 0};
    config.routed_scale = (bits & 2) != 0 ? 2.5 : 1.0;
    config.weight_on = (bits & 4) != 0 ? WeightOn::input : WeightOn::output;
    if ((bits & 8) != 0) {
      config.shared = SharedExpertConfig{.d_ff = 6};
    }
    SCOPED_TRACE(::testing::Message() << "bits " << bits);
    expect_exact_flops(config, 6);
  }
}

TEST(Flops, AreExactForOneExpertOneChoiceAndAll) {
  MoEConfig config = small();
  config.top_k = 4;
  expect_exact_flops(config, 5);
  config.top_k = 1;
  expect_exact_flops(config, 5);
  config.num_experts = config.top_k = 1;
  expect_exact_flops(config, 5);
}

TEST(Flops, LeaveOutDroppedRows) {
  for (const auto policy : {DropPolicy::position, DropPolicy::probability}) {
    for (const Index rows : {0, 1, 2}) {
      MoEConfig config = small();
      config.capacity = {.rows = rows, .policy = policy};
      expect_exact_flops(config, 9);
    }
  }
}

TEST(Flops, AreNoneWithoutTokens) {
  expect_exact_flops(small(), 0);
  EXPECT_EQ(forward_flops(small(), Work{}).total(), 0);
  EXPECT_EQ(backward_flops(small(), Work{}).total(), 0);
}

TEST(Flops, AreExactAcrossPartsOfAnExpertsRows) {
  MoEConfig config = small();
  config.shared = SharedExpertConfig{.d_ff = 2, .output_gate = true};
  expect_exact_flops(config, 3 * FfnExperts<double>::part_rows);
}

// Two FLOPs for each active weight and token, and twice as many backwards.
TEST(Flops, InMatrixProductsFollowTheActiveParameters) {
  const Work work = predicted_work(mixtral(), 10);
  EXPECT_EQ(forward_flops(mixtral(), work).sum().matmul, 20 * parameters(mixtral()).active);
  EXPECT_EQ(backward_flops(mixtral(), work).sum().matmul, 40 * parameters(mixtral()).active);
}

// DeepSeek-V3 was trained on 14.8e12 tokens, 3e24 FLOPs; 64 bits count to 9e18.
TEST(Flops, OfAWholeTrainingRunAreThoseOfATokenTimesItsTokens) {
  constexpr Index tokens = 14'800'000'000'000;
  const MoEConfig config = published_model("DeepSeek-V3").moe;
  const Work one = predicted_work(config, 1), all = predicted_work(config, tokens);
  EXPECT_EQ(all.rows, 8 * tokens);
  const double times = 14.8e12;
  const auto ratio = [&](const Flops& of_all, const Flops& of_one) {
    return of_all.total() / (times * of_one.total());
  };
  const LayerFlops forward = forward_flops(config, all), backward = backward_flops(config, all);
  const LayerFlops forward_one = forward_flops(config, one),
                   backward_one = backward_flops(config, one);
  EXPECT_NEAR(ratio(forward.sum(), forward_one.sum()), 1.0, 1e-12);
  EXPECT_NEAR(ratio(backward.sum(), backward_one.sum()), 1.0, 1e-12);
  EXPECT_NEAR(ratio(forward.router, forward_one.router), 1.0, 1e-12);
  EXPECT_NEAR(ratio(backward.combine, backward_one.combine), 1.0, 1e-12);
  const double weights = 9.0 * 44'040'192 + 256.0 * 7168;  // that multiply a token
  EXPECT_NEAR(forward.sum().matmul / (2.0 * times * weights), 1.0, 1e-12);
}

TEST(Bytes, OfAWholeTrainingRunAreThoseOfATokenTimesItsTokens) {
  MoEConfig config = published_model("DeepSeek-V3").moe;
  config.top_k = 64;  // 9.5e14 rows of three widths of 7168: more than 64 bits count
  const double one = forward_bytes(config, predicted_work(config, 1), 4).activations;
  const double all =
      forward_bytes(config, predicted_work(config, 14'800'000'000'000), 4).activations;
  EXPECT_NEAR(all / (14.8e12 * one), 1.0, 1e-12);
}

TEST(Flops, OfALayerAreThoseOfItsParts) {
  const LayerFlops layer{{1, 2}, {3, 4}, {5, 6}, {7, 8}};
  EXPECT_EQ(layer.total(), 36);
}

}  // namespace
}  // namespace moe::cost_test
