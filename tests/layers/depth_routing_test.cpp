// SPDX-License-Identifier: Apache-2.0
// Mixture-of-Depths around a layer with a router of its own: what that layer is told of the taken
// tokens, where its routing is found, and the gradient of its losses.
#include <gtest/gtest.h>

#include "moe/losses/balance.hpp"
#include "support/depth_layers.hpp"
#include "support/finite_difference.hpp"
#include "support/throws.hpp"

namespace moe {

template class DepthLayer<double, MoELayer<double>>;

}  // namespace moe

namespace moe::depth_routing_test {
namespace {

using testing::random_matrix;
using testing::same_bits;
using namespace testing::depth;

using Inner = MoELayer<double>;
using Layer = DepthLayer<double, Inner>;

const MoEConfig inner_config{.d_model = D, .d_ff = 7, .num_experts = 4, .top_k = 2};

Layer make_layer(const MoEConfig& config = inner_config, double capacity = 0.6) {
  return make_depth<double>(testing::make_layer<double>(config, 11), {.capacity = capacity});
}

/// The rows of a matrix that a tape took.
Matrix<double> taken_rows(const Matrix<double>& rows, const Layer::Tape& tape) {
  Matrix<double> taken(tape.taken.count(), rows.cols());
  for (Index i = 0; i < taken.rows(); ++i) {
    taken.row(i) = rows.row(tape.taken.token()[static_cast<std::size_t>(i)]);
  }
  return taken;
}

TEST(DepthRouting, IsThatOfTheInnerLayerForTheTakenTokensAlone) {
  for (const Tokens& tokens : all_tokens()) {
    for (const auto& capacity : {Capacity{}, Capacity{.factor = 0.7}, Capacity{.rows = 1}}) {
      MoEConfig config = inner_config;
      config.capacity = capacity;
      const Layer layer = make_layer(config);
      const auto x = random_matrix<double>(N, D, 1);
      Matrix<double> y(N, D);
      Layer::Tape tape;
      layer.forward(x, y, tape, {.tokens = tokens});
      ASSERT_GT(tape.taken.count(), 0);

      // Each sequence of taken tokens by itself, for which a capacity is counted.
      const Matrix<double> rows = taken_rows(x, tape);
      const Tokens inner = tape.taken.tokens();
      Index kept = 0;
      for (Index b = 0; b < inner.num_sequences(rows.rows()); ++b) {
        const Sequence sequence = inner.sequence(b, rows.rows());
        const Index size = sequence.end - sequence.begin;
        Matrix<double> alone(size, D);
        Inner::Tape of_one;
        layer.block().forward(rows.middleRows(sequence.begin, size), alone, of_one);
        EXPECT_TRUE(same_bits(alone, tape.rows.middleRows(sequence.begin, size)));
        EXPECT_TRUE(same_bits(of_one.routing.weight,
                              tape.block.routing.weight.middleRows(sequence.begin, size)));
        kept += of_one.plan.num_rows();
      }
      EXPECT_EQ(tape.block.plan.num_rows(), kept);
      EXPECT_EQ(tape.block.plan.num_tokens(), tape.taken.count());
    }
  }
}

/// A block that keeps what it was told, and passes its rows on.
struct Listener {
  struct Scratch {
    std::vector<Index> position, offset;
    std::vector<std::int32_t> ids;
    bool padded = false;
  };
  Index d_in() const { return D; }
  Index d_out() const { return D; }
  void forward(ConstMatrixRef<double> x, MatrixRef<double> y, Scratch& heard,
               const CallOptions& call = {}) const {
    const Tokens& tokens = call.tokens;
    heard.position.assign(tokens.position.begin(), tokens.position.end());
    heard.offset.assign(tokens.sequence_offset.begin(), tokens.sequence_offset.end());
    heard.ids.assign(tokens.ids.begin(), tokens.ids.end());
    heard.padded = !tokens.padding.empty();
    y = x;
  }
};

TEST(DepthRouting, TellsABlockTheIdsTheSequencesAndThePositionsOfItsRows) {
  using Told = DepthLayer<double, Listener>;
  const auto layer = make_depth<double>(Listener{}, {.capacity = 0.5});
  const auto x = random_matrix<double>(N, D, 2);
  std::vector<std::int32_t> ids(N);
  std::vector<Index> position(N);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    ids[t] = 100 + static_cast<std::int32_t>(t);
    position[t] = 3 * static_cast<Index>(t);
  }
  Matrix<double> y(N, D);
  for (const bool given : {false, true}) {
    Told::Scratch scratch;
    Tokens tokens{.ids = ids, .sequence_offset = ragged, .padding = padding};
    tokens.position = given ? std::span<const Index>(position) : std::span<const Index>();
    layer.forward(x, y, scratch, {.tokens = tokens});
    const auto& heard = scratch.block;
    const auto taken = scratch.taken.token();
    ASSERT_EQ(heard.position.size(), taken.size());
    ASSERT_EQ(heard.ids.size(), taken.size());
    EXPECT_EQ(heard.offset.size(), ragged.size());
    EXPECT_FALSE(heard.padded);
    for (std::size_t i = 0; i < taken.size(); ++i) {
      EXPECT_EQ(heard.position[i], (given ? 3 : 1) * taken[i]);
      EXPECT_EQ(heard.ids[i], 100 + taken[i]);
      EXPECT_EQ(padding[static_cast<std::size_t>(taken[i])], 0);
    }
    for (std::size_t b = 0; b + 1 < heard.offset.size(); ++b) {
      for (Index i = heard.offset[b]; i < heard.offset[b + 1]; ++i) {
        const Index token = taken[static_cast<std::size_t>(i)];
        EXPECT_TRUE(token >= ragged[b] && token < ragged[b + 1]);
      }
    }
  }
}

/// Of the sum of y * dy and of the loss of the inner router: the worst tensor's error.
double worst_gradient_error(const MoEConfig& config, const Tokens& tokens) {
  Layer layer = make_layer(config);
  Matrix<double> x = random_matrix<double>(N, D, 3), y(N, D), dx(N, D);
  const auto dy = random_matrix<double>(N, D, 4);
  const CallOptions call{.tokens = tokens};
  constexpr double coefficient = 0.8;
  Layer::Tape tape, again;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape, call);
  const auto loss = coefficient * load_balancing_loss(tape.block.routing);
  layer.backward(x, dy, tape, dx, grads, {}, {}, loss.gradient);
  const auto f = [&] {
    layer.forward(x, y, again, call);
    const double balance = coefficient * load_balancing_loss(again.block.routing).value;
    return y.cwiseProduct(dy).sum() + balance;
  };
  for (Index t = 0; t < N; ++t) {
    if (tape.routing.is_padding(t)) {
      EXPECT_TRUE(dx.row(t).isZero(0));
    }
  }
  double worst = testing::gradient_error(f, x, dx);
  layer.for_each_parameter(
      [&](const ParameterName&, Matrix<double>& parameter, const Matrix<double>& gradient) {
        worst = std::max(worst, testing::gradient_error(f, parameter, gradient));
      },
      grads);
  EXPECT_GT(loss.gradient.probs.cwiseAbs().maxCoeff(), 1e-3);
  return worst;
}

