// SPDX-License-Identifier: Apache-2.0
// Whose a tape is: backward takes that of its own layer's last forward, and no other.
#include "moe/layers/layer_tape.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "moe/layers/moe_layer.hpp"
#include "moe/losses.hpp"
#include "support/layer_contract.hpp"

namespace moe::layer_tape_test {
namespace {

using testing::make_layer;
using testing::message_of;
using testing::random_matrix;
using testing::refusal_after;
using testing::same_bits;
using testing::same_grads;
using Layer = MoELayer<double>;

constexpr Index N = 6;

MoEConfig small_config() {
  return {.d_model = 3, .d_ff = 3, .num_experts = 4, .top_k = 2, .d_out = 2};
}

TEST(LayerTape, TakesOnlyATapeOfThisLayersForward) {
  const Layer layer = make_layer<double>(small_config(), 9), copy = layer;
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2), dx(N, 3);
  Layer::Tape tape, unused;
  layer.forward(x, y, tape);
  Layer::Grads grads = layer.zero_grads();
  EXPECT_THROW(layer.backward(x, dy, unused, dx, grads), std::invalid_argument);
  EXPECT_THROW(copy.backward(x, dy, tape, dx, grads), std::invalid_argument);
  EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));

  Layer::RecomputingTape recomputing(tape);
  EXPECT_THROW(layer.backward(x, dy, recomputing, dx, grads), std::invalid_argument);
  layer.forward(x, y, recomputing);
  EXPECT_THROW(layer.backward(x, dy, tape, dx, grads), std::invalid_argument);
  EXPECT_THROW(copy.backward(x, dy, recomputing, dx, grads), std::invalid_argument);
  EXPECT_NO_THROW(layer.backward(x, dy, recomputing, dx, grads)) << "nothing was lost";
}

TEST(LayerTape, StillTakesATapeAfterAForwardThatWasRefused) {
  MoEConfig config = small_config();
  config.shared = SharedExpertConfig{.d_ff = 2};
  const Layer layer = make_layer<double>(config, 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2), narrow(N, 1), dx(N, 3), want_dx(N, 3);
  Layer::Tape tape;
  Layer::Grads grads = layer.zero_grads(), want = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, want_dx, want);
  EXPECT_THROW(layer.forward(x.leftCols(2), y, tape), std::invalid_argument);
  EXPECT_THROW(layer.forward(x, narrow, tape), std::invalid_argument);
  EXPECT_THROW(layer.forward(x, y, tape, {.tokens = {.sequence_length = 4}}),
               std::invalid_argument);
  EXPECT_THROW(layer.forward(x, y, tape, {.num_threads = -1}), std::invalid_argument);
  layer.backward(x, dy, tape, dx, grads);
  EXPECT_TRUE(same_bits(dx, want_dx) && same_grads(layer, grads, want));
}

TEST(LayerTape, TakesNoTapeIntoWhichOtherTokensWereRouted) {
  const Layer layer = make_layer<double>(small_config(), 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10);
  const Matrix<double> more = random_matrix<double>(90 * N, 3, 11);
  const Matrix<double> dy = random_matrix<double>(90 * N, 2, 12);
  Matrix<double> y(N, 2), dx(90 * N, 3);
  Layer::Grads grads = layer.zero_grads();
  Layer::Tape tape, memory;
  Layer::RecomputingTape recomputing(memory);
  layer.forward(x, y, tape);
  layer.route(more, {}, tape);
  EXPECT_THROW(layer.backward(more, dy, tape, dx, grads), std::invalid_argument);
  layer.forward(x, y, recomputing);
  layer.route(more, {}, recomputing);
  EXPECT_THROW(layer.backward(more, dy, recomputing, dx, grads), std::invalid_argument);
}

TEST(LayerTape, IsStillOneAfterARouteThatWasRefused) {
  const Layer layer = make_layer<double>(small_config(), 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2), dx(N, 3);
  Layer::Grads grads = layer.zero_grads();
  Layer::Tape tape;
  layer.forward(x, y, tape);
  EXPECT_THROW(layer.route(x.leftCols(2), {}, tape), std::invalid_argument);
  EXPECT_THROW(layer.route(x, {.num_threads = -1}, tape), std::invalid_argument);
  EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
}

