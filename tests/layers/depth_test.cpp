// SPDX-License-Identifier: Apache-2.0
// Mixture-of-Depths: against plain loops with blocks of several kinds, gradients with losses, what
// is causal, and the contract.
#include "moe/layers/depth.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "moe/losses/selection.hpp"
#include "moe/reference/depth.hpp"
#include "support/count_allocations.hpp"
#include "support/finite_difference.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe {

template class TopTokens<float>;
template class DepthLayer<float>;
template class DepthLayer<double>;
template class DepthLayer<bf16>;

namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

constexpr Index N = 12, D = 5;
const std::vector<Index> ragged = {0, 5, 5, 6, 8, 12};
/// Of `ragged` one sequence is padding alone, and one has some.
const std::vector<std::uint8_t> padding = {0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0};

std::vector<Tokens> all_tokens() {
  return {{},
          {.sequence_length = 4},
          {.sequence_offset = ragged},
          {.padding = padding},
          {.sequence_offset = ragged, .padding = padding}};
}

/// A block that mixes the tokens it gets of a sequence: each becomes their mean times a factor.
class Mean {
 public:
  struct Params {
    Matrix<double> factor = Matrix<double>::Constant(1, 1, 0.75);
    template <class Visit, class... P>
    static void for_each(Visit&& visit, P&... p) {
      visit(std::string_view("factor"), p.factor...);
    }
  };
  struct Scratch {
    std::vector<Index> offset;
    Matrix<double> mean;
  };
  struct Tape : Scratch {};

  Index d_in() const { return D; }
  Index d_out() const { return D; }
  Params& params() { return params_; }
  const Params& params() const { return params_; }

  void forward(ConstMatrixRef<double> x, MatrixRef<double> y, Scratch& scratch,
               const CallOptions& call = {}) const {
    scratch.offset.assign(call.tokens.sequence_offset.begin(), call.tokens.sequence_offset.end());
    scratch.mean = x;
    for_each_sequence(scratch, [&](Index begin, Index rows) {
      scratch.mean.middleRows(begin, rows).rowwise() = x.middleRows(begin, rows).colwise().mean();
    });
    y = params_.factor(0, 0) * scratch.mean;
  }
  void backward(ConstMatrixRef<double>, ConstMatrixRef<double> dy, Tape& tape, MatrixRef<double> dx,
                Params& grads) const {
    grads.factor(0, 0) += (dy.array() * tape.mean.array()).sum();
    for_each_sequence(tape, [&](Index begin, Index rows) {
      dx.middleRows(begin, rows).rowwise() =
          params_.factor(0, 0) * dy.middleRows(begin, rows).colwise().mean();
    });
  }

 private:
  template <class Body>
  static void for_each_sequence(const Scratch& scratch, Body&& body) {
    for (std::size_t b = 0; b + 1 < scratch.offset.size(); ++b) {
      if (scratch.offset[b + 1] > scratch.offset[b]) {
        body(scratch.offset[b], scratch.offset[b + 1] - scratch.offset[b]);
      }
    }
  }

  Params params_;
};
static_assert(TrainableExpert<Mean, double>);

template <Real T>
DenseFfn<T> make_ffn(Index width = D) {
  DenseFfn<T> ffn({width, 7, width}, {}, 2);
  testing::randomise(ffn.params(), 3);
  return ffn;
}

template <Real T, class Block>
DepthLayer<T, Block> make_depth(Block block, const TopTokensConfig& config,
                                bool predicted = false) {
  const Index width = block.d_in();
  auto router =
      linear_router<T>(width, 1, TopTokens<Wide<T>>(config), 4, LogitsConfig{.bias = true});
  testing::randomise(router.params(), 5, 0.9);
  std::optional<typename DepthLayer<T, Block>::Predictor> predictor;
  if (predicted) {
    predictor.emplace(depth_predictor<T>(width, 3, config, 6));
    testing::randomise(predictor->params(), 7);
  }
  return {std::move(router), std::move(block), std::move(predictor)};
}

template <class Layer, class T>
Matrix<T> forward(const Layer& layer, const Matrix<T>& x, const CallOptions& call = {},
                  bool causal = false) {
  typename Layer::Scratch scratch;
  Matrix<T> y(x.rows(), layer.d_out());
  if (causal) {
    layer.forward_causal(x, y, scratch, call);
  } else {
    layer.forward(x, y, scratch, call);
  }
  return y;
}

