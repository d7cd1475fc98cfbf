// SPDX-License-Identifier: Apache-2.0
// What every set of experts gives, on groups that no router made: the rows of each expert alone.
#include <gtest/gtest.h>

#include "moe/experts.hpp"
#include "support/matrix_near.hpp"
#include "support/random_matrix.hpp"
#include "support/throws.hpp"

namespace moe::sets_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

std::vector<Expert<float>> three_experts(const ExpertConfig& config = {.bias = true,
                                                                       .output_gate = true}) {
  std::vector<Expert<float>> experts;
  for (const Index d_ff : {21, 40, 13}) {  // of different widths
    experts.emplace_back(Expert<float>::Sizes{17, d_ff, 19}, config, 1);
    testing::randomise(experts.back().params(), static_cast<std::uint64_t>(d_ff), 0.7);
  }
  return experts;
}

/// Three groups: seven rows, none, eleven rows; tokens at random, some twice.
struct Rows {
  std::vector<Index> offset{0, 7, 7, 18};
  std::vector<Index> token{3, 0, 9, 9, 1, 12, 5, 2, 2, 2, 7, 8, 11, 0, 10, 4, 6, 3};
  std::vector<float> weight;
  Matrix<float> x = random_matrix<float>(13, 17, 3);

  Rows() {
    for (std::size_t row = 0; row < token.size(); ++row) {
      weight.push_back(0.25F + 0.5F * static_cast<float>(row));
    }
  }
  RowGroups groups() const { return {offset, token}; }
};

/// Row by row through Expert::forward.
Matrix<float> wanted(const std::vector<Expert<float>>& experts, const ExpertInput<float>& input) {
  Matrix<float> rows(input.groups.num_rows(), 19);
  Expert<float>::Scratch scratch;
  for (Index e = 0; e < input.groups.num_experts(); ++e) {
    for (Index row = input.groups.begin(e); row < input.groups.end(e); ++row) {
      const float weight =
          input.weight.empty() ? 1.0F : input.weight[static_cast<std::size_t>(row)];
      const Matrix<float> x = weight * input.x.row(input.groups.token_of(row));
      experts[static_cast<std::size_t>(e)].forward(x, rows.row(row), scratch);
    }
  }
  return rows;
}

template <class Set>
Matrix<float> forward(const Set& set, const ExpertInput<float>& input, int threads) {
  typename Set::Scratch scratch;
  Matrix<float> rows = Matrix<float>::Constant(input.groups.num_rows(), 19, std::nanf(""));
  set.forward(input, rows, scratch, threads);
  return rows;
}

template <class Set>
class SetOfExperts : public ::testing::Test {};
using Sets =
    ::testing::Types<EachExpert<float, Expert<float>>, FfnExperts<float>, PackedExperts<float>>;
TYPED_TEST_SUITE(SetOfExperts, Sets);

template <class Set>
Set make(const std::vector<Expert<float>>& experts) {
  if constexpr (std::same_as<Set, PackedExperts<float>>) {
    return Set(FfnExperts<float>(experts));
  } else {
    return Set(experts);
  }
}

TYPED_TEST(SetOfExperts, GivesEachRowTheBitsOfItsExpertAlone) {
  const auto experts = three_experts();
  const auto set = make<TypeParam>(experts);
  const Rows rows;
  const std::vector<float> ones;
  for (const std::vector<float>& weight : {ones, rows.weight}) {
    const ExpertInput<float> input{rows.x, rows.groups(), weight};
    for (const int threads : {1, 2, 3}) {
      EXPECT_TRUE(same_bits(forward(set, input, threads), wanted(experts, input))) << threads;
    }
  }
}

/// Each of another width, activation, limit and set of tensors.
std::vector<Expert<float>> three_kinds() {
  const ExpertConfig kinds[] = {
      {.activation = Activation::relu_squared, .gated = false, .bias = true},
      {.activation = Activation::gelu_quick, .output_gate = true, .limit = 0.7, .up_offset = 1.0},
      {.bias = true, .limit = 0.5, .clamp = Clamp::after}};
  std::vector<Expert<float>> experts;
  Index d_ff = 13;
  for (const ExpertConfig& kind : kinds) {
    experts.emplace_back(Expert<float>::Sizes{17, d_ff += 20, 19}, kind, 1);
    testing::randomise(experts.back().params(), static_cast<std::uint64_t>(d_ff), 0.7);
  }
  return experts;
}

TYPED_TEST(SetOfExperts, MayHaveExpertsOfDifferentKindsAndWidths) {
  const auto experts = three_kinds();
  const auto set = make<TypeParam>(experts);
  Rows rows;
  rows.offset = {0, 4, 9, 18};
  const ExpertInput<float> input{rows.x, rows.groups()};
  for (const int threads : {1, 3}) {
    EXPECT_TRUE(same_bits(forward(set, input, threads), wanted(experts, input))) << threads;
  }
}