TEST(LayerTape, OfAnotherSharedExpertIsRefusedBeforeAnythingIsWritten) {
  MoEConfig with_shared = small_config();
  with_shared.shared = SharedExpertConfig{.d_ff = 2};
  const Layer made = make_layer<double>(with_shared, 9),
              plain = make_layer<double>(small_config(), 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2);
  for (const auto& [first, second] :
       {std::pair(&made, &made), std::pair(&made, &plain), std::pair(&plain, &made)}) {
    Layer layer = *first;
    Layer::Tape tape;
    layer.forward(x, y, tape);
    layer.shared() = second->shared();
    Matrix<double> dx = Matrix<double>::Constant(N, 3, 5.0);
    Layer::Grads grads = layer.zero_grads();
    EXPECT_EQ(message_of([&] { layer.backward(x, dy, tape, dx, grads); }),
              "MoELayer: the tape is of another shared expert, expected this layer's");
    EXPECT_TRUE(same_bits(dx, Matrix<double>::Constant(N, 3, 5.0)));
    EXPECT_TRUE(same_grads(layer, grads, layer.zero_grads()));
    layer.forward(x, y, tape);
    EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
  }
}

TEST(LayerTape, OfAnExpertThatWasReplacedIsRefusedBeforeAnythingIsWritten) {
  const Layer layer = make_layer<double>(small_config(), 9);
  for (const auto& [d_ff, gated, output_gate] :
       {std::tuple(3, true, false), {4096, true, false}, {3, false, false}, {3, true, true}}) {
    const Expert<double> other({3, d_ff, 2}, {.gated = gated, .output_gate = output_gate}, 5);
    const std::string text = refusal_after(
        layer, [&](Layer& l) { std::fill(l.experts().begin(), l.experts().end(), other); });
    EXPECT_EQ(text.substr(text.find(':')), ": the tape is of another expert, expected this one's");
    EXPECT_EQ(text.rfind("MoELayer.experts.", 0), 0U) << text;
  }
  EXPECT_EQ(refusal_after(layer, [](Layer& l) { l.experts() = FfnExperts<double>(l.experts()); }),
            "MoELayer.experts: the tape is of another set of experts, expected this one's");
}

TEST(LayerTape, OfTheExpertInASharedExpertThatWasReplacedIsRefused) {
  MoEConfig config = small_config();
  config.shared = SharedExpertConfig{.d_ff = 2};
  EXPECT_EQ(refusal_after(make_layer<double>(config, 9),
                          [](Layer& l) {
                            l.shared()->set()[0] = Expert<double>({3, 4096, 2}, {}, 5);
                          }),
            "MoELayer.shared.0: the tape is of another expert, expected this one's");
}

TEST(LayerTape, OfARouterThatWasReplacedIsRefusedBeforeAnythingIsWritten) {
  MoEConfig noisy = small_config();
  noisy.router.logits.noisy = true;
  const Layer plain = make_layer<double>(small_config(), 9),
              with_noise = make_layer<double>(noisy, 9);
  for (const Layer* before : {&plain, &with_noise}) {
    for (const Layer* after : {&plain, &with_noise}) {
      EXPECT_EQ(refusal_after(*before, [&](Layer& l) { l.router() = after->router(); }),
                "MoELayer.router: the table is of another router, expected this one's");
    }
  }
}

