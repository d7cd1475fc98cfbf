// SPDX-License-Identifier: Apache-2.0
// Soft MoE: against plain loops, what it is where that is known, gradients, and the contract.
#include "moe/layers/soft_moe.hpp"

#include <gtest/gtest.h>

#include "moe/reference/soft_moe.hpp"
#include "support/count_allocations.hpp"
#include "support/finite_difference.hpp"
#include "support/layer_step.hpp"
#include "support/throws.hpp"

namespace moe {

template class SoftMoELayer<float>;
template class SoftMoELayer<double>;
template class SoftMoELayer<bf16>;

namespace {

using testing::matrix_near;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

constexpr Index N = 12;
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

SoftMoEConfig small_config(Index slots = 2) {
  return {.d_model = 5, .d_ff = 6, .num_experts = 3, .slots = slots, .d_out = 4};
}

/// A layer whose tensors are all random.
template <class Layer>
Layer randomised(Layer layer) {
  testing::randomise(layer.router().params(), 8, 1.5);
  std::uint64_t seed = 20;
  for (auto& expert : layer.experts()) {
    testing::randomise(expert.params(), seed++);
  }
  return layer;
}
template <Real T>
SoftMoELayer<T> make_soft(const SoftMoEConfig& config) {
  return randomised(SoftMoELayer<T>(config, 1));
}
/// Without the normalised router.
template <Real T>
SoftMoELayer<T, LinearGate<T>> make_plain(const SoftMoEConfig& config) {
  const LinearGate<T> gate(config.d_model, config.num_experts * config.slots, {.bias = true});
  return randomised(
      SoftMoELayer<T, LinearGate<T>>(SlotRouter<T, LinearGate<T>>(gate, gate.initial_params(1)),
                                     make_experts<T>(config.experts(), 2)));
}

template <class Layer, class T>
Matrix<T> forward(const Layer& layer, const Matrix<T>& x, const CallOptions& call = {}) {
  typename Layer::Scratch scratch;
  Matrix<T> y(x.rows(), layer.d_out());
  layer.forward(x, y, scratch, call);
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
    layer.backward(x, step.dy, tape, step.dx, step.grads);
  });
  return step;
}

template <class T>
Matrix<double> want_of(const SoftMoELayer<T>& layer, const Matrix<T>& x, const Tokens& tokens) {
  return reference::soft_moe(layer, x, tokens, [&](const reference::Row& row) {
    return reference::logits(layer.router().params(), layer.router().gate().config(), row);
  });
}
template <class T>
Matrix<double> want_of(const SoftMoELayer<T, LinearGate<T>>& layer, const Matrix<T>& x,
                       const Tokens& tokens) {
  return reference::soft_moe(layer, x, tokens, [&](const reference::Row& row) {
    return reference::linear(layer.router().params().weight, layer.router().params().bias, row);
  });
}

template <class Layer, class T>
void expect_plain_loops(const Layer& layer, const Matrix<T>& x, double tolerance) {
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.num_threads = 2, .tokens = tokens};
    const Matrix<double> want = want_of(layer, x, tokens);
    EXPECT_TRUE(matrix_near(forward(layer, x, call), want, tolerance));
    EXPECT_TRUE(matrix_near(run_step(layer, x, call).y, want, tolerance)) << "training";
  }
}

TEST(SoftMoE, IsWhatPlainLoopsMakeOfSequencesAndPadding) {
  for (const Index slots : {1, 2}) {
    const SoftMoEConfig config = small_config(slots);
    const auto x = random_matrix<double>(N, config.d_model, 3);
    expect_plain_loops(make_soft<double>(config), x, 1e-13);
    expect_plain_loops(make_plain<double>(config), x, 1e-13);
    const auto single = random_matrix<float>(N, config.d_model, 3);
    expect_plain_loops(make_soft<float>(config), single, 2e-6);
    expect_plain_loops(make_plain<float>(config), single, 2e-6);
    expect_plain_loops(make_soft<bf16>(config), random_matrix<bf16>(N, config.d_model, 3), 0.02);
  }
}

TEST(SoftMoE, OfSizesThatFillRegistersIsWhatPlainLoopsMake) {
  const SoftMoEConfig config{.d_model = 70, .d_ff = 40, .num_experts = 5, .slots = 7};
  const auto layer = make_soft<float>(config);
  const auto x = random_matrix<float>(130, 70, 3);
  for (const Index length : {0, 65}) {
    const Tokens tokens{.sequence_length = length};
    EXPECT_TRUE(
        matrix_near(forward(layer, x, {.tokens = tokens}), want_of(layer, x, tokens), 1e-5));
  }
}

