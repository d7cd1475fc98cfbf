// SPDX-License-Identifier: Apache-2.0
// Layers of the user's own parts: any router packs in every storage, a layer stands where an expert
// can, and a router that may choose many experts but chooses few costs what those few cost.
#include <gtest/gtest.h>

#include <algorithm>

#include "moe/layers.hpp"
#include "moe/losses.hpp"
#include "support/count_allocations.hpp"
#include "support/finite_difference.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe::own_parts_test {
namespace {

using testing::forward;
using testing::make_layer;
using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

/// Token t goes to the experts t, t + 1, ... mod E, `used` of its `choices`; the rest is `none`.
template <class W>
struct RoundRobin {
  using Table = RoutingTable<W>;
  Index experts, choices = 2, used = 2;

  Index num_experts() const { return experts; }
  void route(ConstMatrixRef<W> x, const CallOptions&, Table& table) const {
    table.expert.setConstant(x.rows(), choices, none);
    table.weight.setZero(x.rows(), choices);
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index i = 0; i < used; ++i) {
        const Index k = i * choices / used;
        table.expert(t, k) = static_cast<ExpertId>((t + i) % experts);
        table.weight(t, k) = W(0.75) - W(0.5) * static_cast<W>(i);
      }
    }
  }
};
static_assert(RouterLike<RoundRobin<float>, float> && !TrainableRouter<RoundRobin<float>, float>);

template <class S>
class OwnRouter : public ::testing::Test {};
using Storages = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(OwnRouter, Storages);

TYPED_TEST(OwnRouter, PacksInEveryStorage) {
  using S = TypeParam;
  using W = Wide<S>;
  const MoEConfig config{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 2};
  const MoELayer<W, RoundRobin<W>> layer(RoundRobin<W>{5}, make_experts<W>(config, 3), {},
                                         DenseFfn<W>({37, 21, 37}, ExpertConfig{}, 4));
  const auto packed = pack<S>(layer);
  const Matrix<W> x = random_matrix<W>(40, 37, 5);
  if constexpr (std::same_as<S, W>) {
    EXPECT_TRUE(same_bits(forward(packed, x), forward(layer, x)));
    EXPECT_TRUE(same_bits(forward(unpack<S>(packed), x), forward(layer, x)));
  } else {
    EXPECT_TRUE(matrix_near(forward(packed, x), forward(layer, x), 1.0 / 128));
  }
}

/// The expert of the largest logit, with a weight of one half.
template <class W>
struct Greedy {
  using Params = NoParams;

  Index top_k() const { return 1; }
  void route(const Params&, const TokenRoute<W>& token) const {
    const W* best = std::max_element(token.logits, token.logits + token.num_experts);
    token.expert[0] = static_cast<ExpertId>(best - token.logits);
    token.weight[0] = W(0.5);
    std::fill_n(token.probs, token.num_experts, W(0));
  }
  template <class V>
  Greedy<V> cast() const {
    return {};
  }
};

/// S packs a layer of T, whose router is our gate with a rule of the user's.
template <class S, class T>
void expect_own_rule_packs(double tolerance) {
  using W = Wide<T>;
  using Router = GatedRouter<T, LinearGate<T>, Greedy<W>>;
  const LinearGate<T> gate(37, 5, {.bias = true});
  LinearGateParams<W> params = gate.initial_params(8);
  testing::randomise(params, 9);
  const MoEConfig config{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 1};
  const MoELayer<T, Router> layer(Router(gate, {}, {params, {}}), make_experts<T>(config, 3));
  const auto packed = pack<S>(layer);
  const Matrix<T> x = random_matrix<T>(40, 37, 5);
  const Matrix<Wide<S>> want = forward(layer, x).template cast<Wide<S>>();
  EXPECT_TRUE(
      matrix_near(forward(packed, Matrix<Wide<S>>(x.template cast<Wide<S>>())), want, tolerance));
}

