// SPDX-License-Identifier: Apache-2.0
// params() hands out whole matrices to assign to, and parts of a layer may be replaced. What then
// does not fit is refused with its name at every entry, before anything is written.
#include <gtest/gtest.h>

#include <functional>

#include "moe/layers.hpp"
#include "support/count_allocations.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe::parameter_shapes_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using Layer = MoELayer<float>;
using M = Matrix<float>;

/// Every kind of tensor: D8 F16 E3 K2, a shared expert of 5.
MoEConfig full_config() {
  return {.d_model = 8,
          .d_ff = 16,
          .num_experts = 3,
          .top_k = 2,
          .expert = {.bias = true, .output_gate = true},
          .router = {.logits = {.bias = true, .noisy = true}, .selection = {.bias = true}},
          .shared = SharedExpertConfig{.d_ff = 5, .output_gate = true}};
}

struct Damage {
  const char* message;
  std::function<void(Layer&)> apply;
};

std::vector<Damage> damages() {
  const auto expert = [](auto change) {
    return [change](Layer& layer) { change(layer.experts()[2].params()); };
  };
  const auto router = [](auto change) {
    return [change](Layer& layer) { change(layer.router().params()); };
  };
  const auto shared = [](auto change) {
    return [change](Layer& layer) { change(layer.shared()->params()); };
  };
  return {
      {"experts.2.gate is (0, 0), expected (16, 8)", expert([](auto& p) { p.gate = M(); })},
      {"experts.2.up is (24, 8), expected (16, 8)", expert([](auto& p) { p.up = M::Ones(24, 8); })},
      {"experts.2.down is (16, 8), expected (8, 16)",
       expert([](auto& p) { p.down = M(p.down.transpose()); })},
      {"experts.2.gate_bias is (16, 1), expected (1, 16)",
       expert([](auto& p) { p.gate_bias.resize(16, 1); })},
      {"experts.2.up_bias is (0, 0), expected (1, 16)", expert([](auto& p) { p.up_bias = M(); })},
      {"experts.2.down_bias is (1, 16), expected (1, 8)",
       expert([](auto& p) { p.down_bias = M::Ones(1, 16); })},
      {"experts.2.output_gate is (1, 7), expected (1, 8)",
       expert([](auto& p) { p.output_gate = M::Ones(1, 7); })},
      {"router.weight is (2, 8), expected (3, 8)",
       router([](auto& p) { p.weight = M::Ones(2, 8); })},
      {"router.bias is (0, 0), expected (1, 3)", router([](auto& p) { p.bias.resize(0, 0); })},
      {"router.noise is (3, 7), expected (3, 8)", router([](auto& p) { p.noise.resize(3, 7); })},
      {"router.selection_bias is (1, 4), expected (1, 3)",
       router([](auto& p) { p.selection_bias = M::Ones(1, 4); })},
      {"shared.up is (6, 8), expected (5, 8)", shared([](auto& p) { p.up = M::Ones(6, 8); })},
      {"shared.output_gate is (0, 0), expected (1, 8)",
       shared([](auto& p) { p.output_gate = M(); })},
  };
}

TEST(ParameterShapes, AreCheckedByEveryCallOfALayerBeforeAnythingIsWritten) {
  const M x = random_matrix<float>(6, 8, 1), dy = random_matrix<float>(6, 8, 2);
  for (const Damage& damage : damages()) {
    Layer layer(full_config(), 3);
    Layer::Tape tape, memory;
    Layer::RecomputingTape recomputing(memory);
    Layer::Scratch scratch;
    M y(6, 8), dx = M::Constant(6, 8, 5.0F);
    auto grads = layer.zero_grads();
    layer.forward(x, y, tape);
    layer.forward(x, y, recomputing);
    const M before = tape.routing.weight;
    y.setConstant(5.0F);
    damage.apply(layer);
    const std::string want = std::string("parameter ") + damage.message;
    EXPECT_EQ(message_of([&] { layer.forward(x, y, scratch); }), want);
    EXPECT_EQ(message_of([&] { layer.forward(x, y, tape); }), want);
    EXPECT_EQ(message_of([&] { layer.forward(x, y, recomputing); }), want);
    EXPECT_EQ(message_of([&] { layer.backward(x, dy, tape, dx, grads); }), want);
    EXPECT_EQ(message_of([&] { layer.backward(x, dy, recomputing, dx, grads); }), want);
    EXPECT_TRUE((y.array() == 5.0F).all() && (dx.array() == 5.0F).all()) << want;
    EXPECT_TRUE(testing::same_bits(tape.routing.weight, before)) << want;
    EXPECT_TRUE(testing::same_grads(layer, grads, Layer(full_config(), 3).zero_grads())) << want;
  }
}