TYPED_TEST(SetOfExperts, TakesRowsThatCameFromElsewhereInOrder) {
  const auto experts = three_experts();
  const auto set = make<TypeParam>(experts);
  const Rows rows;
  const Matrix<float> x = random_matrix<float>(18, 17, 4);
  const ExpertInput<float> input{x, {rows.offset}};
  EXPECT_TRUE(same_bits(forward(set, input, 2), wanted(experts, input)));
}

TYPED_TEST(SetOfExperts, TakesNoRows) {
  const auto set = make<TypeParam>(three_experts());
  const std::vector<Index> offset(4, 0);
  const Matrix<float> x(0, 17);
  EXPECT_EQ(forward(set, {x, {offset}}, 2).rows(), 0);
}

TYPED_TEST(SetOfExperts, WritesRowsOfAnyStride) {
  const auto experts = three_experts();
  const auto set = make<TypeParam>(experts);
  const Rows rows;
  const ExpertInput<float> input{rows.x, rows.groups()};
  Matrix<float> wide = Matrix<float>::Constant(20, 30, 7.0F);
  typename TypeParam::Scratch scratch;
  set.forward(input, wide.block(1, 5, 18, 19), scratch, 2);
  EXPECT_TRUE(same_bits(Matrix<float>(wide.block(1, 5, 18, 19)), wanted(experts, input)));
  wide.block(1, 5, 18, 19).setConstant(7.0F);
  EXPECT_TRUE((wide.array() == 7.0F).all()) << "and nothing else";
}

TYPED_TEST(SetOfExperts, RefusesGroupsThatReachPastXOrAreNotInOrderAndWritesNothing) {
  const auto set = make<TypeParam>(three_experts());
  const auto message = [&](auto change) {
    Rows rows;
    rows.token.back() = 12;
    Index out_rows = 18;
    change(rows, out_rows);
    Matrix<float> out = Matrix<float>::Constant(out_rows, 19, 5.0F);
    typename TypeParam::Scratch scratch;
    const std::string text = testing::message_of([&] {
      set.forward({rows.x, rows.groups(), rows.weight}, out, scratch, 2);
    });
    EXPECT_TRUE((out.array() == 5.0F).all() || text == "(nothing was thrown)");
    return text;
  };
  EXPECT_EQ(message([](Rows&, Index&) {}), "(nothing was thrown)");
  EXPECT_EQ(message([](Rows& rows, Index&) { rows.token[4] = 13; }),
            "RowGroups: token[4] = 13, expected in [0, rows of x = 13)");
  EXPECT_EQ(message([](Rows& rows, Index&) {
              rows.offset = {0, 7, 5, 18};
            }),
            "RowGroups: offset[2] = 5, expected at least 7");
  EXPECT_EQ(message([](Rows& rows, Index&) {
              rows.offset = {0, 7, 7, 18, 18};
            }),
            "RowGroups: offset has 5 elements, expected num_experts + 1 = 4");
  EXPECT_EQ(message([](Rows& rows, Index&) { rows.weight.pop_back(); }),
            "experts: weight has 17 elements, expected as many as rows = 18");
  EXPECT_EQ(message([](Rows& rows, Index&) { rows.x.resize(13, 16); }),
            "experts: x is (13, 16), expected (13, 17)");
  EXPECT_EQ(message([](Rows&, Index& out_rows) { out_rows = 17; }),
            "experts: rows is (17, 19), expected (18, 19)");
}

template <class Set>
void expect_backward_refuses_what_does_not_fit() {
  const Set set(three_experts());
  const Rows rows;
  const ExpertInput<float> input{rows.x, rows.groups(), rows.weight};
  Matrix<float> out(18, 19), drows = random_matrix<float>(18, 19, 5);
  Matrix<float> dx_rows = Matrix<float>::Constant(18, 17, 5.0F);
  typename Set::Tape tape;
  auto grads = set.zero_grads();
  set.forward(input, out, tape, 2);
  const auto message = [&](const ExpertInput<float>& in) {
    return testing::message_of([&] { set.backward(in, drows, tape, dx_rows, grads, 2); });
  };
  const std::vector<Index> fewer{0, 7, 7, 17};
  EXPECT_EQ(message({rows.x, {fewer, std::span(rows.token).first(17)}}),
            "experts: drows is (18, 19), expected (17, 19)");
  drows.resize(18, 18);
  EXPECT_EQ(message(input), "experts: drows is (18, 18), expected (18, 19)");
  drows = random_matrix<float>(18, 19, 5);
  grads[2].down.resize(19, 21);
  EXPECT_EQ(message(input), "gradient experts.2.down is (19, 21), expected (19, 13)");
  grads.pop_back();
  EXPECT_EQ(message(input), "gradient experts has 2 experts, expected 3");
  grads = set.zero_grads();
  tape = {};
  EXPECT_EQ(message(input),
            "experts: the tape is of 0 rows of another input, expected the 18 of this one");
  EXPECT_TRUE((dx_rows.array() == 5.0F).all());
}

