// SPDX-License-Identifier: Apache-2.0
// MoELayer::backward against central differences, for x and every parameter; and what it promises
// about what it writes.
#include <gtest/gtest.h>

#include <algorithm>

#include "../support/finite_difference.hpp"
#include "../support/layer_step.hpp"
#include "../support/pairs.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/losses.hpp"
#include "moe/reference.hpp"

namespace moe::moe_layer_gradient_test {
namespace {

using testing::gradient_error;
using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using testing::run_step;
using testing::same_bits;
using testing::same_grads;
using Layer = MoELayer<double>;

constexpr Index N = 6, E = 4;

MoEConfig small_config() {
  return {.d_model = 3, .d_ff = 3, .num_experts = E, .top_k = 2, .d_out = 2};
}

/// What is derived: sum(y * dy), and with `losses` what training adds.
struct Problem {
  MoEConfig config = small_config();
  CallOptions call = {.num_threads = 1};  // 10,000 tiny calls
  bool losses = false;
};

RoutingLoss<double> losses_of(const Problem& problem, const RoutingTable<double>& table) {
  if (!problem.losses) {
    return {};
  }
  auto sum = 0.3 * load_balancing_loss(table) + 0.2 * z_loss(table) + 0.1 * importance_loss(table);
  return table.noise_scale.size() > 0 ? sum + 0.05 * load_loss(table) : sum;
}

/// The layer is smooth here: no two logits of a token, and no two probabilities of an expert, are
/// so close that a difference quotient changes their order; no pre-activation is close to a kink.
bool is_smooth(const Layer& layer, const Matrix<double>& x, const RoutingTable<double>& table) {
  const auto far = [](double a, double b) { return !(std::abs(a - b) < 3e-3); };
  for (Index t = 0; t < N; ++t) {
    for (Index e = 0; e < E; ++e) {
      for (Index other = 0; other < e; ++other) {
        if (!far(table.logits(t, e), table.logits(t, other))) {
          return false;
        }
      }
      for (Index other = 0; other < t; ++other) {
        if (table.probs(t, e) != 0.0 && !far(table.probs(t, e), table.probs(other, e))) {
          return false;
        }
      }
    }
  }
  const auto projected = [](const Matrix<double>& from, const Matrix<double>& weight,
                            const Matrix<double>& bias) {
    Matrix<double> z = from * weight.transpose();
    if (bias.size() > 0) {
      z.rowwise() += bias.row(0);
    }
    return z;
  };
  const auto near = [](const auto& z, double kink) {
    return (z.array() - kink).abs().minCoeff() < 2e-3;
  };
  const auto kinks = [&](const Expert<double>& expert, const Matrix<double>& x_of_expert) {
    const auto& p = expert.params();
    const ExpertConfig& kind = expert.config();
    const bool relu =
        kind.activation == Activation::relu || kind.activation == Activation::relu_squared;
    const Matrix<double> up = projected(x_of_expert, p.up, p.up_bias);
    const Matrix<double> gate = kind.gated ? projected(x_of_expert, p.gate, p.gate_bias) : up;
    if (!kind.limit) {
      return relu && near(gate, 0.0);
    }
    const Matrix<double> cut = gate.unaryExpr(
        [&](double z) { return kind.clamp == Clamp::before ? z : reference::activate(kind, z); });
    return near(cut, *kind.limit) || near(up, *kind.limit) || near(up, -*kind.limit);
  };
  const Matrix<double> inside =
      layer.latent() ? Matrix<double>(x * layer.latent()->params().down.transpose()) : x;
  return std::none_of(layer.experts().begin(), layer.experts().end(),
                      [&](const Expert<double>& expert) { return kinks(expert, inside); }) &&
         !(layer.shared() && kinks(layer.shared()->expert(), x));
}

/// The worst relative error of x and all parameters.
double worst_error(const Problem& problem) {
  Layer::Tape tape;
  std::uint64_t seed = 1;
  Layer layer = make_layer<double>(problem.config, seed);
  Matrix<double> x, y(N, layer.d_out());
  do {
    layer = make_layer<double>(problem.config, ++seed);
    x = random_matrix<double>(N, layer.d_in(), seed);
    layer.forward(x, y, tape, problem.call);
  } while (!is_smooth(layer, x, tape.routing));

  const Matrix<double> dy = random_matrix<double>(N, layer.d_out(), seed + 1);
  Matrix<double> dx(N, layer.d_in());
  Layer::Grads grads = layer.zero_grads();
  layer.backward(x, dy, tape, dx, grads, losses_of(problem, tape.routing).gradient);

  Layer::Scratch scratch;
  const auto f = [&] {
    layer.forward(x, y, scratch, problem.call);
    return (y.array() * dy.array()).sum() + losses_of(problem, scratch.routing).value;
  };
  double worst = gradient_error(f, x, dx);
  layer.for_each_parameter(
      [&](const std::string&, Matrix<double>& parameter, const Matrix<double>& gradient) {
        worst = std::max(worst, gradient_error(f, parameter, gradient));
      },
      grads);
  return worst;
}

TEST(MoELayerGradient, MatchesCentralDifferencesForEveryExpertKind) {
  for (const auto activation : all_activations) {
    for (const bool gated : {false, true}) {
      Problem problem;
      problem.config.expert = {
          .activation = activation, .gated = gated, .bias = true, .output_gate = gated};
      EXPECT_LT(worst_error(problem), 1e-7) << static_cast<int>(activation) << gated;
    }
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesForEveryPairAndLimitOfTheSharedExpert) {
  for (const ExpertConfig& pair : testing::pair_configs()) {
    if (pair.activation == Activation::relu || pair.activation == Activation::relu_squared) {
      continue;  // is_smooth() does not see two kinks
    }
    Problem problem;
    problem.config.expert = pair;
    problem.config.expert.bias = true;
    problem.config.shared = SharedExpertConfig{.d_ff = 2};
    if (pair.limit) {
      problem.config.shared->limit = 0.3;
    }
    EXPECT_LT(worst_error(problem), 1e-7) << static_cast<int>(pair.activation);
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesForEveryDropPolicyAndPlaceOfTheWeight) {
  for (const auto weight_on : {WeightOn::output, WeightOn::input}) {
    for (const Capacity& capacity : {Capacity{}, Capacity{.factor = 0.9}, Capacity{.rows = 1},
                                     Capacity{.rows = 1, .policy = DropPolicy::probability}}) {
      for (const Index sequence : {0, 3}) {
        Problem problem;
        problem.config.capacity = capacity;
        problem.config.weight_on = weight_on;
        problem.config.router.weight.renormalise = sequence == 0;
        problem.call.tokens.sequence_length = sequence;
        problem.losses = sequence == 3;
        EXPECT_LT(worst_error(problem), 1e-7)
            << static_cast<int>(weight_on) << sequence << static_cast<int>(capacity.policy);
      }
    }
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesWithASharedExpert) {
  for (const bool output_gate : {false, true}) {
    for (const auto weight_on : {WeightOn::output, WeightOn::input}) {
      Problem problem;
      problem.config.shared = SharedExpertConfig{.d_ff = 2, .output_gate = output_gate};
      problem.config.expert.bias = true;
      problem.config.weight_on = weight_on;
      problem.losses = output_gate;
      EXPECT_LT(worst_error(problem), 1e-7) << output_gate;
    }
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesWithScalesOfTheRoutedAndTheSharedOutput) {
  for (const auto weight_on : {WeightOn::output, WeightOn::input}) {
    for (const auto& [routed, shared] : {std::pair{2.5, 1.0}, {1.0, 0.25}, {0.5, 0.5}}) {
      Problem problem;
      problem.config.shared = SharedExpertConfig{.d_ff = 2, .output_gate = true, .scale = shared};
      problem.config.weight_on = weight_on;
      problem.config.routed_scale = routed;
      EXPECT_LT(worst_error(problem), 1e-7) << routed << ' ' << shared;
    }
  }
  Problem alone;
  alone.config.routed_scale = 1.7;
  EXPECT_LT(worst_error(alone), 1e-7);
}

TEST(MoELayerGradient, MatchesCentralDifferencesWithTheWeightOnHiddenRows) {
  for (int bits = 0; bits < 8; ++bits) {
    Problem problem;
    problem.config.weight_on = WeightOn::hidden;
    problem.config.router.weight.renormalise = false;
    problem.config.expert = {
        .gated = (bits & 1) != 0, .bias = (bits & 2) != 0, .output_gate = (bits & 4) != 0};
    if ((bits & 4) != 0) {
      problem.config.shared = SharedExpertConfig{.d_ff = 2};
      problem.losses = true;
    }
    EXPECT_LT(worst_error(problem), 1e-7) << bits;
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesWithAnExpertThatIsAlwaysChosen) {
  for (const auto weight_on : {WeightOn::output, WeightOn::hidden}) {
    Problem problem;
    problem.config.top_k = 3;
    problem.config.router = {.score = Score::sigmoid,
                             .selection = {.always = 1},
                             .weight = {.renormalise = true,
                                        .epsilon = 0.0,
                                        .scale = 2.5,
                                        .expert_scale = ExpertScale::learned_for_all}};
    problem.config.weight_on = weight_on;
    EXPECT_LT(worst_error(problem), 1e-7);
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesWithLatentExperts) {
  for (const auto weight_on : {WeightOn::output, WeightOn::input}) {
    for (const bool norm : {false, true}) {
      Problem problem;
      problem.config.latent = LatentConfig{.width = 4, .norm = norm, .eps = 0.1};
      problem.config.weight_on = weight_on;
      problem.config.router.weight.renormalise = false;
      problem.losses = norm;
      EXPECT_LT(worst_error(problem), 1e-7) << norm;
      problem.config.routed_scale = 2.5;
      problem.config.shared = SharedExpertConfig{.d_ff = 2, .scale = 0.5};
      EXPECT_LT(worst_error(problem), 1e-7) << norm << " with a shared expert";
    }
  }
}

TEST(MoELayerGradient, MatchesCentralDifferencesWithMasksLossesAndNoise) {
  ExpertMask layer_mask = ExpertMask::Ones(1, E), token_mask = ExpertMask::Ones(N, E);
  layer_mask(0, 1) = 0;
  token_mask.row(0) << 0, 1, 0, 0;  // fewer than top_k
  token_mask.row(1) << 0, 0, 0, 0;  // none
  token_mask.row(2) << 1, 0, 1, 0;
  for (const ExpertMask* mask :
       {static_cast<const ExpertMask*>(nullptr), static_cast<const ExpertMask*>(&layer_mask),
        static_cast<const ExpertMask*>(&token_mask)}) {
    for (const bool noise : {false, true}) {
      for (const auto score : {Score::softmax, Score::sigmoid}) {
        Problem problem;
        problem.config.router = {
            .logits = {.input_jitter = noise ? 0.2 : 0.0, .bias = true, .noisy = noise},
            .score = score,
            .weight = {.renormalise = score == Score::sigmoid}};
        problem.config.shared = SharedExpertConfig{.d_ff = 2};
        problem.call.expert_mask = mask;
        problem.call.noise_seed = 3;
        problem.losses = true;
        EXPECT_LT(worst_error(problem), 1e-7) << noise << static_cast<int>(score);
      }
    }
  }
}

TEST(MoELayerGradient, IsAddedToGradsAndAssignedToDx) {
  MoEConfig config = small_config();
  config.shared = SharedExpertConfig{.d_ff = 2, .output_gate = true};
  const Layer layer = make_layer<double>(config, 1);
  const Matrix<double> x = random_matrix<double>(N, 3, 2), dy = random_matrix<double>(N, 2, 3);
  Matrix<double> y(N, 2), dx(N, 3), dx_again = Matrix<double>::Constant(N, 3, 5.0);
  Layer::Tape tape;
  layer.forward(x, y, tape);
  Layer::Grads grads = layer.zero_grads(), twice = layer.zero_grads();
  layer.backward(x, dy, tape, dx, grads);
  layer.backward(x, dy, tape, dx_again, twice);
  EXPECT_TRUE(same_bits(dx, dx_again));
  EXPECT_TRUE(same_grads(layer, grads, twice)) << "backward may be called again";
  layer.backward(x, dy, tape, dx_again, twice);
  layer.for_each_parameter(
      [](const std::string& name, const auto&, const auto& one, const auto& two) {
        EXPECT_TRUE(testing::matrix_near(two, 2.0 * one, 1e-14)) << name;
      },
      grads, twice);
}

TEST(MoELayerGradient, OfAnIdleExpertIsExactlyZero) {
  const Layer layer = make_layer<double>(small_config(), 4);
  ExpertMask mask = ExpertMask::Ones(1, E);
  mask(0, 2) = 0;
  const auto step = run_step(layer, random_matrix<double>(N, 3, 5), {.expert_mask = &mask});
  ExpertParams<double>::for_each(
      [](std::string_view name, const auto& grad) { EXPECT_TRUE(grad.isZero(0)) << name; },
      step.grads.experts[2]);
  EXPECT_TRUE(step.grads.router.weight.row(2).isZero(0));
  EXPECT_FALSE(step.grads.experts[0].up.isZero(0));
}

TEST(MoELayerGradient, OfADroppedTokenIsExactlyZero) {
  MoEConfig config = small_config();
  config.top_k = 1;
  config.router.weight.renormalise = false;
  config.capacity.rows = 1;
  Layer layer = make_layer<double>(config, 6);
  Matrix<double> x(4, 3);
  x.rowwise() = random_matrix<double>(1, 3, 7).row(0);  // all choose the same expert
  const auto step = run_step(layer, x);
  EXPECT_FALSE(step.dx.row(0).isZero(0));
  EXPECT_TRUE(step.dx.bottomRows(3).isZero(0));
  EXPECT_TRUE(step.y.bottomRows(3).isZero(0));
}

TEST(MoELayerGradient, OfNoTokensIsZero) {
  const Layer layer = make_layer<double>(small_config(), 8);
  const auto step = run_step(layer, Matrix<double>(0, 3));
  EXPECT_EQ(step.dx.rows(), 0);
  EXPECT_TRUE(same_grads(layer, step.grads, layer.zero_grads()));
}

TEST(MoELayerGradient, InBfloat16IsThatOfAFloatLayerOfTheSameWeightsButForRounding) {
  const MoEConfig config{.d_model = 70, .d_ff = 131, .num_experts = E, .top_k = 2};
  MoELayer<bf16> layer = make_layer<bf16>(config, 21);
  const Matrix<bf16> x = random_matrix<bf16>(150, 70, 22);
  auto step = run_step(layer, x);
  std::vector<Matrix<float>> weights, grads;
  layer.for_each_parameter(
      [&](const std::string&, const auto& weight, const auto& grad) {
        weights.push_back(weight.template cast<float>());
        grads.push_back(grad.template cast<float>());
      },
      step.grads);

  MoELayer<float> wide(config, 0);
  std::size_t i = 0;
  wide.for_each_parameter([&](const std::string&, auto& weight) { weight = weights[i++]; });
  auto wide_step = run_step(wide, Matrix<float>(x.cast<float>()));
  EXPECT_TRUE(matrix_near(step.y.cast<float>(), wide_step.y, 0.02));
  EXPECT_TRUE(matrix_near(step.dx.cast<float>(), wide_step.dx, 0.02));
  i = 0;
  wide.for_each_parameter(
      [&](const std::string& name, const auto&, const auto& grad) {
        EXPECT_TRUE(matrix_near(grads[i++], grad, 0.02)) << name;
      },
      wide_step.grads);
}

TEST(MoELayerGradient, OfManyRowsInBfloat16IsSummedInFloat) {
  MoEConfig config{.d_model = 3, .d_ff = 3, .num_experts = 1, .top_k = 1};
  config.expert.bias = true;
  const MoELayer<bf16> layer = make_layer<bf16>(config, 9);
  const Matrix<bf16> x = random_matrix<float>(600, 3, 10).cast<bf16>();
  Matrix<bf16> y(600, 3), dx(600, 3);
  MoELayer<bf16>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.backward(x, Matrix<bf16>::Constant(600, 3, bf16(1.0f)), tape, dx, grads);
  EXPECT_EQ(grads.experts[0].down_bias, Matrix<float>::Constant(1, 3, 600.0f));
}

TEST(MoELayerGradient, RefusesAnotherShapeAndOverlappingMemory) {
  const Layer layer = make_layer<double>(small_config(), 12);
  Matrix<double> x = random_matrix<double>(N, 3, 13), dy = random_matrix<double>(N, 2, 14);
  Matrix<double> y(N, 2), dx(N, 3);
  Layer::Tape tape;
  layer.forward(x, y, tape);
  Layer::Grads grads = layer.zero_grads();
  const auto refuses = [&](const Matrix<double>& an_x, const Matrix<double>& a_dy,
                           MatrixRef<double> a_dx, Layer::Grads& some) {
    EXPECT_THROW(layer.backward(an_x, a_dy, tape, a_dx, some), std::invalid_argument);
  };
  refuses(x.topRows(2), dy.topRows(2), dx.topRows(2), grads);
  refuses(x, random_matrix<double>(N, 3, 1), dx, grads);
  refuses(x, dy, y, grads);
  refuses(x, dy, x, grads);
  Layer::Grads wrong = grads;
  wrong.experts.pop_back();
  refuses(x, dy, dx, wrong);
  wrong = grads;
  wrong.experts[1].down.resize(1, 1);
  refuses(x, dy, dx, wrong);
  wrong = grads;
  wrong.router.weight.resize(1, 1);
  refuses(x, dy, dx, wrong);
  RoutingGradient<double> losses;
  losses.probs.setZero(N, E + 1);
  EXPECT_THROW(layer.backward(x, dy, tape, dx, grads, losses), std::invalid_argument);
  EXPECT_TRUE(same_grads(layer, grads, layer.zero_grads())) << "refused before anything is written";
}

}  // namespace
}  // namespace moe::moe_layer_gradient_test