template <class Layer, class T>
testing::Step<Layer, T> run_step(const Layer& layer, const Matrix<T>& x,
                                 const CallOptions& call = {}) {
  typename Layer::Tape tape;
  testing::Step<Layer, T> step{random_matrix<T>(x.rows(), layer.d_out(), 42),
                               Matrix<T>(x.rows(), layer.d_out()),
                               Matrix<T>(x.rows(), layer.d_in()), layer.zero_grads()};
  detail::with_team(detail::num_threads(call.num_threads), [&] {
    layer.forward(x, step.y, tape, call);
    layer.backward(x, step.dy, tape, step.dx, step.grads, selection_loss(tape.routing).gradient);
  });
  return step;
}

using Rows = std::vector<reference::Row>;
template <class Router, class T>
Matrix<double> want_of(const Router& router, const Matrix<T>& x, bool causal, const Tokens& tokens,
                       const std::function<Rows(const Rows&)>& block) {
  const auto& gate = router.params().gate_part();
  return reference::depth(
      x, router.rule().config(), causal, tokens,
      [&](const reference::Row& row) { return reference::linear(gate.weight, gate.bias, row)[0]; },
      block);
}

const std::vector<TopTokensConfig> all_configs = {
    {}, {.capacity = 0.5, .threshold = -0.3}, {.capacity = 1.0, .threshold = 0.4}};

template <Real T>
void expect_plain_loops(double tolerance) {
  const auto x = random_matrix<T>(N, D, 3);
  for (const TopTokensConfig& config : all_configs) {
    const auto layer = make_depth<T>(make_ffn<T>(), config);
    const auto block = [&](const Rows& inputs) {
      Rows rows;
      for (const reference::Row& row : inputs) {
        const Expert<T>& expert = layer.block().expert();
        rows.push_back(reference::expert(expert.params(), expert.config(), row));
      }
      return rows;
    };
    for (const Tokens& tokens : all_tokens()) {
      for (const bool causal : {false, true}) {
        EXPECT_TRUE(matrix_near(forward(layer, x, {.tokens = tokens}, causal),
                                want_of(layer.router(), x, causal, tokens, block), tolerance))
            << config.capacity << causal << tokens.num_sequences(N);
      }
    }
  }
}

TEST(Depth, IsWhatPlainLoopsMakeOfSequencesAndPadding) {
  expect_plain_loops<double>(1e-13);
  expect_plain_loops<float>(1e-6);
}

TEST(Depth, GivesABlockTheTokensItTakesAsTheirSequences) {
  const auto x = random_matrix<double>(N, D, 3);
  for (const TopTokensConfig& config : all_configs) {
    const auto layer = make_depth<double>(Mean(), config);
    const auto block = [&](const Rows& inputs) {
      reference::Row mean(D, 0.0);
      for (const reference::Row& row : inputs) {
        for (std::size_t col = 0; col < mean.size(); ++col) {
          mean[col] += 0.75 * row[col] / static_cast<double>(inputs.size());
        }
      }
      return Rows(inputs.size(), mean);
    };
    for (const Tokens& tokens : all_tokens()) {
      const CallOptions call{.num_threads = 1, .tokens = tokens};
      const Matrix<double> want = want_of(layer.router(), x, false, tokens, block);
      EXPECT_TRUE(matrix_near(forward(layer, x, call), want, 1e-13));
      EXPECT_TRUE(matrix_near(run_step(layer, x, call).y, want, 1e-13)) << "training";
    }
  }
}

TEST(Depth, TakesAsManyTokensOfEachSequenceAsTheCapacityHasRoomFor) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.3});
  DepthLayer<double>::Scratch scratch;
  Matrix<double> y(N, D);
  layer.forward(random_matrix<double>(N, D, 3), y, scratch,
                {.tokens = {.sequence_offset = ragged}});
  const std::vector<Index> want = {2, 0, 1, 1, 2};  // ceil(0.3 n)
  for (std::size_t b = 0; b < want.size(); ++b) {
    const auto expert = scratch.routing.expert.middleRows(ragged[b], ragged[b + 1] - ragged[b]);
    EXPECT_EQ((expert.array() != none).count(), want[b]) << b;
  }
  EXPECT_EQ(scratch.rows.rows(), 6);
}