TEST(SetsOfExperts, ThatTrainRefuseGradientsAndTapesThatDoNotFit) {
  expect_backward_refuses_what_does_not_fit<FfnExperts<float>>();
  expect_backward_refuses_what_does_not_fit<EachExpert<float, Expert<float>>>();
}

template <class Set>
struct Step {
  Matrix<float> rows{18, 19}, dx_rows{18, 17};
  GradsOf<Set> grads;

  Step(const Set& set, const ExpertInput<float>& input, int threads) : grads(set.zero_grads()) {
    typename Set::Tape tape;
    const Matrix<float> drows = random_matrix<float>(18, 19, 5);
    set.forward(input, rows, tape, threads);
    set.backward(input, drows, tape, dx_rows, grads, threads);
  }
};

TEST(SetsOfExperts, ThatTrainGiveTheSameGradientsForAnyThreadCount) {
  using Each = EachExpert<float, Expert<float>>;
  using Ffn = FfnExperts<float>;
  const Rows rows;
  const ExpertInput<float> input{rows.x, rows.groups(), rows.weight};
  const Step<Each> want(Each(three_experts()), input, 1);
  const auto compare = [&](const auto& step) {
    EXPECT_TRUE(same_bits(step.rows, want.rows));
    EXPECT_TRUE(same_bits(step.dx_rows, want.dx_rows));
    for (std::size_t e = 0; e < 3; ++e) {
      ExpertParams<float>::for_each([](std::string_view name, const auto& a,
                                       const auto& b) { EXPECT_TRUE(same_bits(a, b)) << name; },
                                    step.grads[e], want.grads[e]);
    }
  };
  for (const int threads : {1, 2, 3}) {
    compare(Step<Each>(Each(three_experts()), input, threads));
    compare(Step<Ffn>(Ffn(three_experts()), input, threads));
  }
}

TEST(SetsOfExperts, OfDifferentKindsGiveTheGradientsOfEachAlone) {
  Rows rows;
  rows.offset = {0, 4, 9, 18};
  const ExpertInput<float> input{rows.x, rows.groups()};
  using Each = EachExpert<float, Expert<float>>;
  const Step<Each> want(Each(three_kinds()), input, 1);
  for (const int threads : {1, 3}) {
    const Step<FfnExperts<float>> step(FfnExperts<float>(three_kinds()), input, threads);
    EXPECT_TRUE(same_bits(step.dx_rows, want.dx_rows));
    for (std::size_t e = 0; e < 3; ++e) {
      ExpertParams<float>::for_each([](std::string_view name, const auto& a,
                                       const auto& b) { EXPECT_TRUE(same_bits(a, b)) << name; },
                                    step.grads[e], want.grads[e]);
    }
  }
}

template <class Set>
std::string message_with_hidden_weights(std::size_t size) {
  const auto set = make<Set>(three_experts());
  const Rows rows;
  const std::vector<float> weight(size, 1.0F);
  Matrix<float> out(18, 19);
  typename Set::Scratch scratch;
  return testing::message_of([&] {
    set.forward({rows.x, rows.groups(), {}, weight}, out, scratch, 2);
  });
}

TEST(SetsOfExperts, TakeWeightsOfHiddenRowsOnlyIfTheyHaveThem) {
  EXPECT_EQ(message_with_hidden_weights<FfnExperts<float>>(18), "(nothing was thrown)");
  EXPECT_EQ(message_with_hidden_weights<PackedExperts<float>>(18), "(nothing was thrown)");
  EXPECT_EQ(message_with_hidden_weights<FfnExperts<float>>(17),
            "experts: hidden_weight has 17 elements, expected as many as rows = 18");
  EXPECT_EQ((message_with_hidden_weights<EachExpert<float, Expert<float>>>(18)),
            "experts: hidden_weight is set, expected none by a set without hidden rows");
}

TEST(SetsOfExperts, RefuseNoneAndThoseOfDifferentWidths) {
  EXPECT_THROW(FfnExperts<float>(std::vector<Expert<float>>()), std::invalid_argument);
  auto experts = three_experts();
  experts.emplace_back(Expert<float>::Sizes{18, 4, 19}, ExpertConfig{}, 1);
  EXPECT_THROW(FfnExperts<float>{experts}, std::invalid_argument);
  EXPECT_THROW((EachExpert<float, Expert<float>>(experts)), std::invalid_argument);
}

TEST(SetsOfExperts, RefuseGradientsOfAnotherNumberOfExperts) {
  const FfnExperts<float> set(three_experts());
  auto grads = set.zero_grads();
  grads.pop_back();
  EXPECT_THROW(check_grads(set, {.word = "experts"}, grads), std::invalid_argument);
}

}  // namespace
}  // namespace moe::sets_test
