// SPDX-License-Identifier: Apache-2.0
// Whose a tape is, of an expert alone and of a set of them: backward takes that of the last forward
// of this very object and of what stands in it, of the same rows, and no other.
#include <gtest/gtest.h>

#include <stdexcept>
#include <utility>

#include "moe/experts.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe::tape_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using M = Matrix<float>;

constexpr Index N = 6, D = 8, D_out = 5;

/// Experts that need other memory than each other.
std::vector<Expert<float>> expert_of_each_kind() {
  std::vector<Expert<float>> experts;
  for (const Index d_ff : {16, 4096}) {
    for (const bool gated : {false, true}) {
      for (const bool output_gate : {false, true}) {
        experts.emplace_back(Expert<float>::Sizes{D, d_ff, D_out},
                             ExpertConfig{.gated = gated, .output_gate = output_gate}, 1);
      }
    }
  }
  return experts;
}

bool is_zero(const ExpertParams<float>& grads) {
  bool zero = true;
  ExpertParams<float>::for_each(
      [&](std::string_view, const M& grad) { zero = zero && (grad.array() == 0.0F).all(); }, grads);
  return zero;
}

struct Rows {
  M x = random_matrix<float>(N, D, 2), dy = random_matrix<float>(N, D_out, 3);
  M y = M(N, D_out), dx = M::Constant(N, D, 5.0F);

  bool dx_is_untouched() const { return (dx.array() == 5.0F).all(); }
};

TEST(ExpertTape, OfAnExpertThatWasReplacedIsRefusedBeforeAnythingIsWritten) {
  for (const Expert<float>& before : expert_of_each_kind()) {
    for (const Expert<float>& after : expert_of_each_kind()) {
      Rows rows;
      Expert<float> expert = before;
      Expert<float>::Tape tape;
      expert.forward(rows.x, rows.y, tape);
      expert = after;
      auto grads = zero_grads_of(expert);
      EXPECT_EQ(message_of([&] { expert.backward(rows.x, rows.dy, tape, rows.dx, grads); }),
                "Expert: the tape is of another expert, expected this one's");
      EXPECT_TRUE(rows.dx_is_untouched() && is_zero(grads));
      expert.forward(rows.x, rows.y, tape);
      EXPECT_NO_THROW(expert.backward(rows.x, rows.dy, tape, rows.dx, grads));
    }
  }
}

TEST(ExpertTape, IsOfNoCopyAndNotUnused) {
  Rows rows;
  const Expert<float> expert({D, 16, D_out}, {}, 1), copy = expert;
  Expert<float>::Tape tape, unused;
  expert.forward(rows.x, rows.y, tape);
  auto grads = zero_grads_of(expert);
  EXPECT_THROW(copy.backward(rows.x, rows.dy, tape, rows.dx, grads), std::invalid_argument);
  EXPECT_THROW(expert.backward(rows.x, rows.dy, unused, rows.dx, grads), std::invalid_argument);
  Expert<float>::Tape moved = std::move(tape);
  EXPECT_THROW(expert.backward(rows.x, rows.dy, tape, rows.dx, grads), std::invalid_argument);
  EXPECT_TRUE(rows.dx_is_untouched());
  EXPECT_NO_THROW(expert.backward(rows.x, rows.dy, moved, rows.dx, grads));
}

TEST(ExpertTape, TakesNeitherMoreNorFewerRowsThanItsForward) {
  Rows rows;
  const Expert<float> expert({D, 16, D_out}, {}, 1);
  Expert<float>::Tape tape;
  auto grads = zero_grads_of(expert);
  expert.forward(rows.x, rows.y, tape);
  expert.forward(rows.x.topRows(4), rows.y.topRows(4), tape);
  for (const Index other : {N, Index{3}}) {
    const auto text = message_of([&] {
      expert.backward(rows.x.topRows(other), rows.dy.topRows(other), tape, rows.dx.topRows(other),
                      grads);
    });
    EXPECT_EQ(text, "Expert: the tape has 4 rows, expected those of x = " + std::to_string(other));
  }
  EXPECT_TRUE(rows.dx_is_untouched() && is_zero(grads));
}

TEST(ExpertTape, OutlivesValuesThatAnOptimiserAssigns) {
  Rows rows;
  Expert<float> expert({D, 16, D_out}, {}, 1);
  Expert<float>::Tape tape;
  auto grads = zero_grads_of(expert);
  expert.forward(rows.x, rows.y, tape);
  expert.params().up = M::Ones(16, D);
  expert.params() = zeros_like(expert.params());
  EXPECT_NO_THROW(expert.backward(rows.x, rows.dy, tape, rows.dx, grads));
}