TEST(Depth, LeavesTheBitsOfTokensThatItDoesNotTake) {
  auto x = random_matrix<float>(N, D, 3);
  x.col(2).setConstant(-0.0F);
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5});
  DepthLayer<float>::Scratch scratch;
  Matrix<float> y(N, D);
  layer.forward(x, y, scratch);
  for (Index t = 0; t < N; ++t) {
    EXPECT_EQ(static_cast<bool>(same_bits(y.row(t), x.row(t))),
              scratch.routing.expert(t, 0) == none);
  }
}

/// The worst error of all gradients against differences, of the output and a loss of the router,
/// and of the predictor's of a loss of its own, which does not go further.
template <class Layer>
double gradient_error(Layer layer, CallOptions call) {
  call.num_threads = 1;
  auto x = random_matrix<double>(N, D, 3);
  const auto dy = random_matrix<double>(N, D, 42);
  Matrix<double> y(N, D), dx(N, D);
  typename Layer::Tape tape, again;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape, call);
  layer.backward(
      x, dy, tape, dx, grads, selection_loss(tape.routing).gradient,
      layer.predictor() ? selection_loss(tape.predicted).gradient : RoutingGradient<double>{});
  const auto outputs = [&] {
    layer.forward(x, y, again, call);
    return again.routing.expert == tape.routing.expert
               ? (y.array() * dy.array()).sum() + selection_loss(again.routing).value
               : std::nan("");
  };
  const auto with_prediction = [&] {
    const double value = outputs();
    return layer.predictor() ? value + selection_loss(again.predicted).value : value;
  };
  double worst = testing::gradient_error(outputs, x, dx);
  layer.for_each_parameter(
      [&](const ParameterName&, Matrix<double>& parameter, const Matrix<double>& grad) {
        worst = std::max(worst, testing::gradient_error(with_prediction, parameter, grad));
      },
      grads);
  return worst;
}

TEST(Depth, HasTheGradientsOfCentralDifferences) {
  ExpertMask mask = ExpertMask::Ones(N, 1);
  mask(2, 0) = mask(9, 0) = 0;
  const auto layer =
      testing::make_layer<double>({.d_model = D, .d_ff = 4, .num_experts = 3, .top_k = 2}, 8);
  for (const Tokens& tokens : all_tokens()) {
    for (const bool masked : {false, true}) {
      const CallOptions call{.tokens = tokens, .expert_mask = masked ? &mask : nullptr};
      for (const bool predicted : {false, true}) {
        EXPECT_LT(
            gradient_error(make_depth<double>(make_ffn<double>(), all_configs[1], predicted), call),
            1e-7);
      }
      EXPECT_LT(gradient_error(make_depth<double>(Mean(), all_configs[1]), call), 1e-7);
      EXPECT_LT(gradient_error(make_depth<double>(layer, all_configs[1]), call), 1e-7);
      EXPECT_LT(gradient_error(make_depth<double>(make_ffn<double>(), all_configs[2]), call), 1e-7);
    }
  }
}

TEST(Depth, TakesATokenAloneAsInItsBatchWhereItIsCausal) {
  const Matrix<float> x = 3.0F * random_matrix<float>(60, D, 3);
  for (const bool predicted : {false, true}) {
    const auto layer = make_depth<float>(make_ffn<float>(), all_configs[1], predicted);
    const Matrix<float> y = forward(layer, x, {}, true);
    Index taken = 0;
    for (Index t = 0; t < 60; ++t) {
      const Matrix<float> alone = x.row(t);
      EXPECT_TRUE(same_bits(forward(layer, alone, {}, true), y.row(t)));
      taken += same_bits(y.row(t), alone) ? 0 : 1;
    }
    EXPECT_GT(taken, 0);
    EXPECT_LT(taken, 60);
  }
}