TEST(LayerTape, OfALayerWithinALayerIsRefusedIfThatOrAnExpertInItWasReplaced) {
  using Outer = MoELayer<double, Router<double>, Layer>;
  const auto inner = [](std::uint64_t seed) { return make_layer<double>(small_config(), seed); };
  const Outer outer(Router<double>(3, 2, 2, {}, 1), {inner(2), inner(3)});
  EXPECT_EQ(refusal_after(outer, [&](Outer& o) { o.experts()[1] = inner(4); }),
            "MoELayer.experts.1: the tape is of another layer, expected this one's");
  const std::string text = refusal_after(outer, [&](Outer& o) {
    for (Expert<double>& expert : o.experts()[1].experts()) {
      expert = Expert<double>({3, 4096, 2}, {}, 5);
    }
  });
  EXPECT_EQ(text.rfind("MoELayer.experts.1.experts.", 0), 0U) << text;
  EXPECT_EQ(
      refusal_after(outer, [](Outer& o) { o.experts()[0].router() = o.experts()[1].router(); }),
      "MoELayer.experts.0.router: the table is of another router, expected this one's");
}

// Two layers of a model, their tapes in one memory.
TEST(LayerTape, ThatRecomputesGivesTheBitsOfOneThatKeepsAll) {
  for (int bits = 0; bits < 6; ++bits) {
    MoEConfig config = small_config();
    config.d_out = config.d_model;
    config.weight_on = std::array{WeightOn::output, WeightOn::input, WeightOn::hidden}.at(
        static_cast<std::size_t>(bits % 3));
    if (bits >= 3) {
      config.latent = LatentConfig{.width = 4, .norm = bits % 2 == 0};
    }
    config.expert.output_gate = true;
    config.router.logits = {.input_jitter = 0.2, .noisy = true};
    config.capacity.factor = 1.0;
    config.shared = SharedExpertConfig{.d_ff = 2, .output_gate = true};
    const Layer layers[] = {make_layer<double>(config, 1), make_layer<double>(config, 2)};
    const Matrix<double> x = random_matrix<double>(N, 3, 3), dy = random_matrix<double>(N, 3, 4);
    const CallOptions call{.noise_seed = 5};

    Layer::Tape memory;
    Layer::RecomputingTape tapes[] = {Layer::RecomputingTape(memory),
                                      Layer::RecomputingTape(memory)};
    Matrix<double> y[] = {Matrix<double>(N, 3), Matrix<double>(N, 3)}, dx(N, 3);
    for (const int i : {0, 1}) {
      layers[i].forward(x, y[i], tapes[i], call);
    }
    for (const int i : {1, 0}) {
      Layer::Tape tape;
      Matrix<double> want_y(N, 3), want_dx(N, 3);
      Layer::Grads grads = layers[i].zero_grads(), want = layers[i].zero_grads();
      layers[i].forward(x, want_y, tape, call);
      const auto losses = load_balancing_loss(tape.routing).gradient;
      layers[i].backward(x, dy, tape, want_dx, want, losses);
      layers[i].backward(x, dy, tapes[i], dx, grads,
                         load_balancing_loss(tapes[i].routing).gradient);
      EXPECT_TRUE(same_bits(y[i], want_y) && same_bits(dx, want_dx));
      EXPECT_TRUE(same_grads(layers[i], grads, want));
      layers[i].backward(x, dy, tapes[i], dx, grads, losses);
      EXPECT_TRUE(same_bits(dx, want_dx)) << "backward may be called again";
    }
  }
}

TEST(LayerTape, ThatRecomputesTakesTheExpertsOfNowButNoOtherRouter) {
  Layer layer = make_layer<double>(small_config(), 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2), dx(N, 3), want_dx(N, 3);
  Layer::Tape memory, tape;
  Layer::RecomputingTape recomputing(memory);
  layer.forward(x, y, recomputing);
  for (Expert<double>& expert : layer.experts()) {
    expert = Expert<double>({3, 4096, 2}, {.output_gate = true}, 5);
  }
  Layer::Grads grads = layer.zero_grads(), want = layer.zero_grads();
  layer.backward(x, dy, recomputing, dx, grads);
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, want_dx, want);
  EXPECT_TRUE(same_bits(dx, want_dx) && same_grads(layer, grads, want));
  layer.router() = make_layer<double>(small_config(), 12).router();
  EXPECT_EQ(message_of([&] { layer.backward(x, dy, recomputing, dx, grads); }),
            "MoELayer.router: the table is of another router, expected this one's");
  EXPECT_TRUE(same_grads(layer, grads, want));
}