TEST(ExpertTape, OfADenseFfnWhoseExpertWasReplacedIsRefused) {
  for (const Expert<float>& after : expert_of_each_kind()) {
    Rows rows;
    DenseFfn<float> ffn({D, 16, D_out}, {}, 1);
    DenseFfn<float>::Tape tape;
    ffn.forward(rows.x, rows.y, tape);
    ffn.set()[0] = after;
    auto grads = zero_grads_of(ffn);
    EXPECT_EQ(message_of([&] { ffn.backward(rows.x, rows.dy, tape, rows.dx, grads); }),
              "DenseFfn.0: the tape is of another expert, expected this one's");
    EXPECT_TRUE(rows.dx_is_untouched() && is_zero(grads));
  }
}

/// An expert of a user, with a tape of which nothing is known.
struct OwnExpert {
  using Params = Expert<float>::Params;
  struct Scratch {
    Expert<float>::Scratch memory;
  };
  struct Tape {
    Expert<float>::Tape memory;
  };
  Expert<float> expert;
  bool fails = false;

  OwnExpert(const Expert<float>& of) : expert(of) {}
  Index d_in() const { return expert.d_in(); }
  Index d_out() const { return expert.d_out(); }
  Params& params() { return expert.params(); }
  const Params& params() const { return expert.params(); }
  void check_params(const ParameterName& name) const { expert.check_params(name); }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Scratch& scratch) const {
    expert.forward(x, y, scratch.memory);
  }
  void forward(ConstMatrixRef<float> x, MatrixRef<float> y, Tape& tape) const {
    if (fails) {
      throw std::runtime_error("as asked for");
    }
    expert.forward(x, y, tape.memory);
  }
  void backward(ConstMatrixRef<float> x, ConstMatrixRef<float> dy, Tape& tape, MatrixRef<float> dx,
                Params& grads) const {
    expert.backward(x, dy, tape.memory, dx, grads);
  }
};
static_assert(TrainableExpert<OwnExpert, float>);

template <class Set>
class TapeOfASet : public ::testing::Test {
 protected:
  const std::vector<Index> offset{0, 2, 4, 6}, token{0, 1, 2, 3, 4, 5};
  Rows rows;
  Set set = make(16);
  typename Set::Tape tape;
  GradsOf<Set> grads = set.zero_grads();

  static Set make(Index d_ff) {
    return Set({Expert<float>({D, d_ff, D_out}, {}, 1), Expert<float>({D, d_ff, D_out}, {}, 2),
                Expert<float>({D, d_ff, D_out}, {}, 3)});
  }
  ExpertInput<float> input() const { return {rows.x, {offset, token}}; }
  void forward() { set.forward(input(), rows.y, tape, 1); }
  std::string message_of_backward(const Set& of, const ExpertInput<float>& in, int threads = 1) {
    return message_of([&] { of.backward(in, rows.dy, tape, rows.dx, grads, threads); });
  }
  std::string message_of_backward() { return message_of_backward(set, input()); }
  bool nothing_was_written() const {
    return rows.dx_is_untouched() &&
           std::all_of(grads.begin(), grads.end(), [](const auto& g) { return is_zero(g); });
  }
};
using Sets = ::testing::Types<FfnExperts<float>, EachExpert<float, Expert<float>>,
                              EachExpert<float, OwnExpert>>;
TYPED_TEST_SUITE(TapeOfASet, Sets);

constexpr char nothing[] = "(nothing was thrown)";
constexpr char other_set[] = "experts: the tape is of another set of experts, expected this one's";
constexpr char other_groups[] =
    "experts: the tape is of other groups of rows, expected those of this input";

TYPED_TEST(TapeOfASet, IsOfThatSetAndOfNoOther) {
  this->forward();
  const TypeParam copy = this->set, wider = this->make(4096);
  EXPECT_EQ(this->message_of_backward(copy, this->input()), other_set);
  this->grads = wider.zero_grads();
  EXPECT_EQ(this->message_of_backward(wider, this->input()), other_set);
  this->set = wider;
  EXPECT_EQ(this->message_of_backward(), other_set);
  EXPECT_TRUE(this->nothing_was_written());
  this->forward();
  EXPECT_EQ(this->message_of_backward(), nothing);
}

TYPED_TEST(TapeOfASet, IsOfTheGroupsOfItsForward) {
  const std::vector<Index> all_of_one{0, 0, 0, 6}, shifted{0, 3, 4, 6}, empty_first{0, 0, 4, 6};
  this->forward();
  for (const auto* other : {&all_of_one, &shifted, &empty_first}) {
    EXPECT_EQ(this->message_of_backward(this->set, {this->rows.x, {*other, this->token}}),
              other_groups);
  }
  EXPECT_TRUE(this->nothing_was_written());
  EXPECT_EQ(this->message_of_backward(), nothing);
}