TEST(Depth, AsksThePredictorWhereThereIsOne) {
  const auto x = random_matrix<double>(N, D, 3);
  const auto layer = make_depth<double>(make_ffn<double>(), all_configs[1], true);
  DepthLayer<double>::Scratch scratch;
  Matrix<double> y(N, D);
  layer.forward_causal(x, y, scratch);
  bool differs = false;
  for (Index t = 0; t < N; ++t) {
    const bool taken = scratch.predicted.logits(t, 0) > -0.3;
    EXPECT_EQ(scratch.routing.expert(t, 0) != none, taken);
    EXPECT_EQ(scratch.routing.weight(t, 0), taken ? scratch.routing.logits(t, 0) : 0.0);
    differs = differs || taken != (scratch.routing.logits(t, 0) > -0.3);
  }
  EXPECT_TRUE(differs) << "the two would not be told apart";
}

TEST(Depth, LearnsToTakeCausallyWhatTheSequenceTakes) {
  const auto x = random_matrix<double>(64, D, 3);
  auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.25}, true);
  DepthLayer<double>::Tape tape;
  Matrix<double> y(64, D), dx(64, D);
  const Matrix<double> dy = Matrix<double>::Zero(64, D);
  const CallOptions call{.num_threads = 1};
  for (int step = 0; step < 400; ++step) {
    layer.forward(x, y, tape, call);
    auto grads = layer.zero_grads();
    layer.backward(x, dy, tape, dx, grads, {}, selection_loss(tape.predicted).gradient);
    layer.for_each_parameter([](const auto&, auto& p, const auto& g) { p -= 0.5 * g; }, grads);
  }
  DepthLayer<double>::Scratch scratch;
  layer.forward_causal(x, y, scratch, call);
  EXPECT_GE((scratch.routing.expert.array() == tape.routing.expert.array()).count(), 60);
}

template <class T>
class DepthScalars : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(DepthScalars, Scalars);

TYPED_TEST(DepthScalars, HasTheSameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  const auto layer = make_depth<T>(make_ffn<T>(40), {.capacity = 0.4}, true);
  const auto x = random_matrix<T>(90, 40, 3);
  const std::vector<Index> offset = {0, 7, 7, 40, 90};
  std::vector<std::uint8_t> marks(90, 0);
  marks[3] = marks[50] = 1;
  for (const Tokens& tokens :
       {Tokens{}, Tokens{.sequence_offset = offset}, Tokens{.padding = marks}}) {
    const auto one = run_step(layer, x, {.num_threads = 1, .tokens = tokens});
    for (const int threads : {2, 5}) {
      const auto more = run_step(layer, x, {.num_threads = threads, .tokens = tokens});
      EXPECT_TRUE(same_bits(more.y, one.y));
      EXPECT_TRUE(same_bits(more.dx, one.dx));
      EXPECT_TRUE(testing::same_grads(layer, more.grads, one.grads));
    }
    EXPECT_TRUE(same_bits(forward(layer, x, {.tokens = tokens}), one.y)) << "inference";
  }
}

TEST(Depth, DoesNotSeePadding) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.5}, true);
  auto x = random_matrix<double>(N, D, 3);
  const CallOptions call{.tokens = {.sequence_offset = ragged, .padding = padding}};
  const auto want = run_step(layer, x, call);
  const Matrix<double> causal = forward(layer, x, call, true);
  for (Index t = 0; t < N; ++t) {
    if (call.tokens.is_padding(t)) {
      x.row(t).setConstant(std::nan(""));
      EXPECT_TRUE(want.y.row(t).isZero(0) && want.dx.row(t).isZero(0) && causal.row(t).isZero(0));
    }
  }
  const auto step = run_step(layer, x, call);
  EXPECT_TRUE(same_bits(step.y, want.y) && same_bits(step.dx, want.dx));
  EXPECT_TRUE(testing::same_grads(layer, step.grads, want.grads));
  EXPECT_TRUE(same_bits(forward(layer, x, call, true), causal));
}

TEST(Depth, PutsATokenWithANaNLastAndLeavesItNaN) {
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5});
  auto x = random_matrix<float>(N, D, 3);
  x(6, 1) = std::nanf("");
  for (const bool causal : {false, true}) {
    DepthLayer<float>::Scratch scratch;
    Matrix<float> y = forward(layer, x, {}, causal);
    EXPECT_TRUE(std::isnan(y(6, 1)));
    y(6, 1) = 0.0F;
    EXPECT_TRUE(y.allFinite());
  }
  const auto all = make_depth<float>(make_ffn<float>(), {.capacity = 1.0});
  const Matrix<float> y = forward(all, x);
  EXPECT_TRUE(y.row(6).array().isNaN().all());
}

