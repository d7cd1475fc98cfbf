// SPDX-License-Identifier: Apache-2.0
// The layer of the library is the layer of the headers: parameters, outputs, tables and gradients
// have the same bits in the same instruction set, and errors the same words.
#include "moe/compiled/moe_layer.hpp"

#include <thread>
#include <vector>

#include "compiled_case.hpp"
#include "moe/losses.hpp"
#include "moe/reference.hpp"
#include "support/count_allocations.hpp"
#include "support/matrix_near.hpp"
#include "support/throws.hpp"

namespace moe::moe_layer_test {
namespace {

using testing::full_config;
using testing::infer;
using testing::matrix_near;
using testing::message_of;
using testing::own_set;
using testing::random_matrix;
using testing::same_bits;
using testing::Twins;

constexpr Index tokens = 23;

template <class T>
class CompiledLayerOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16>;
TYPED_TEST_SUITE(CompiledLayerOf, Scalars);

/// Names and values of all that a layer visits, as one text and one list of doubles.
struct Visited {
  std::vector<std::string> names;
  std::vector<Matrix<double>> values;

  template <class Layer>
  explicit Visited(Layer& layer) {
    layer.for_each_parameter(
        [this](const ParameterName& name, const auto& tensor) { add(name, tensor); });
  }
  template <class Layer, class Grads>
  Visited(Layer& layer, Grads& grads) {
    layer.for_each_parameter([this](const ParameterName& name, const auto&,
                                    const auto& gradient) { add(name, gradient); },
                             grads);
  }
  template <class M>
  void add(const ParameterName& name, const M& tensor) {
    names.push_back(name.text() + ' ' + typeid(typename M::Scalar).name());
    values.push_back(tensor.template cast<double>());
  }
};

void expect_same(const Visited& got, const Visited& want) {
  ASSERT_EQ(got.names, want.names);
  for (std::size_t i = 0; i < got.values.size(); ++i) {
    EXPECT_TRUE(same_bits(got.values[i], want.values[i])) << got.names[i];
  }
}

template <class W>
void expect_same(const RoutingTable<W>& got, const RoutingTable<W>& want) {
  EXPECT_TRUE(same_bits(got.expert, want.expert));
  EXPECT_TRUE(same_bits(got.weight, want.weight));
  EXPECT_TRUE(same_bits(got.probs, want.probs));
  EXPECT_TRUE(same_bits(got.logits, want.logits));
  EXPECT_TRUE(same_bits(got.clean_logits, want.clean_logits));
  EXPECT_TRUE(same_bits(got.noise_scale, want.noise_scale));
  EXPECT_EQ(got.padding, want.padding);
  EXPECT_EQ(got.probs_sum_to_one, want.probs_sum_to_one);
}

/// A step of training of either layer, with losses, and all that it leaves.
template <class T, class Layer>
struct Step {
  Step(const Layer& layer, const Matrix<T>& x, const CallOptions& call)
      : y(x.rows(), layer.d_out()), dx(x.rows(), layer.d_in()), grads(layer.zero_grads()) {
    const Matrix<T> dy = random_matrix<T>(x.rows(), layer.d_out(), 7);
    for (int twice = 0; twice < 2; ++twice) {  // gradients are +=
      layer.forward(x, y, tape, call);
      const auto losses = load_balancing_loss(tape.routing) + z_loss(tape.routing);
      layer.backward(x, dy, tape, dx, grads, losses.gradient);
    }
  }