TYPED_TEST(TapeOfASet, KnowsWhetherItsRowsWereGathered) {
  const ExpertInput<float> in_order{this->rows.x, {this->offset}};
  const char* const other =
      "experts: the tape is of 6 rows of another input, expected the 6 of this one";
  this->forward();
  EXPECT_EQ(this->message_of_backward(this->set, in_order), other);
  this->set.forward(in_order, this->rows.y, this->tape, 1);
  EXPECT_EQ(this->message_of_backward(), other);
  EXPECT_TRUE(this->nothing_was_written());
  EXPECT_EQ(this->message_of_backward(this->set, in_order), nothing);
}

TYPED_TEST(TapeOfASet, IsStillOneAfterAForwardThatWasRefused) {
  this->forward();
  const std::vector<Index> one_row{0, 0, 0, 1};
  M narrow(N, 1);
  const ExpertInput<float> few{this->rows.x, {one_row}};
  EXPECT_THROW(this->set.forward(few, narrow, this->tape, 1), std::invalid_argument);
  const M up = this->set[2].params().up;
  this->set[2].params().up.resize(1, 1);
  EXPECT_THROW(this->set.forward(few, this->rows.y.topRows(1), this->tape, 1),
               std::invalid_argument);
  this->set[2].params().up = up;
  EXPECT_EQ(this->message_of_backward(), nothing);
}

TYPED_TEST(TapeOfASet, TakesABackwardOnMoreThreadsThanItsForward) {
  this->forward();
  EXPECT_EQ(this->message_of_backward(), nothing);
  const M want = this->rows.dx;
  const auto want_grads = std::exchange(this->grads, this->set.zero_grads());
  EXPECT_EQ(this->message_of_backward(this->set, this->input(), 5), nothing);
  EXPECT_TRUE(same_bits(this->rows.dx, want));
  EXPECT_TRUE(same_bits(this->grads[2].down, want_grads[2].down));
}

TYPED_TEST(TapeOfASet, OutlivesValuesThatAnOptimiserAssigns) {
  this->forward();
  this->set[1].params() = zeros_like(this->set[1].params());
  EXPECT_EQ(this->message_of_backward(), nothing);
}

TEST(TapeOfSets, IsNoneAfterAForwardThatAnExpertOfTheUserBrokeOff) {
  const std::vector<Index> offset{0, 2, 6}, other{0, 1, 6};
  Rows rows;
  EachExpert<float, OwnExpert> set(
      {Expert<float>({D, 16, D_out}, {}, 1), Expert<float>({D, 16, D_out}, {}, 2)});
  EachExpert<float, OwnExpert>::Tape tape;
  auto grads = set.zero_grads();
  set.forward({rows.x, {offset}}, rows.y, tape, 1);
  set[1].fails = true;
  EXPECT_THROW(set.forward({rows.x, {other}}, rows.y, tape, 1), std::runtime_error);
  EXPECT_EQ(message_of([&] {
              set.backward({rows.x, {other}}, rows.dy, tape, rows.dx, grads, 1);
            }),
            other_set);
  EXPECT_TRUE(rows.dx_is_untouched() && is_zero(grads[0]) && is_zero(grads[1]));
}

template <class Set>
void expect_a_replaced_expert_to_be_noticed() {
  const std::vector<Index> offset{0, 2, 2, 6}, token{0, 1, 2, 3, 4, 5};
  for (const Expert<float>& before : expert_of_each_kind()) {
    for (const Expert<float>& after : expert_of_each_kind()) {
      Rows rows;
      const ExpertInput<float> input{rows.x, {offset, token}};
      Set set(std::vector<Expert<float>>(3, before));
      typename Set::Tape tape;
      set.forward(input, rows.y, tape, 1);
      set[1] = after;  // has no rows
      auto grads = set.zero_grads();
      EXPECT_EQ(message_of([&] { set.backward(input, rows.dy, tape, rows.dx, grads, 1); }),
                nothing);
      rows.dx.setConstant(5.0F);
      set[2] = after;
      grads = set.zero_grads();
      EXPECT_EQ(message_of([&] { set.backward(input, rows.dy, tape, rows.dx, grads, 1); }),
                "experts.2: the tape is of another expert, expected this one's");
      EXPECT_TRUE(rows.dx_is_untouched() && is_zero(grads[0]) && is_zero(grads[2]));
    }
  }
}

TEST(TapeOfSets, OfOurExpertsIsRefusedIfOneThatHasRowsWasReplaced) {
  expect_a_replaced_expert_to_be_noticed<FfnExperts<float>>();
  expect_a_replaced_expert_to_be_noticed<EachExpert<float, Expert<float>>>();
}

}  // namespace
}  // namespace moe::tape_test