TEST(Depth, TakesNothingOfABatchOfNothingOfPaddingOrOfMaskedTokens) {
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5}, true);
  const ExpertMask mask = ExpertMask::Zero(1, 1);
  const std::vector<std::uint8_t> marks(3, 1);
  const auto x = random_matrix<float>(3, D, 3);
  const auto none_at_all = run_step(layer, Matrix<float>(0, D));
  EXPECT_EQ(none_at_all.y.rows(), 0);
  const auto padded = run_step(layer, x, {.tokens = {.padding = marks}});
  EXPECT_TRUE(padded.y.isZero(0) && padded.dx.isZero(0));
  EXPECT_TRUE(testing::same_grads(layer, padded.grads, layer.zero_grads()));
  const auto masked = run_step(layer, x, {.expert_mask = &mask});
  EXPECT_TRUE(same_bits(masked.y, x) && same_bits(masked.dx, masked.dy));
  EXPECT_TRUE(testing::same_grads(layer, masked.grads, layer.zero_grads()));
}

TEST(Depth, MayWriteItsOutputOverItsInput) {
  const auto layer = make_depth<float>(make_ffn<float>(), {.capacity = 0.5});
  const auto x = random_matrix<float>(N, D, 3);
  for (const Tokens& tokens : all_tokens()) {
    Matrix<float> y = x;
    DepthLayer<float>::Scratch scratch;
    layer.forward(y, y, scratch, {.tokens = tokens});
    EXPECT_TRUE(same_bits(y, forward(layer, x, {.tokens = tokens})));
  }
}

TEST(Depth, NamesItsParameters) {
  const auto layer = make_depth<float>(make_ffn<float>(), {}, true);
  std::vector<std::string> names;
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&) { names.push_back(name.text()); });
  const std::vector<std::string> want = {"router.weight",
                                         "router.bias",
                                         "block.gate",
                                         "block.up",
                                         "block.down",
                                         "predictor.hidden",
                                         "predictor.hidden_bias",
                                         "predictor.weight",
                                         "predictor.bias"};
  EXPECT_EQ(names, want);
}

#if MOE_COUNTS_ALLOCATIONS
template <class T>
void expect_no_allocation() {
  const auto layer = make_depth<T>(make_ffn<T>(), {.capacity = 0.5}, true);
  const auto x = random_matrix<T>(60, D, 3);
  Matrix<T> y = x, dx = x;
  std::vector<std::uint8_t> marks(60, 0);
  marks[1] = 1;
  const std::vector<std::int32_t> ids(60, 7);
  typename DepthLayer<T>::Scratch scratch;
  typename DepthLayer<T>::Tape tape;
  RoutingLoss<Wide<T>> loss;
  auto grads = layer.zero_grads();
  auto round = [&] {
    for (const Index rows : {60, 12, 0, 3, 60}) {
      for (const bool padded : {false, true}) {
        const auto size = static_cast<std::size_t>(rows);
        CallOptions call{.num_threads = 2};
        call.tokens = {.ids = std::span(ids).first(size), .sequence_length = 3};
        if (padded) {
          call.tokens.padding = std::span(marks).first(size);
        }
        layer.forward(x.topRows(rows), y.topRows(rows), scratch, call);
        layer.forward_causal(x.topRows(rows), y.topRows(rows), scratch, call);
        layer.forward(x.topRows(rows), y.topRows(rows), tape, call);
        selection_loss(tape.predicted, {}, loss);
        layer.backward(x.topRows(rows), x.topRows(rows), tape, dx.topRows(rows), grads, {},
                       loss.gradient);
      }
    }
  };
  detail::with_team(2, round);
  EXPECT_EQ(testing::count_allocations([&] { detail::with_team(2, round); }), 0);
}

TEST(Depth, AllocatesNothingForBatchesNoLargerThanItHasSeen) {
  expect_no_allocation<float>();
  expect_no_allocation<bf16>();
}
#endif