TEST(SoftMoE, WithoutDirectionsGivesEachTokenTheMeanOfAllExpertsOfTheMeanToken) {
  auto layer = make_soft<double>(small_config());
  layer.router().params().scale.setZero();
  const auto x = random_matrix<double>(N, layer.d_in(), 3);
  const Matrix<double> mean = x.colwise().mean();
  Eigen::RowVectorXd want = Eigen::RowVectorXd::Zero(layer.d_out());
  for (const Expert<double>& e : layer.experts()) {
    const reference::Row y = reference::expert(e.params(), e.config(), reference::row_of(mean, 0));
    want += Eigen::Map<const Eigen::RowVectorXd>(y.data(), layer.d_out()) / 3.0;
  }
  EXPECT_TRUE(matrix_near(forward(layer, x), want.replicate(N, 1), 1e-13));
}

TEST(SoftMoE, OfOneTokenIsTheMeanOfItsExpertsByTheirLogits) {
  const auto layer = make_soft<double>(small_config(1));
  const auto x = random_matrix<double>(1, layer.d_in(), 3);
  SoftMoELayer<double>::Scratch scratch;
  Matrix<double> y(1, layer.d_out());
  layer.forward(x, y, scratch);
  EXPECT_TRUE(scratch.routing.dispatch.isOnes(0));
  EXPECT_TRUE(matrix_near(y, want_of(layer, x, {}), 1e-13));
}

/// The worst error of all gradients against differences.
template <class Layer>
double gradient_error(Layer layer, const CallOptions& call) {
  auto x = random_matrix<double>(N, layer.d_in(), 3);
  const auto step = run_step(layer, x, call);
  typename Layer::Scratch scratch;
  Matrix<double> y(N, layer.d_out());
  const auto f = [&] {
    layer.forward(x, y, scratch, call);
    return (y.array() * step.dy.array()).sum();
  };
  double worst = testing::gradient_error(f, x, step.dx);
  layer.for_each_parameter(
      [&](const ParameterName&, Matrix<double>& parameter, const Matrix<double>& grad) {
        worst = std::max(worst, testing::gradient_error(f, parameter, grad));
      },
      step.grads);
  return worst;
}

TEST(SoftMoE, HasTheGradientsOfCentralDifferences) {
  using Each = SoftMoELayer<double, UnitGate<double>, EachExpert<double, Expert<double>>>;
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.num_threads = 1, .tokens = tokens};
    const SoftMoEConfig config = small_config();
    const auto soft = make_soft<double>(config);
    EXPECT_LT(gradient_error(soft, call), 1e-7);
    EXPECT_LT(gradient_error(make_plain<double>(config), call), 1e-7);
    EXPECT_LT(gradient_error(make_soft<double>(small_config(1)), call), 1e-7);
    const Each each(soft.router(), EachExpert<double, Expert<double>>(std::vector<Expert<double>>(
                                       soft.experts().begin(), soft.experts().end())));
    EXPECT_LT(gradient_error(each, call), 1e-7);
  }
}

TEST(SoftMoE, AddsToTheGradientsThatThereAre) {
  const auto layer = make_soft<double>(small_config());
  const auto x = random_matrix<double>(N, layer.d_in(), 3);
  const auto once = run_step(layer, x);
  SoftMoELayer<double>::Tape tape;
  Matrix<double> y(N, layer.d_out()), dx(N, layer.d_in());
  auto grads = layer.zero_grads();
  for (int i = 0; i < 2; ++i) {
    layer.forward(x, y, tape);
    layer.backward(x, once.dy, tape, dx, grads);
  }
  layer.for_each_parameter(
      [](const ParameterName& name, const auto&, const auto& twice, const auto& grad) {
        EXPECT_TRUE(matrix_near(twice, Matrix<double>(2.0 * grad), 1e-13)) << name.text();
      },
      grads, once.grads);
  EXPECT_TRUE(same_bits(dx, once.dx));
}

template <class T>
class SoftMoEScalars : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, bf16, Eigen::half>;
TYPED_TEST_SUITE(SoftMoEScalars, Scalars);