TEST(DepthRouting, HasTheGradientsOfCentralDifferencesWithALossOfTheInnerRouter) {
  for (const Tokens& tokens : all_tokens()) {
    for (const auto& capacity : {Capacity{}, Capacity{.rows = 1}}) {
      MoEConfig config = inner_config;
      config.capacity = capacity;
      EXPECT_LT(worst_gradient_error(config, tokens), 1e-7);
    }
  }
}

TEST(DepthRouting, OfNoTakenTokensIsEmptyWhateverTheTapeHeldBefore) {
  const Layer layer = make_layer();
  const auto x = random_matrix<double>(N, D, 5), dy = random_matrix<double>(N, D, 6);
  Matrix<double> y(N, D), dx(N, D);
  Layer::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  EXPECT_GT(tape.block.plan.num_rows(), 0);
  const ExpertMask nobody = ExpertMask::Zero(1, 1);
  layer.forward(x, y, tape, {.expert_mask = &nobody});
  EXPECT_EQ(tape.block.routing.num_tokens(), 0);
  EXPECT_EQ(tape.block.plan.num_rows(), 0);
  const auto loss = load_balancing_loss(tape.block.routing);
  EXPECT_EQ(loss.value, 0.0);
  layer.backward(x, dy, tape, dx, grads, {}, {}, loss.gradient);
  EXPECT_TRUE(same_bits(y, x));
  EXPECT_TRUE(same_bits(dx, dy));
}

TEST(DepthRouting, RefusesLossesThatDoNotFitBeforeAnythingIsWritten) {
  const Layer layer = make_layer();
  const auto x = random_matrix<double>(N, D, 7);
  Matrix<double> y(N, D), dx = Matrix<double>::Constant(N, D, 3.0);
  Layer::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  RoutingGradient<double> losses;
  losses.probs.setZero(N, 4);  // of the batch, not of the taken tokens
  EXPECT_EQ(testing::message_of([&] { layer.backward(x, y, tape, dx, grads, {}, {}, losses); }),
            "RoutingGradient: probs is (12, 4), expected (8, 4)");
  EXPECT_EQ(dx.minCoeff(), 3.0);

  const auto plain = make_depth<double>(make_ffn<double>(), {.capacity = 0.6});
  DepthLayer<double>::Tape plain_tape;
  auto plain_grads = plain.zero_grads();
  plain.forward(x, y, plain_tape);
  EXPECT_THROW(plain.backward(x, y, plain_tape, dx, plain_grads, {}, {}, losses),
               std::invalid_argument);
}

}  // namespace
}  // namespace moe::depth_routing_test