TEST(ParameterShapes, OfTheRouterAreCheckedByRoute) {
  Layer layer(full_config(), 3);
  layer.router().params().weight = M::Ones(2, 8);
  Layer::Scratch scratch;
  EXPECT_EQ(message_of([&] { layer.route(random_matrix<float>(6, 8, 1), {}, scratch); }),
            "parameter router.weight is (2, 8), expected (3, 8)");
}

TEST(ParameterShapes, AreCheckedBeforeALayerIsPackedOrItsPartsMakeAnother) {
  for (const Damage& damage : damages()) {
    Layer layer(full_config(), 3);
    damage.apply(layer);
    const std::string want = std::string("parameter ") + damage.message;
    EXPECT_EQ(message_of([&] { pack<float>(layer); }), want);
    EXPECT_EQ(message_of([&] { pack<bf16>(layer); }), want);
    EXPECT_THROW(Layer(layer.router(), layer.experts(), layer.options(), layer.shared()),
                 std::invalid_argument);
  }
}

TEST(ParameterShapes, OfTheRouterOfAPackedLayerAreCheckedByItsCallsAndByUnpack) {
  auto packed = pack<float>(Layer(full_config(), 3));
  packed.router().params().weight = M::Ones(3, 9);
  const M x = random_matrix<float>(6, 8, 1);
  M y = M::Constant(6, 8, 5.0F);
  decltype(packed)::Scratch scratch;
  const char* want = "parameter router.weight is (3, 9), expected (3, 8)";
  EXPECT_EQ(message_of([&] { packed.forward(x, y, scratch); }), want);
  EXPECT_EQ(message_of([&] { unpack<float>(packed); }), want);
  EXPECT_TRUE((y.array() == 5.0F).all());
}

TEST(ParameterShapes, AreCheckedByEachPartAlone) {
  Layer layer(full_config(), 3);
  const M x = random_matrix<float>(6, 8, 1), dy = random_matrix<float>(6, 8, 2);
  M y(6, 8), dx(6, 8);

  Router<float> router = layer.router();
  Router<float>::Table table;
  RoutingGradient<float> gradient;
  auto router_grads = zero_grads_of(router);
  router.route(x, {}, table);
  router.params().bias = M::Ones(3, 1);
  const char* bias = "parameter Router.bias is (3, 1), expected (1, 3)";
  EXPECT_EQ(message_of([&] { router.route(x, {}, table); }), bias);
  EXPECT_EQ(message_of([&] { router.backward(x, table, gradient, dx, router_grads); }), bias);
  EXPECT_EQ(message_of([&] { router.cast<double>(); }), bias);

  Expert<float> expert = layer.experts()[0];
  Expert<float>::Tape tape;
  auto grads = zero_grads_of(expert);
  expert.forward(x, y, tape);
  expert.params().down = M::Ones(8, 8);
  const char* down = "parameter Expert.down is (8, 8), expected (8, 16)";
  EXPECT_EQ(message_of([&] { expert.forward(x, y, tape); }), down);
  EXPECT_EQ(message_of([&] { expert.backward(x, dy, tape, dx, grads); }), down);
  EXPECT_EQ(message_of([&] { PackedExpert<float>{expert}; }), down);

  DenseFfn<float> dense = *layer.shared();
  DenseFfn<float>::Tape dense_tape;
  auto dense_grads = zero_grads_of(dense);
  dense.forward(x, y, dense_tape);
  dense.params().up_bias = M();
  const char* up_bias = "parameter DenseFfn.up_bias is (0, 0), expected (1, 5)";
  EXPECT_EQ(message_of([&] { dense.forward(x, y, dense_tape); }), up_bias);
  EXPECT_EQ(message_of([&] { dense.backward(x, dy, dense_tape, dx, dense_grads); }), up_bias);
}

TEST(ParameterShapes, OfGradientsAreCheckedByAnExpertAlone) {
  const Expert<float> expert({8, 16, 8}, {}, 1);
  const M x = random_matrix<float>(6, 8, 1), dy = random_matrix<float>(6, 8, 2);
  M y(6, 8), dx = M::Constant(6, 8, 5.0F);
  Expert<float>::Tape tape;
  expert.forward(x, y, tape);
  auto grads = zero_grads_of(expert);
  grads.gate.resize(8, 16);
  EXPECT_EQ(message_of([&] { expert.backward(x, dy, tape, dx, grads); }),
            "gradient Expert.gate is (8, 16), expected (16, 8)");
  EXPECT_TRUE((dx.array() == 5.0F).all());
}

