// SPDX-License-Identifier: Apache-2.0
// Tests of the walk over parameters: names, order, shapes, and parts within parts.
#include "moe/parameters.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "support/throws.hpp"

namespace moe::parameters_test {
namespace {

struct TwoTensors {
  Matrix<float> a, b;

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    visit(std::string_view("a"), p.a...);
    visit(std::string_view("b"), p.b...);
  }
};

struct Part {
  using Params = TwoTensors;
  Params own{Matrix<float>::Ones(2, 3), Matrix<float>::Ones(1, 4)};

  Params& params() { return own; }
  const Params& params() const { return own; }
};

/// Several parts, and one of another name.
struct Whole {
  struct Params {
    std::vector<TwoTensors> several;
    TwoTensors one;
  };
  std::vector<Part> several{2};
  Part one;

  Params zero_grads() const {
    return {{zero_grads_of(several[0]), zero_grads_of(several[1])}, zero_grads_of(one)};
  }
  template <class W, class Visit, class... P>
  static void walk(W& whole, const ParameterName& name, Visit&& visit, P&... p) {
    for (std::size_t i = 0; i < 2; ++i) {
      const ParameterName number{"several", static_cast<Index>(i), &name};
      walk_params(whole.several[i], number, visit, p.several[i]...);
    }
    walk_params(whole.one, {.word = "one", .part = &name}, visit, p.one...);
  }
};

/// The same tensors in another scalar.
struct WideTensors {
  Matrix<double> a, b;

  template <class Visit, class... P>
  static void for_each(Visit&& visit, P&... p) {
    TwoTensors::for_each(visit, p...);
  }
};

struct PartWithWideGrads : Part {
  using Grads = WideTensors;
};

static_assert(HasParams<Part> && !WalksParams<Part>);
static_assert(std::same_as<GradsOf<Part>, TwoTensors>);
static_assert(HasParams<PartWithWideGrads> &&
              std::same_as<GradsOf<PartWithWideGrads>, WideTensors>);
static_assert(WalksParams<Whole> && !HasParams<Whole>);

std::vector<std::string> names_of(const auto& part, const ParameterName& name) {
  std::vector<std::string> names;
  walk_params(part, name, [&](const ParameterName& n, const auto&) { names.push_back(n.text()); });
  return names;
}

using Names = std::vector<std::string>;

TEST(ParameterName, IsMadeOfTheNamesOfItsParts) {
  EXPECT_EQ(names_of(Part{}, {}), (Names{"a", "b"}));
  EXPECT_EQ(names_of(Part{}, {.word = "router"}), (Names{"router.a", "router.b"}));
  const Names whole = names_of(Whole{}, {.word = "layer", .number = 7});
  EXPECT_EQ(whole, (Names{"layer.7.several.0.a", "layer.7.several.0.b", "layer.7.several.1.a",
                          "layer.7.several.1.b", "layer.7.one.a", "layer.7.one.b"}));
  EXPECT_EQ(names_of(Whole{}, {}).front(), "several.0.a");
}

TEST(ParameterName, IsAStringWhereOneIsTaken) {
  const ParameterName part{.word = "shared"}, name{.word = "up", .part = &part};
  const std::string text = name;
  EXPECT_EQ(text, "shared.up");
}

TEST(ParameterName, IsItsTextAndNoOther) {
  const ParameterName layer{.word = "layer", .number = 12};
  Names names;
  const Whole whole;
  walk_params(whole, layer, [&](const ParameterName& name, const auto&) {
    const std::string text = name.text();
    EXPECT_TRUE(name.is(text)) << text;
    for (const std::string& other :
         {"x" + text, text + "x", text.substr(1), std::string(), text.substr(0, text.size() - 1)}) {
      EXPECT_FALSE(name.is(other)) << text << ' ' << other;
    }
    for (const std::string& other : names) {
      EXPECT_FALSE(name.is(other)) << text << ' ' << other;
    }
    names.push_back(text);
  });
  EXPECT_TRUE(ParameterName{}.is(""));
  EXPECT_FALSE(layer.is("layer.2"));
}

TEST(WalkParams, VisitsThePartAndTheOthersInStep) {
  Whole whole;
  Whole::Params grads = whole.zero_grads();
  grads.several[1].b.setConstant(5.0F);
  walk_params(
      whole, {}, [](const ParameterName&, auto& weight, const auto& grad) { weight -= grad; },
      grads);
  EXPECT_EQ(whole.several[1].own.b(0, 0), -4.0F);
  EXPECT_EQ(whole.several[0].own.b(0, 0), 1.0F);
  EXPECT_EQ(whole.one.own.a(1, 2), 1.0F);
}

TEST(ZeroGradsOf, HasTheShapesOfTheParameters) {
  const Whole::Params grads = zero_grads_of(Whole{});
  ASSERT_EQ(grads.several.size(), 2u);
  EXPECT_EQ(grads.one.a, (Matrix<float>::Zero(2, 3)));
  EXPECT_EQ(grads.several[1].b, (Matrix<float>::Zero(1, 4)));
}

TEST(CheckShapes, NamesTheTensorOfAnotherShapeAndTakesEmptyForEmpty) {
  struct Shapes {
    Shape a, b;
  };
  const Part part;
  const auto message = [&](const Shapes& shapes) {
    return testing::message_of([&] { check_shapes(part.own, shapes, {.word = "part"}); });
  };
  EXPECT_EQ(message({{2, 3}, {1, 4}}), "(nothing was thrown)");
  EXPECT_EQ(message({{3, 2}, {1, 4}}), "parameter part.a is (2, 3), expected (3, 2)");
  EXPECT_EQ(message({{2, 3}, {0, 4}}), "parameter part.b is (1, 4), expected (0, 4)");
  EXPECT_TRUE((Shape{0, 4}.fits(Matrix<float>(1, 0))));
  EXPECT_FALSE((Shape{1, 4}.fits(Matrix<float>(1, 0))));
  EXPECT_FALSE((Shape{1, 4}.fits(Matrix<float>(2, 2))));
}

TEST(ZeroGradsOf, IsInTheScalarThatThePartKeepsGradientsIn) {
  WideTensors grads = zero_grads_of(PartWithWideGrads{});
  EXPECT_EQ(grads.a, (Matrix<double>::Zero(2, 3)));
  EXPECT_EQ(grads.b, (Matrix<double>::Zero(1, 4)));
  EXPECT_NO_THROW(check_grads(PartWithWideGrads{}, {.word = "Part"}, grads));
  grads.b.resize(1, 5);
  EXPECT_EQ(testing::message_of([&] { check_grads(PartWithWideGrads{}, {.word = "Part"}, grads); }),
            "gradient Part.b is (1, 5), expected (1, 4)");
}

TEST(CheckGrads, NamesTheTensorOfAnotherShape) {
  const Whole whole;
  Whole::Params grads = whole.zero_grads();
  EXPECT_NO_THROW(check_grads(whole, {.word = "Whole"}, grads));
  grads.several[1].a.resize(3, 2);
  EXPECT_EQ(testing::message_of([&] { check_grads(whole, {.word = "Whole"}, grads); }),
            "gradient Whole.several.1.a is (3, 2), expected (2, 3)");
}

}  // namespace
}  // namespace moe::parameters_test