TEST(LayerTape, OutlivesValuesThatAnOptimiserAssigns) {
  Layer layer = make_layer<double>(small_config(), 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2), dx(N, 3);
  Layer::Tape tape;
  Layer::Grads grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.for_each_parameter([](const ParameterName&, auto& tensor) { tensor *= 0.5; });
  layer.experts()[1].params() = zeros_like(layer.experts()[1].params());
  layer.router().params() = zeros_like(layer.router().params());
  EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
}

TEST(LayerTape, OfOtherProjectionsAroundTheExpertsIsRefusedBeforeAnythingIsWritten) {
  MoEConfig with_latent = small_config();
  with_latent.d_out = with_latent.d_model;
  const Layer plain = make_layer<double>(with_latent, 9);
  with_latent.latent = LatentConfig{.width = with_latent.d_model};
  const Layer made = make_layer<double>(with_latent, 9);
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 3, 11);
  Matrix<double> y(N, 3);
  for (const auto& [first, second] :
       {std::pair(&made, &made), std::pair(&made, &plain), std::pair(&plain, &made)}) {
    Layer layer = *first;
    Layer::Tape tape;
    layer.forward(x, y, tape);
    layer.latent() = second->latent();
    Matrix<double> dx = Matrix<double>::Constant(N, 3, 5.0);
    Layer::Grads grads = layer.zero_grads();
    EXPECT_EQ(message_of([&] { layer.backward(x, dy, tape, dx, grads); }),
              "MoELayer: the tape is of another latent part, expected this layer's");
    EXPECT_TRUE(same_bits(dx, Matrix<double>::Constant(N, 3, 5.0)));
    EXPECT_TRUE(same_grads(layer, grads, layer.zero_grads()));
    layer.forward(x, y, tape);
    EXPECT_NO_THROW(layer.backward(x, dy, tape, dx, grads));
  }
}

TEST(LayerTape, TakesNoTapeThatWasMovedFromButTheOneItWasMovedTo) {
  const Layer layer = make_layer<double>(small_config(), 9);
  const Matrix<double> none_of_them(0, 3), no_dy(0, 2);
  Matrix<double> y(0, 2), dx(0, 3);
  Layer::Grads grads = layer.zero_grads();
  Layer::Tape tape, memory;
  layer.forward(none_of_them, y, tape);
  Layer::Tape moved = std::move(tape);
  EXPECT_THROW(layer.backward(none_of_them, no_dy, tape, dx, grads), std::invalid_argument);
  EXPECT_NO_THROW(layer.backward(none_of_them, no_dy, moved, dx, grads));
  Layer::RecomputingTape recomputing(memory);
  layer.forward(none_of_them, y, recomputing);
  Layer::RecomputingTape other = std::move(recomputing);
  EXPECT_THROW(layer.backward(none_of_them, no_dy, recomputing, dx, grads), std::invalid_argument);
  EXPECT_NO_THROW(layer.backward(none_of_them, no_dy, other, dx, grads));
}

TEST(LayerTape, TakesNoTapeOfALayerThatStoodInItsPlace) {
  std::optional<Layer> layer(make_layer<double>(small_config(), 9));
  const Matrix<double> x = random_matrix<double>(N, 3, 10), dy = random_matrix<double>(N, 2, 11);
  Matrix<double> y(N, 2), dx(N, 3);
  Layer::Tape tape;
  Layer::Grads grads = layer->zero_grads();
  layer->forward(x, y, tape);
  layer.emplace(make_layer<double>(small_config(), 12));
  EXPECT_THROW(layer->backward(x, dy, tape, dx, grads), std::invalid_argument);
  layer->forward(x, y, tape);
  *layer = make_layer<double>(small_config(), 13);
  EXPECT_THROW(layer->backward(x, dy, tape, dx, grads), std::invalid_argument);
}

}  // namespace
}  // namespace moe::layer_tape_test