TEST(ParameterShapes, OfALayerWithinALayerAreNamedByTheirPath) {
  using Outer = MoELayer<float, Router<float>, Layer>;
  Outer outer(Router<float>(8, 2, 1, {}, 1), {Layer(full_config(), 2), Layer(full_config(), 3)});
  outer.experts()[1].experts()[2].params().up = M::Ones(16, 9);
  const M x = random_matrix<float>(6, 8, 1);
  M y(6, 8);
  Outer::Scratch scratch;
  EXPECT_EQ(message_of([&] { outer.forward(x, y, scratch); }),
            "parameter experts.1.experts.2.up is (16, 9), expected (16, 8)");
  Outer::Tape tape;
  EXPECT_EQ(message_of([&] { outer.forward(x, y, tape); }),
            "parameter experts.1.experts.2.up is (16, 9), expected (16, 8)");
}

TEST(PartsOfALayer, ReplacedByPartsOfOtherSizesAreRefused) {
  const M x = random_matrix<float>(6, 8, 1);
  const auto message = [&](auto replace) {
    Layer layer(full_config(), 3);
    replace(layer);
    M y = M::Constant(6, 8, 5.0F);
    Layer::Scratch scratch;
    const std::string text = message_of([&] { layer.forward(x, y, scratch); });
    EXPECT_TRUE((y.array() == 5.0F).all());
    return text;
  };
  EXPECT_EQ(message([](Layer& layer) { layer.router() = Router<float>(8, 4, 2, {}, 1); }),
            "MoELayer: the router has 4 experts, expected 3");
  EXPECT_EQ(message([](Layer& layer) { layer.router() = Router<float>(9, 3, 2, {}, 1); }),
            "MoELayer: the router is 9 wide, expected 8");
  EXPECT_EQ(message([](Layer& layer) {
              layer.experts()[1] = Expert<float>({8, 4, 9}, {}, 1);
            }),
            "experts: one is 8 to 9 wide, expected 8 to 8");
  EXPECT_EQ(message([](Layer& layer) {
              layer.shared() = DenseFfn<float>({7, 4, 8}, {}, 1);
            }),
            "MoELayer: the shared expert is 7 to 8 wide, expected 8 to 8");
}

/// What a forward of a layer says once it, or what `part` takes out of it, was moved from.
template <class L>
std::string message_after_move(L layer, const std::function<void(L&)>& part) {
  part(layer);
  const M x = random_matrix<float>(6, 8, 1);
  M y = M::Constant(6, 8, 5.0F);
  typename L::Scratch scratch;
  const std::string text = message_of([&] { layer.forward(x, y, scratch); });
  EXPECT_TRUE((y.array() == 5.0F).all());
  return text;
}

TEST(ParameterShapes, OfWhatWasMovedFromAreRefused) {
  const Layer layer(full_config(), 3);
  EXPECT_EQ(message_after_move<Layer>(layer, [](Layer& l) { const Layer moved = std::move(l); }),
            "MoELayer: the router has 3 experts, expected 0");
  EXPECT_EQ(message_after_move<Layer>(
                layer, [](Layer& l) { const DenseFfn<float> moved = std::move(*l.shared()); }),
            "MoELayer: the shared expert is 0 to 0 wide, expected 8 to 8");
  using Dense = DenseFfn<float>;
  EXPECT_EQ(message_after_move<Dense>(*layer.shared(),
                                      [](Dense& l) { const Dense moved = std::move(l); }),
            "Dense: the set has 0 experts, expected 1");
  using Packed = PackedLayer<float>;
  EXPECT_EQ(message_after_move<Packed>(pack<float>(layer),
                                       [](Packed& l) { const Packed moved = std::move(l); }),
            "MoELayer: the router has 3 experts, expected 0");
}

#if MOE_COUNTS_ALLOCATIONS
TEST(ParameterShapes, AreCheckedWithoutAnAllocation) {
  const Layer layer(full_config(), 3);
  EXPECT_EQ(testing::count_bytes([&] { layer.check_params({}); }), 0u);
}
#endif

}  // namespace
}  // namespace moe::parameter_shapes_test