  Matrix<T> y, dx;
  typename Layer::Tape tape;
  typename Layer::Grads grads;
};

TYPED_TEST(CompiledLayerOf, BeginsWithTheParametersOfTheHeaders) {
  const MoELayer<TypeParam> layer(full_config(), 5);
  const compiled::MoELayer<TypeParam> other(full_config(), 5, own_set);
  expect_same(Visited(other), Visited(layer));
  EXPECT_EQ(other.d_in(), 37);
  EXPECT_EQ(other.d_out(), 41);
  EXPECT_EQ(other.num_experts(), 5);
  EXPECT_EQ(other.instruction_set(), own_set);
}

TYPED_TEST(CompiledLayerOf, InfersTheBitsOfTheHeaders) {
  using T = TypeParam;
  const Twins<T> twins(full_config());
  for (const Index rows : {Index(0), Index(1), tokens, Index(200)}) {
    for (const int threads : {1, 2}) {
      const Matrix<T> x = random_matrix<T>(rows, 37, 3);
      const CallOptions call{.num_threads = threads};
      EXPECT_TRUE(same_bits(infer(twins.compiled, x, call), infer(twins.layer, x, call))) << rows;
    }
  }
}

TYPED_TEST(CompiledLayerOf, TrainsWithTheBitsOfTheHeaders) {
  using T = TypeParam;
  const Twins<T> twins(full_config());
  const Matrix<T> x = random_matrix<T>(tokens, 37, 3);
  std::vector<std::uint8_t> padding(static_cast<std::size_t>(tokens), 0);
  padding[4] = 1;
  const CallOptions call{.tokens = {.padding = padding}, .noise_seed = 11};
  Step<T, MoELayer<T>> want(twins.layer, x, call);
  Step<T, compiled::MoELayer<T>> got(twins.compiled, x, call);
  EXPECT_TRUE(same_bits(got.y, want.y));
  EXPECT_TRUE(same_bits(got.dx, want.dx));
  expect_same(got.tape.routing, want.tape.routing);
  expect_same(Visited(twins.compiled, got.grads), Visited(twins.layer, want.grads));
}

TYPED_TEST(CompiledLayerOf, AgreesWithTheReferenceInEveryInstructionSet) {
  using T = TypeParam;
  const double tolerance = std::is_same_v<T, double> ? 1e-12
                           : std::is_same_v<T, bf16> ? 3e-2
                                                     : 1e-5;
  for (const std::string_view set : compiled::instruction_sets()) {
    const Twins<T> twins(full_config(), set);
    const Matrix<T> x = random_matrix<T>(tokens, 37, 3);
    EXPECT_TRUE(
        matrix_near(infer(twins.compiled, x), reference::forward(twins.layer, x), tolerance))
        << set;
    EXPECT_EQ(twins.compiled.instruction_set(), set);
  }
}

using M = Matrix<float>;
using Compiled = compiled::MoELayer<float>;

TEST(CompiledLayer, ObeysWhatACallAsks) {
  const Twins<float> twins(full_config());
  const M x = random_matrix<float>(tokens, 37, 3);
  ExpertMask mask = ExpertMask::Ones(1, 5);
  mask(0, 2) = 0;
  const Matrix<ExpertId> experts = Matrix<ExpertId>::Constant(tokens, 1, 3);
  for (const CallOptions& call :
       {CallOptions{.expert_mask = &mask}, CallOptions{.top_k = 4},
        CallOptions{.capacity = Capacity{.rows = 3}}, CallOptions{.experts = &experts}}) {
    Compiled::Scratch scratch;
    MoELayer<float>::Scratch want;
    M y(tokens, 41), want_y = y;
    twins.compiled.forward(x, y, scratch, call);
    twins.layer.forward(x, want_y, want, call);
    EXPECT_TRUE(same_bits(y, want_y));
    expect_same(scratch.routing, want.routing);
  }
}

TEST(CompiledLayer, ReadsAndWritesBlocksOfLargerMatrices) {
  const Twins<float> twins(full_config());
  const M x = random_matrix<float>(tokens, 50, 3);
  M y = M::Constant(tokens, 60, -1.0F);
  Compiled::Scratch scratch;
  twins.compiled.forward(x.middleCols(5, 37), y.middleCols(10, 41), scratch);
  const M inner = x.middleCols(5, 37);
  EXPECT_TRUE(same_bits(M(y.middleCols(10, 41)), infer(twins.layer, inner)));
  EXPECT_TRUE((y.leftCols(10).array() == -1.0F).all() && (y.rightCols(9).array() == -1.0F).all());
}

TEST(CompiledLayer, SaysWhatTheHeadersSay) {
  const Twins<float> twins(full_config());
  const auto errors = [](const auto& layer) {
    using Layer = std::remove_cvref_t<decltype(layer)>;
    const M x = M::Ones(3, 37);
    M y(3, 41), dx(3, 37);
    typename Layer::Scratch scratch;
    typename Layer::Tape tape, other_tape;
    auto grads = layer.zero_grads();
    const Layer other = layer;
    layer.forward(x, y, tape);
    other.forward(x, y, other_tape);
    RoutingGradient<float> losses;
    losses.weight.setZero(3, 3);
    return std::vector<std::string>{
        message_of([&] { layer.forward(M::Ones(3, 36), y, scratch); }),
        message_of([&] { layer.forward(x, dx, scratch); }),
        message_of([&] { layer.forward(x, y, scratch, {.top_k = 6}); }),
        message_of([&] { layer.backward(x, y, other_tape, dx, grads); }),
        message_of([&] { layer.backward(x, x, tape, dx, grads); }),
        message_of([&] { layer.backward(x, y, tape, dx, grads, losses); }),
        message_of([] { Layer({.d_model = 4, .d_ff = 4, .num_experts = 2, .top_k = 3}, 1); })};
  };
  const auto said = errors(twins.compiled);
  EXPECT_EQ(said, errors(twins.layer));
  for (const std::string& message : said) {
    EXPECT_NE(message, "(nothing was thrown)");
  }
}

TEST(CompiledLayer, RefusesTapesAndGradientsThatAreNotItsOwn) {
  const Compiled layer(full_config(), 1);
  MoEConfig narrow = full_config();
  narrow.d_ff = 8;
  const Compiled other(narrow, 1);
  const M x = M::Ones(3, 37), y = M::Ones(3, 41);
  M dx(3, 37), out = y;
  Compiled::Tape tape, empty;
  auto grads = layer.zero_grads(), others = other.zero_grads(), gone = layer.zero_grads();
  const auto moved = std::move(gone);
  layer.forward(x, out, tape);
  const std::string no_tape = "MoELayer: the tape is of another layer, expected this one's",
                    no_grads = "MoELayer: the gradients are of another layer";
  EXPECT_EQ(message_of([&] { layer.backward(x, y, empty, dx, grads); }), no_tape);
  EXPECT_EQ(message_of([&] { layer.backward(x, y, tape, dx, gone); }), no_grads);
  EXPECT_NE(message_of([&] { layer.backward(x, y, tape, dx, others); }), "(nothing was thrown)");
  EXPECT_EQ(message_of([&] {
              layer.for_each_parameter([](const auto&, const auto&, const auto&) {}, others);
            }),
            no_grads);
  for (const std::string_view set : compiled::instruction_sets()) {
    const Compiled elsewhere(full_config(), 1, set);
    if (set != layer.instruction_set()) {
      EXPECT_EQ(message_of([&] { elsewhere.backward(x, y, tape, dx, grads); }), no_tape);
      elsewhere.forward(x, out, tape);  // makes the tape its own
      EXPECT_EQ(message_of([&] { elsewhere.backward(x, y, tape, dx, grads); }), no_grads);
      layer.forward(x, out, tape);
    }
  }
}

TEST(CompiledLayer, IsCopiedWithItsParametersAndMovedFromIsRefused) {
  Compiled layer(full_config(), 1);
  Compiled copy = layer;
  copy.for_each_parameter([](const auto&, auto& tensor) { tensor.setZero(); });
  const M x = random_matrix<float>(tokens, 37, 3);
  EXPECT_TRUE(infer(copy, x).isZero());
  EXPECT_FALSE(infer(layer, x).isZero());
  copy = layer;
  const Compiled moved = std::move(layer);
  EXPECT_TRUE(same_bits(infer(copy, x), infer(moved, x)));
  EXPECT_EQ(message_of([&] { layer.d_in(); }), "MoELayer: it was moved from");
  EXPECT_EQ(message_of([&] { Compiled again(layer); }), "MoELayer: it was moved from");
}

TEST(CompiledLayer, CopiesGradients) {
  const Compiled layer(full_config(), 1);
  auto grads = layer.zero_grads();
  layer.for_each_parameter([](const auto&, const auto&, auto& g) { g.setOnes(); }, grads);
  auto copy = grads;
  layer.for_each_parameter([](const auto&, const auto&, auto& g) { g.setZero(); }, grads);
  layer.for_each_parameter(
      [](const ParameterName& name, const auto&, const auto& g, const auto& c) {
        EXPECT_TRUE(g.isZero() && c.isOnes()) << name.text();
      },
      grads, copy);
}

TEST(CompiledLayer, IsSharedByThreadsWithAScratchEach) {
  const Compiled layer(full_config(), 1);
  const M x = random_matrix<float>(tokens, 37, 3), want = infer(layer, x, {.num_threads = 1});
  std::vector<M> got(2);
  std::vector<std::thread> threads;
  for (M& y : got) {
    threads.emplace_back([&] { y = infer(layer, x, {.num_threads = 1}); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_TRUE(same_bits(got[0], want) && same_bits(got[1], want));
}

#if MOE_COUNTS_ALLOCATIONS
TEST(CompiledLayer, AllocatesNothingInASteadyState) {
  const Compiled layer(full_config(), 1);
  const M x = random_matrix<float>(tokens, 37, 3);
  M y(tokens, 41), dx(tokens, 37);
  Compiled::Scratch scratch;
  Compiled::Tape tape;
  auto grads = layer.zero_grads();
  const RoutingGradient<float> losses;
  const auto step = [&](Index rows) {
    layer.forward(x.topRows(rows), y.topRows(rows), scratch);
    layer.forward(x.topRows(rows), y.topRows(rows), tape);
    layer.backward(x.topRows(rows), y.topRows(rows), tape, dx.topRows(rows), grads, losses);
  };
  step(tokens);
  step(tokens);
  EXPECT_EQ(testing::count_allocations([&] {
              step(3);
              step(tokens);
            }),
            0);
}
#endif

}  // namespace
}  // namespace moe::moe_layer_test
