// SPDX-License-Identifier: Apache-2.0
// Padding: rows of a batch that are no tokens reach nothing, whatever stands in them.
#include <gtest/gtest.h>

#include "moe/layers.hpp"
#include "moe/losses.hpp"
#include "support/layer_step.hpp"

namespace moe::padding_test {
namespace {

using testing::make_layer;
using testing::random_matrix;
using testing::same_bits;
using testing::same_grads;

/// Rows 1, 2, 6 and 11 of twelve are padding.
constexpr std::uint8_t padding[] = {0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1};

template <class T>
Matrix<T> tokens_of(const Matrix<T>& rows) {
  Matrix<T> tokens(8, rows.cols());
  for (Index row = 0, token = 0; row < 12; ++row) {
    if (padding[row] == 0) {
      tokens.row(token++) = rows.row(row);
    }
  }
  return tokens;
}

template <class T>
Matrix<T> with_nan(Matrix<T> rows) {
  for (Index row = 0; row < 12; ++row) {
    if (padding[row] != 0) {
      rows.row(row).setConstant(Eigen::NumTraits<T>::quiet_NaN());
    }
  }
  return rows;
}

template <class T>
bool is_zero_in_padding(const Matrix<T>& rows) {
  for (Index row = 0; row < 12; ++row) {
    if (padding[row] != 0 && !rows.row(row).isZero(0)) {
      return false;
    }
  }
  return true;
}

std::vector<MoEConfig> configs() {
  const MoEConfig plain{.d_model = 9, .d_ff = 13, .num_experts = 4, .top_k = 2};
  MoEConfig shared = plain, dropping = plain, on_input = plain;
  shared.shared = SharedExpertConfig{.d_ff = 5, .output_gate = true};
  dropping.capacity = {.factor = 0.75, .policy = DropPolicy::probability};
  dropping.shared = SharedExpertConfig{.d_ff = 5};
  on_input.weight_on = WeightOn::input;
  on_input.expert.bias = true;
  return {plain, shared, dropping, on_input};
}

/// A training step: x and dy are NaN where there is padding, and the losses see the table.
template <class T>
struct Step {
  Matrix<T> y, dx;
  typename MoELayer<T>::Grads grads;
  double loss = 0;

  template <class Tape>
  Step(const MoELayer<T>& layer, const Matrix<T>& x, const Matrix<T>& dy, Tape& tape,
       const CallOptions& call)
      : y(x.rows(), layer.d_out()), dx(x.rows(), layer.d_in()), grads(layer.zero_grads()) {
    detail::with_team(detail::num_threads(call.num_threads), [&] {
      layer.forward(x, y, tape, call);
      const auto aux = load_balancing_loss(tape.routing) + z_loss(tape.routing);
      loss = static_cast<double>(aux.value);
      layer.backward(x, dy, tape, dx, grads, aux.gradient);
    });
  }
};

TEST(Padding, ReachesNoOutputNoGradientAndNoLoss) {
  for (const MoEConfig& config : configs()) {
    const MoELayer<float> layer = make_layer<float>(config, 1);
    const Matrix<float> x = random_matrix<float>(12, 9, 2), dy = random_matrix<float>(12, 9, 3);
    MoELayer<float>::Tape tape, memory;
    MoELayer<float>::RecomputingTape recomputing(memory);
    const CallOptions call{.num_threads = 2, .tokens = {.padding = padding}};
    const Step<float> want(layer, tokens_of(x), tokens_of(dy), tape, {.num_threads = 2});
    const auto compare = [&](const Step<float>& got) {
      EXPECT_TRUE(same_bits(tokens_of(got.y), want.y));
      EXPECT_TRUE(same_bits(tokens_of(got.dx), want.dx));
      EXPECT_TRUE(is_zero_in_padding(got.y) && is_zero_in_padding(got.dx));
      EXPECT_TRUE(same_grads(layer, got.grads, want.grads));
      EXPECT_EQ(got.loss, want.loss);
    };
    compare(Step<float>(layer, with_nan(x), with_nan(dy), tape, call));
    compare(Step<float>(layer, with_nan(x), with_nan(dy), recomputing, call));
  }
}

TEST(Padding, ReachesNoOutputOfAPackedLayer) {
  for (const MoEConfig& config : configs()) {
    const auto packed = pack<bf16>(make_layer<float>(config, 1));
    const Matrix<float> x = random_matrix<float>(12, 9, 2);
    Matrix<float> y(12, 9), want(8, 9);
    PackedLayer<bf16>::Scratch scratch;
    packed.forward(tokens_of(x), want, scratch);
    packed.forward(with_nan(x), y, scratch, {.tokens = {.padding = padding}});
    EXPECT_TRUE(same_bits(tokens_of(y), want));
    EXPECT_TRUE(is_zero_in_padding(y));
  }
}

/// Sends every token to expert 0, weighted by its logit, and knows nothing of padding: NaN in x
/// reaches its table and its gradients.
struct FirstExpert {
  using Table = RoutingTable<float>;
  struct Params {
    Matrix<float> weight;

    template <class Visit, class... P>
    static void for_each(Visit&& visit, P&... p) {
      visit(std::string_view("weight"), p.weight...);
    }
  };
  Params own{random_matrix<float>(2, 9, 4)};

