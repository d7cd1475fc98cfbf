// SPDX-License-Identifier: Apache-2.0
// A batch in micro-batches: gradients that are added up are those of the batch, if each part of the
// loss is a sum over tokens and is scaled as one; for either tape, whose bytes are what they are
// said to be.
#include <gtest/gtest.h>

#include "../support/count_allocations.hpp"
#include "../support/layer_step.hpp"
#include "moe/cost/tape_bytes.hpp"
#include "moe/losses.hpp"
#include "moe/train/expert_load.hpp"

namespace moe::micro_batches_test {
namespace {

using testing::make_layer;
using testing::matrix_near;
using testing::random_matrix;
using Layer = MoELayer<double>;

constexpr Index tokens = 24, width = 6;

MoEConfig config() {
  return {.d_model = width,
          .d_ff = 5,
          .num_experts = 4,
          .top_k = 2,
          .expert = {.bias = true},
          .shared = SharedExpertConfig{.d_ff = 4}};
}

/// The gradients of half the squared norm of the output, the mean over all tokens, and of a loss of
/// the router that `router_loss` gives for a table and its share of the tokens.
template <class RouterLoss>
Layer::Grads gradients(const Layer& layer, const std::vector<Index>& sizes, bool recompute,
                       const RouterLoss& router_loss) {
  const Matrix<double> x = random_matrix<double>(tokens, width, 2);
  Layer::Grads grads = layer.zero_grads();
  Layer::Tape tape;
  Layer::RecomputingTape recomputing(tape);
  Index begin = 0;
  for (const Index size : sizes) {
    const Matrix<double> part = x.middleRows(begin, size);
    Matrix<double> y(size, width), dx(size, width);
    const double share = static_cast<double>(size) / static_cast<double>(tokens);
    const auto step = [&](auto& memory) {
      layer.forward(part, y, memory);
      const Matrix<double> dy = y / static_cast<double>(tokens);  // of the batch, not of the part
      layer.backward(part, dy, memory, dx, grads, router_loss(memory.routing, share).gradient);
    };
    if (recompute) {
      step(recomputing);
    } else {
      step(tape);
    }
    begin += size;
  }
  return grads;
}

/// The largest difference over the largest element, of the router's weights.
double off(const Layer::Grads& got, const Layer::Grads& want) {
  return (got.router.weight - want.router.weight).cwiseAbs().maxCoeff() /
         want.router.weight.cwiseAbs().maxCoeff();
}

template <class RouterLoss>
void expect_linear(const RouterLoss& router_loss) {
  const Layer layer = make_layer<double>(config(), 1);
  const Layer::Grads want = gradients(layer, {tokens}, false, router_loss);
  for (const auto& sizes : {std::vector<Index>{8, 8, 8}, std::vector<Index>{1, 16, 7}}) {
    const Layer::Grads got = gradients(layer, sizes, false, router_loss);
    layer.for_each_parameter(
        [](const ParameterName& name, const auto&, const auto& part, const auto& all) {
          EXPECT_TRUE(matrix_near(part, all, 1e-13)) << name.text();
        },
        got, want);
    EXPECT_TRUE(testing::same_grads(layer, gradients(layer, sizes, true, router_loss), got))
        << "the recomputing tape gives the same bits";
  }
}

TEST(MicroBatches, AddUpToTheGradientsOfTheBatch) {
  expect_linear([](const auto&, double) { return RoutingLoss<double>{}; });
}

TEST(MicroBatches, AddUpWithALossThatIsAMeanOverTokensTimesTheirShare) {
  expect_linear(
      [](const RoutingTable<double>& table, double share) { return share * z_loss(table); });
}

std::vector<Index> choices_of_batch(const Layer& layer) {
  Layer::Scratch scratch;
  const Matrix<double> x = random_matrix<double>(tokens, width, 2);
  Matrix<double> y(tokens, width);
  layer.forward(x, y, scratch);
  ExpertLoad load(4);
  load.add(scratch.routing);
  return load.choices();
}

TEST(MicroBatches, AddUpWithBalanceOverTheGlobalBatch) {
  const std::vector<Index> choices = choices_of_batch(make_layer<double>(config(), 1));
  const auto loss = [&](const RoutingTable<double>& table, double share) {
    return share * global_balancing_loss<double>(table, choices);
  };
  expect_linear(loss);
  const Layer layer = make_layer<double>(config(), 1);
  const auto of_whole = [](const RoutingTable<double>& table, double share) {
    return share * load_balancing_loss(table);
  };
  EXPECT_LT(
      off(gradients(layer, {tokens}, false, loss), gradients(layer, {tokens}, false, of_whole)),
      1e-13);
}

TEST(MicroBatches, DoNotAddUpWithBalanceOfEachByItself) {
  const Layer layer = make_layer<double>(config(), 1);
  const auto loss = [](const RoutingTable<double>& table, double share) {
    return share * load_balancing_loss(table);
  };
  EXPECT_GT(off(gradients(layer, {8, 8, 8}, false, loss), gradients(layer, {tokens}, false, loss)),
            1e-3);
}

#if MOE_COUNTS_ALLOCATIONS
/// Bytes of a step of so many layers on a batch in micro-batches, without what products pack in.
double bytes_of_step(const MoEConfig& c, Index layers, Index batch, Index parts, bool recompute) {
  using Narrow = MoELayer<float>;
  std::vector<Narrow> model;
  for (Index i = 0; i < layers; ++i) {
    model.emplace_back(c, static_cast<std::uint64_t>(i));
  }
  const Index size = batch / parts;
  const Matrix<float> x = random_matrix<float>(size, c.d_model, 3);
  Matrix<float> y(size, c.d_model), dx(size, c.d_model);
  auto grads = model[0].zero_grads();
  std::vector<Narrow::Tape> tapes(static_cast<std::size_t>(recompute ? 1 : layers));
  std::vector<Narrow::RecomputingTape> again;
  for (Index i = 0; recompute && i < layers; ++i) {
    again.emplace_back(tapes[0]);
  }
  const auto step = [&](auto& memory) {
    for (Index part = 0; part < parts; ++part) {
      for (std::size_t i = 0; i < model.size(); ++i) {
        model[i].forward(x, y, memory[i], {.num_threads = 1});
      }
      for (std::size_t i = model.size(); i-- > 0;) {
        model[i].backward(x, y, memory[i], dx, grads);
      }
    }
  };
  const std::size_t all = testing::count_bytes([&] {
    if (recompute) {
      step(again);
    } else {
      step(tapes);
    }
  });
  const double packing = static_cast<double>(kernels::GemmMemory<float>::most_bytes);
  return static_cast<double>(all) - static_cast<double>(layers) * 65536 -
         (recompute ? 1.0 : static_cast<double>(layers)) * packing;
}

// Rows of 48 and 80 floats are not padded.
TEST(MicroBatches, TakeTheBytesThatTheirTapesAreSaidToHave) {
  const MoEConfig c{.d_model = 48, .d_ff = 80, .num_experts = 6, .top_k = 2};
  for (const Index parts : {1, 4}) {
    const TapeBytes each = tape_bytes(c, predicted_work(c, 1200 / parts), sizeof(float));
    EXPECT_NEAR(bytes_of_step(c, 3, 1200, parts, false) / (3 * each.total()), 1.0, 0.03) << parts;
    EXPECT_NEAR(bytes_of_step(c, 3, 1200, parts, true) / (3 * each.routing + each.rows), 1.0, 0.03)
        << parts;
  }
}
#endif

}  // namespace
}  // namespace moe::micro_batches_test