TEST(OwnRouter, ThatDoesNotKnowOfTopKOrExpertsOfACallIsRefusedWithThem) {
  const MoEConfig config{.d_model = 37, .d_ff = 53, .num_experts = 5, .top_k = 2};
  const MoELayer<float, RoundRobin<float>> layer(RoundRobin<float>{5},
                                                 make_experts<float>(config, 3));
  const Matrix<float> x = random_matrix<float>(4, 37, 2);
  Matrix<float> y(4, 37);
  decltype(layer)::Scratch scratch;
  EXPECT_EQ(message_of([&] { layer.forward(x, y, scratch, {.top_k = 3}); }),
            "CallOptions: the router chose 2 experts a token, expected top_k = 3");
  Matrix<ExpertId> experts(4, 2);
  experts << 0, 1, 1, 2, 0, 4, 3, 4;
  EXPECT_EQ(message_of([&] { layer.forward(x, y, scratch, {.experts = &experts}); }),
            "CallOptions: the router chose expert 2 for token 2, expected one of `experts`");
}

TEST(OwnRouter, OfOurGateAndTheUsersRulePacksALayerOfAnyScalarInAnyStorage) {
  expect_own_rule_packs<bf16, bf16>(1.0 / 64);
  expect_own_rule_packs<bf16, float>(1.0 / 64);
  expect_own_rule_packs<float, Eigen::half>(1.0 / 256);
  expect_own_rule_packs<float, double>(1e-5);
}

#if MOE_COUNTS_ALLOCATIONS
/// Bytes that a first inference and a first step of training take.
template <class Layer>
std::size_t bytes_of_a_call(const Layer& layer) {
  const Matrix<float> x = random_matrix<float>(400, layer.d_in(), 6);
  Matrix<float> y(400, layer.d_out());
  typename Layer::Scratch scratch;
  return testing::count_bytes([&] { layer.forward(x, y, scratch, {.num_threads = 1}); });
}

TEST(OwnRouter, ThatMayChooseAllOf64ExpertsButChoosesTwoTakesTheMemoryOfTwo) {
  const MoEConfig config{.d_model = 64, .d_ff = 96, .num_experts = 64, .top_k = 2};
  const auto layer_of = [&](const RoundRobin<float>& router) {
    return MoELayer<float, RoundRobin<float>>(router, make_experts<float>(config, 7));
  };
  const auto two = layer_of({64, 2, 2}), ragged = layer_of({64, 64, 2});
  const Matrix<float> x = random_matrix<float>(400, 64, 6);
  EXPECT_TRUE(same_bits(forward(ragged, x), forward(two, x)));
  EXPECT_LE(bytes_of_a_call(ragged), bytes_of_a_call(two) * 3 / 2);
  const auto packed_two = pack<float>(two), packed_ragged = pack<float>(ragged);
  EXPECT_TRUE(same_bits(forward(packed_ragged, x), forward(packed_two, x)));
  EXPECT_LE(bytes_of_a_call(packed_ragged), bytes_of_a_call(packed_two) * 3 / 2);
}
#endif

using Inner = MoELayer<double>;
using Outer = MoELayer<double, Router<double>, Inner>;
static_assert(TrainableExpert<Inner, double> && TrainableExpert<Outer, double>);

Outer layer_of_layers() {
  const MoEConfig config{.d_model = 3, .d_ff = 4, .num_experts = 2, .top_k = 1};
  std::vector<Inner> layers;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    layers.push_back(make_layer<double>(config, seed));
  }
  return Outer(Router<double>(3, 3, 2, {}, 9), std::move(layers));
}