  Index num_experts() const { return 2; }
  Params& params() { return own; }
  const Params& params() const { return own; }
  void route(ConstMatrixRef<float> x, const CallOptions&, Table& table) const {
    table.logits.resize(x.rows(), 2);
    for (Index row = 0; row < x.rows(); ++row) {
      table.logits.row(row) = x.row(row) * own.weight.transpose();
    }
    table.probs = table.logits;
    table.expert.setZero(x.rows(), 1);
    table.weight = table.logits.leftCols(1);
  }
  void backward(ConstMatrixRef<float> x, const Table&, RoutingGradient<float>& gradient,
                MatrixRef<float> dx, Params& grads) const {
    GrowingMatrix<float>& dlogits = gradient.logits;
    dlogits += gradient.probs;
    dlogits.col(0) += gradient.weight;
    for (Index row = 0; row < x.rows(); ++row) {  // so that the sum has the order of the rows
      dx.row(row) = dlogits.row(row) * own.weight;
      grads.weight += dlogits.row(row).transpose() * x.row(row);
    }
  }
};

/// A step in which the gradient of the losses is NaN in padding, too.
template <class Tape>
void compare_with_tokens_alone(const MoELayer<float, FirstExpert>& layer, Tape& tape) {
  const Matrix<float> x = random_matrix<float>(12, 9, 2), dy = random_matrix<float>(12, 9, 3);
  const Matrix<float> dlogits = random_matrix<float>(12, 2, 5);
  Matrix<float> y(12, 9), dx(12, 9), want_y(8, 9), want_dx(8, 9);
  auto grads = layer.zero_grads(), want = layer.zero_grads();
  layer.forward(tokens_of(x), want_y, tape);
  layer.backward(tokens_of(x), tokens_of(dy), tape, want_dx, want, {.logits = tokens_of(dlogits)});
  layer.forward(with_nan(x), y, tape, {.num_threads = 2, .tokens = {.padding = padding}});
  layer.backward(with_nan(x), with_nan(dy), tape, dx, grads, {.logits = with_nan(dlogits)});
  EXPECT_TRUE(same_bits(tokens_of(y), want_y) && is_zero_in_padding(y));
  EXPECT_TRUE(same_bits(tokens_of(dx), want_dx) && is_zero_in_padding(dx));
  EXPECT_TRUE(same_grads(layer, grads, want));
  EXPECT_FALSE(grads.router.weight.isZero(0));
}

MoELayer<float, FirstExpert> layer_of_first_expert() {
  const MoEConfig config{.d_model = 9, .d_ff = 13, .num_experts = 2, .top_k = 1};
  return {FirstExpert{}, make_experts<float>(config, 1), {.capacity = Capacity{.rows = 6}}};
}

TEST(Padding, ReachesNothingThroughARouterThatKnowsNothingOfIt) {
  const auto layer = layer_of_first_expert();
  MoELayer<float, FirstExpert>::Tape tape, memory;
  MoELayer<float, FirstExpert>::RecomputingTape recomputing(memory);
  compare_with_tokens_alone(layer, tape);
  compare_with_tokens_alone(layer, recomputing);
}

TEST(Padding, HasNoChoiceNoWeightAndNoScoreInTheTableOfAnyRouter) {
  MoELayer<float, FirstExpert>::Scratch scratch;
  Matrix<float> y(12, 9);
  layer_of_first_expert().forward(with_nan(random_matrix<float>(12, 9, 2)), y, scratch,
                                  {.tokens = {.padding = padding}});
  const auto& table = scratch.routing;
  for (Index row = 0; row < 12; ++row) {
    EXPECT_EQ(table.expert(row, 0), padding[row] != 0 ? none : 0);
  }
  EXPECT_TRUE(is_zero_in_padding<float>(table.weight) && is_zero_in_padding<float>(table.probs));
  EXPECT_FALSE(table.weight.isZero(0) || table.probs.isZero(0));
}

TEST(Padding, ThatAMaskKeepsFromEveryExpertTakesNoRowOfALimitedOne) {
  MoEConfig config{.d_model = 4, .d_ff = 4, .num_experts = 2, .top_k = 1};
  config.capacity.rows = 2;
  const MoELayer<float> layer = make_layer<float>(config, 1);
  const Matrix<float> x = Matrix<float>::Ones(6, 4);  // all want the same expert
  ExpertMask mask = ExpertMask::Ones(6, 2);
  mask.topRows(4).setZero();
  Matrix<float> y(6, 4);
  MoELayer<float>::Scratch scratch;
  layer.forward(x, y, scratch, {.expert_mask = &mask});
  EXPECT_EQ(scratch.kept.num_dropped(), 0);
  EXPECT_EQ(scratch.plan.num_rows(), 2);
  EXPECT_TRUE(y.topRows(4).isZero(0));
  EXPECT_FALSE(y.row(4).isZero(0));
  EXPECT_TRUE(same_bits(y.row(4), y.row(5)));
}

TEST(Padding, MayBeTheWholeBatch) {
  const MoELayer<float> layer = make_layer<float>(configs()[1], 1);
  const std::vector<std::uint8_t> all(12, 1);
  const Matrix<float> nan = Matrix<float>::Constant(12, 9, std::nanf(""));
  MoELayer<float>::Tape tape;
  const Step<float> step(layer, nan, nan, tape, {.tokens = {.padding = all}});
  EXPECT_TRUE(step.y.isZero(0) && step.dx.isZero(0));
  EXPECT_TRUE(same_grads(layer, step.grads, layer.zero_grads()));
  EXPECT_EQ(step.loss, 0.0);
}

TEST(Padding, OfAnotherSizeThanTheBatchIsRefused) {
  const MoELayer<float> layer = make_layer<float>(configs()[0], 1);
  const Matrix<float> x = random_matrix<float>(11, 9, 2);
  Matrix<float> y = Matrix<float>::Constant(11, 9, 5.0F);
  MoELayer<float>::Scratch scratch;
  EXPECT_THROW(layer.forward(x, y, scratch, {.tokens = {.padding = padding}}),
               std::invalid_argument);
  EXPECT_TRUE((y.array() == 5.0F).all());
}

}  // namespace
}  // namespace moe::padding_test