TYPED_TEST(SoftMoEScalars, HasTheSameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  const auto layer =
      make_soft<T>({.d_model = 40, .d_ff = 24, .num_experts = 4, .slots = 3, .d_out = 35});
  const auto x = random_matrix<T>(60, 40, 3);
  const std::vector<Index> offset = {0, 7, 7, 40, 60};
  std::vector<std::uint8_t> marks(60, 0);
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

TYPED_TEST(SoftMoEScalars, GivesASequenceTheSameBitsAloneAndAmongOthers) {
  using T = TypeParam;
  const auto layer = make_soft<T>({.d_model = 20, .d_ff = 12, .num_experts = 4, .slots = 3});
  const auto x = random_matrix<T>(N, 20, 3);
  const Matrix<T> y = forward(layer, x, {.tokens = {.sequence_offset = ragged}});
  for (std::size_t b = 0; b + 1 < ragged.size(); ++b) {
    const Index begin = ragged[b], rows = ragged[b + 1] - begin;
    const Matrix<T> alone = x.middleRows(begin, rows);
    EXPECT_TRUE(same_bits(forward(layer, alone), y.middleRows(begin, rows))) << b;
  }
}

TEST(SoftMoE, DoesNotSeePadding) {
  const auto layer = make_soft<double>(small_config());
  auto x = random_matrix<double>(N, layer.d_in(), 3);
  const CallOptions call{.tokens = {.sequence_offset = ragged, .padding = padding}};
  const auto want = run_step(layer, x, call);
  for (Index t = 0; t < N; ++t) {
    if (call.tokens.is_padding(t)) {
      x.row(t).setConstant(std::nan(""));
      EXPECT_TRUE(want.y.row(t).isZero(0) && want.dx.row(t).isZero(0));
    }
  }
  const auto step = run_step(layer, x, call);
  EXPECT_TRUE(same_bits(step.y, want.y) && same_bits(step.dx, want.dx));
  EXPECT_TRUE(testing::same_grads(layer, step.grads, want.grads));
}

TEST(SoftMoE, KeepsANaNInTheSequenceOfItsToken) {
  const auto layer = make_soft<float>(small_config());
  auto x = random_matrix<float>(N, layer.d_in(), 3);
  const CallOptions call{.tokens = {.sequence_length = 4}};
  const Matrix<float> want = forward(layer, x, call);
  x(6, 1) = std::nanf("");
  const Matrix<float> y = forward(layer, x, call);
  EXPECT_TRUE(y.middleRows(4, 4).array().isNaN().all());
  EXPECT_TRUE(same_bits(y.topRows(4), want.topRows(4)));
  EXPECT_TRUE(same_bits(y.bottomRows(4), want.bottomRows(4)));
}

TEST(SoftMoE, HasNoRowsOfABatchOfNothingOrOfPadding) {
  const auto layer = make_soft<float>(small_config());
  for (const Index rows : {0, 3}) {
    const std::vector<std::uint8_t> marks(static_cast<std::size_t>(rows), 1);
    const auto step = run_step(layer, random_matrix<float>(rows, layer.d_in(), 3),
                               {.tokens = {.padding = marks}});
    EXPECT_TRUE(step.y.isZero(0) && step.dx.isZero(0));
    EXPECT_TRUE(testing::same_grads(layer, step.grads, layer.zero_grads()));
  }
}

TEST(SoftMoE, MayWriteItsOutputOverItsInput) {
  SoftMoEConfig config = small_config();
  config.d_out.reset();
  const auto layer = make_soft<float>(config);
  auto x = random_matrix<float>(N, layer.d_in(), 3);
  for (const Tokens& tokens : all_tokens()) {
    const Matrix<float> want = forward(layer, x, {.tokens = tokens});
    Matrix<float> y = x;
    SoftMoELayer<float>::Scratch scratch;
    layer.forward(y, y, scratch, {.tokens = tokens});
    EXPECT_TRUE(same_bits(y, want));
  }
}

TEST(SoftMoE, OfPackedExpertsHasTheBitsOfTheLayer) {
  using Packed = SoftMoELayer<float, UnitGate<float>, PackedExperts<float>>;
  const auto layer = make_soft<float>(small_config());
  const Packed packed(layer.router(), PackedExperts<float>(layer.experts()));
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.tokens = tokens};
    EXPECT_TRUE(same_bits(forward(packed, x, call), forward(layer, x, call)));
  }
}

TEST(SoftMoE, NamesItsParameters) {
  const auto layer = make_soft<float>(small_config());
  std::vector<std::string> names;
  layer.for_each_parameter(
      [&](const ParameterName& name, const auto&) { names.push_back(name.text()); });
  EXPECT_EQ(names.size(), 2u + 3u * 3u);
  EXPECT_EQ(names.at(0), "router.weight");
  EXPECT_EQ(names.at(1), "router.scale");
  EXPECT_EQ(names.back(), "experts.2.down");
}