TEST(LayerOfLayers, IsTheWeightedSumOfItsLayers) {
  const Outer outer = layer_of_layers();
  const Matrix<double> x = random_matrix<double>(11, 3, 2);
  Outer::Scratch scratch;
  Matrix<double> y(11, 3), want = Matrix<double>::Zero(11, 3);
  outer.forward(x, y, scratch);
  for (Index t = 0; t < 11; ++t) {
    for (Index k = 0; k < 2; ++k) {
      const auto& inner = outer.experts()[static_cast<std::size_t>(scratch.routing.expert(t, k))];
      want.row(t) += scratch.routing.weight(t, k) * forward(inner, Matrix<double>(x.row(t)));
    }
  }
  EXPECT_TRUE(matrix_near(y, want, 1e-14));
}

TEST(LayerOfLayers, NamesItsParametersByTheirPlace) {
  const Outer outer = layer_of_layers();
  std::vector<std::string> names;
  outer.for_each_parameter(
      [&](const ParameterName& name, const auto&) { names.push_back(name.text()); });
  EXPECT_EQ(names.front(), "router.weight");
  EXPECT_EQ(names.at(1), "experts.0.router.weight");
  EXPECT_EQ(names.back(), "experts.2.experts.1.down");
  EXPECT_EQ(names.size(), 1u + 3u * (1u + 2u * 3u));
}

TEST(LayerOfLayers, HasTheGradientsOfCentralDifferences) {
  Outer outer = layer_of_layers();
  Matrix<double> x = random_matrix<double>(4, 3, 12), y(4, 3), dx(4, 3);
  const Matrix<double> dy = random_matrix<double>(4, 3, 13);
  Outer::Tape tape;
  auto grads = outer.zero_grads();
  outer.forward(x, y, tape, {.num_threads = 1});
  outer.backward(x, dy, tape, dx, grads);
  Outer::Scratch scratch;
  const auto f = [&] {
    outer.forward(x, y, scratch, {.num_threads = 1});
    return (y.array() * dy.array()).sum();
  };
  EXPECT_LT(testing::gradient_error(f, x, dx), 1e-7);
  outer.for_each_parameter(
      [&](const ParameterName& name, Matrix<double>& parameter, const Matrix<double>& grad) {
        EXPECT_LT(testing::gradient_error(f, parameter, grad), 1e-7) << name.text();
      },
      grads);
}

TEST(LayerOfLayers, HasTheSameBitsForAnyThreadCount) {
  const Outer outer = layer_of_layers();
  const Matrix<double> x = random_matrix<double>(90, 3, 14);
  const auto one = testing::run_step(outer, x, {.num_threads = 1});
  for (const int threads : {2, 3}) {
    const auto many = testing::run_step(outer, x, {.num_threads = threads});
    EXPECT_TRUE(same_bits(many.y, one.y) && same_bits(many.dx, one.dx)) << threads;
    EXPECT_TRUE(testing::same_grads(outer, many.grads, one.grads)) << threads;
  }
}

TEST(LayerOfLayers, LearnsAMapThatItsInputsDecide) {
  Outer outer = layer_of_layers();
  const Matrix<double> x = random_matrix<double>(64, 3, 15);
  Matrix<double> target = -x;
  for (Index t = 0; t < 64; ++t) {
    if (x(t, 0) > 0) {
      target.row(t) = x.row(t).reverse();
    }
  }
  Matrix<double> y(64, 3), dx(64, 3);
  Outer::Tape tape;
  double first = 0, loss = 0;
  for (int step = 0; step < 300; ++step) {
    outer.forward(x, y, tape, {.num_threads = 1});
    const Matrix<double> dy = (y - target) / 64.0;
    loss = 0.5 * 64.0 * dy.squaredNorm();
    first = step == 0 ? loss : first;
    auto grads = outer.zero_grads();
    outer.backward(x, dy, tape, dx, grads, (0.01 * load_balancing_loss(tape.routing)).gradient);
    outer.for_each_parameter([](const auto&, auto& p, const auto& g) { p -= 0.3 * g; }, grads);
  }
  EXPECT_LT(loss, 0.3 * first);
}

}  // namespace
}  // namespace moe::own_parts_test