TEST(Depth, RefusesWhatDoesNotFitAndNamesIt) {
  const auto layer = make_depth<float>(make_ffn<float>(), {}, true);
  const auto x = random_matrix<float>(N, D, 3);
  for (const CallOptions& call : {CallOptions{.top_k = 1}, CallOptions{.capacity = Capacity{}}}) {
    EXPECT_EQ(message_of([&] { forward(layer, x, call); }),
              "DepthLayer: the call sets experts, top_k or capacity, expected none: how many "
              "tokens are taken is TopTokensConfig's");
  }
  EXPECT_EQ(message_of([&] { forward(layer, random_matrix<float>(N, 4, 3)); }),
            "DepthLayer: x is (12, 4), expected (12, 5)");
  EXPECT_EQ(message_of([&] {
              DepthLayer<float>(layer.router(), DenseFfn<float>({D, 7, 4}, {}, 1));
            }),
            "DepthLayer: the block is 5 to 4 wide, expected one width: its output is added to its "
            "input");
  EXPECT_EQ(message_of([&] { DepthLayer<float>(layer.router(), make_ffn<float>(6)); }),
            "DepthLayer: the router is (1, 5), expected (1, 6)");
  EXPECT_EQ(message_of([] { TopTokens<float>({.capacity = 0.0}); }),
            "TopTokens: capacity = 0, expected in (0, 1]");
  EXPECT_EQ(message_of([] { TopTokens<float>({.threshold = HUGE_VAL}); }),
            "TopTokens: threshold = inf, expected finite");
}

TEST(Depth, RefusesATapeOfAnotherLayerAndGradientsThatOverlap) {
  const auto layer = make_depth<float>(make_ffn<float>(), {});
  const auto copy = layer;
  const auto x = random_matrix<float>(N, D, 3);
  Matrix<float> y = x, dx = x;
  DepthLayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { copy.backward(x, y, tape, dx, grads); }),
            "DepthLayer: the tape is of another layer, expected this one's");
  EXPECT_EQ(message_of([&] { layer.backward(dx, y, tape, dx, grads); }),
            "DepthLayer: dx overlaps x or dy, expected memory of its own");
}

/// What a layer says of a tape of its forward before `replace(layer)`; it writes nothing then.
std::string refusal_after(DepthLayer<double> layer, const auto& replace) {
  const auto x = random_matrix<double>(N, D, 3);
  Matrix<double> y = x, dx = x;
  DepthLayer<double>::Tape tape;
  layer.forward(x, y, tape);
  replace(layer);
  auto grads = layer.zero_grads();
  const std::string text = message_of([&] { layer.backward(x, y, tape, dx, grads); });
  EXPECT_TRUE(same_bits(dx, x) && testing::same_grads(layer, grads, layer.zero_grads()));
  return text;
}

TEST(Depth, RefusesATapeOfPartsThatWereReplacedBeforeAnythingIsWritten) {
  const auto layer = make_depth<double>(make_ffn<double>(), {.capacity = 0.5}, true);
  const auto other = layer;
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.router() = other.router(); }),
            "DepthLayer.router: the table is of another router, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.predictor() = *other.predictor(); }),
            "DepthLayer.predictor: the table is of another router, expected this one's");
  EXPECT_EQ(refusal_after(layer, [&](auto& l) { l.block() = other.block(); }),
            "DepthLayer.block: the tape is of another layer, expected this one's");
  const auto alone = make_depth<double>(make_ffn<double>(), {.capacity = 0.5});
  EXPECT_EQ(refusal_after(alone, [&](auto& l) { l.predictor() = *other.predictor(); }),
            "DepthLayer.predictor: the table is of another router, expected this one's");
}

/// A block that only infers.
struct Twice {
  struct Scratch {};
  Index d_in() const { return D; }
  Index d_out() const { return D; }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Scratch&) const { y = 2.0F * x; }
};

TEST(Depth, InfersWithABlockThatCannotTrain) {
  const auto layer = make_depth<float>(Twice(), {.capacity = 1.0});
  const auto x = random_matrix<float>(N, D, 3);
  DepthLayer<float, Twice>::Scratch scratch;
  Matrix<float> y(N, D);
  layer.forward(x, y, scratch);
  const auto factor = (1.0F + 2.0F * scratch.routing.logits.array()).matrix().replicate(1, D);
  EXPECT_TRUE(matrix_near(y, (x.array() * factor.array()).matrix(), 1e-6));
}

}  // namespace
}  // namespace moe