#if MOE_COUNTS_ALLOCATIONS
template <class T>
void expect_no_allocation() {
  const auto layer = make_soft<T>(small_config());
  const auto x = random_matrix<T>(60, layer.d_in(), 3);
  const auto dy = random_matrix<T>(60, layer.d_out(), 4);
  Matrix<T> y = dy, dx = x;
  std::vector<std::uint8_t> marks(60, 0);
  marks[1] = 1;
  typename SoftMoELayer<T>::Scratch scratch;
  typename SoftMoELayer<T>::Tape tape;
  auto grads = layer.zero_grads();
  auto round = [&] {
    for (const Index rows : {60, 12, 0, 3, 60}) {
      for (const Index length : {Index(0), Index(3)}) {
        for (const bool padded : {false, true}) {
          CallOptions call{.num_threads = 2, .tokens = {.sequence_length = length}};
          if (padded) {
            call.tokens.padding = std::span(marks).first(static_cast<std::size_t>(rows));
          }
          layer.forward(x.topRows(rows), y.topRows(rows), scratch, call);
          layer.forward(x.topRows(rows), y.topRows(rows), tape, call);
          layer.backward(x.topRows(rows), dy.topRows(rows), tape, dx.topRows(rows), grads);
        }
      }
    }
  };
  detail::with_team(2, round);
  EXPECT_EQ(testing::count_allocations([&] { detail::with_team(2, round); }), 0);
}

TEST(SoftMoE, AllocatesNothingForBatchesNoLargerThanItHasSeen) {
  expect_no_allocation<float>();
  expect_no_allocation<bf16>();
}
#endif

TEST(SoftMoE, RefusesWhatItHasNotAndNamesIt) {
  const auto layer = make_soft<float>(small_config());
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  const ExpertMask mask = ExpertMask::Ones(1, 3);
  for (const CallOptions& call : {CallOptions{.expert_mask = &mask}, CallOptions{.top_k = 1},
                                  CallOptions{.capacity = Capacity{}}}) {
    EXPECT_EQ(message_of([&] { forward(layer, x, call); }),
              "SoftMoELayer: the call sets expert_mask, experts, top_k or capacity, expected none: "
              "all tokens are in all slots");
  }
  EXPECT_EQ(message_of([&] { forward(layer, random_matrix<float>(N, 4, 3)); }),
            "SoftMoELayer: x is (12, 4), expected (12, 5)");
  EXPECT_EQ(message_of([] {
              SoftMoELayer<float>({.d_model = 5, .d_ff = 6, .num_experts = 3, .slots = 0}, 1);
            }),
            "SoftMoEConfig: slots = 0, expected at least 1");
  EXPECT_EQ(message_of([&] {
              SoftMoEConfig config = small_config();
              config.num_experts = 4;
              SoftMoELayer<float>(layer.router(), make_experts<float>(config.experts(), 1));
            }),
            "SoftMoELayer: the router has 6 slots, expected a multiple of num_experts = 4");
}

TEST(SoftMoE, RefusesATapeOfAnotherLayerAndGradientsThatOverlap) {
  const auto layer = make_soft<float>(small_config());
  const auto copy = layer;
  const auto x = random_matrix<float>(N, layer.d_in(), 3);
  Matrix<float> y(N, layer.d_out()), dx = x;
  SoftMoELayer<float>::Tape tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  EXPECT_EQ(message_of([&] { copy.backward(x, y, tape, dx, grads); }),
            "SoftMoELayer: the tape is of another layer, expected this one's");
  EXPECT_EQ(message_of([&] { layer.backward(dx, y, tape, dx, grads); }),
            "SoftMoELayer: dx overlaps x or dy, expected memory of its own");
  grads.experts.pop_back();
  EXPECT_EQ(message_of([&] { layer.backward(x, y, tape, dx, grads); }),
            "gradient experts has 2 experts, expected 3");
}

TEST(SoftMoE, RefusesATapeOfPartsThatWereReplacedBeforeAnythingIsWritten) {
  SoftMoEConfig more = small_config();
  more.slots = small_config().slots + 2;
  const auto x = random_matrix<double>(N, small_config().d_model, 3);
  const auto refusal_after = [&](const auto& replace) {
    auto layer = make_soft<double>(small_config());
    Matrix<double> y(N, layer.d_out()), dx = x;
    SoftMoELayer<double>::Tape tape;
    layer.forward(x, y, tape);
    replace(layer);
    auto grads = layer.zero_grads();
    const std::string text = message_of([&] { layer.backward(x, y, tape, dx, grads); });
    EXPECT_TRUE(same_bits(dx, x) && testing::same_grads(layer, grads, layer.zero_grads()));
    return text;
  };
  EXPECT_EQ(refusal_after([&](auto& l) { l.router() = make_slot_router<double>(more, 5); }),
            "SoftMoELayer.router: the table is of another router, expected this one's");
  const auto other = make_soft<double>(small_config());
  EXPECT_EQ(refusal_after([&](auto& l) { l.experts() = other.experts(); }),
            "SoftMoELayer.experts: the tape is of another set of experts, expected this one's");
  EXPECT_EQ(refusal_after([&](auto& l) { l.experts()[1] = other.experts()[1]; }),
            "SoftMoELayer.experts.1: the tape is of another expert, expected this one's");
}

}  // namespace
}  // namespace moe
