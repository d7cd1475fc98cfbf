// SPDX-License-Identifier: Apache-2.0
// Which walks an optimiser refuses: each number is in one tensor, each tensor has a name of its
// own, and they are those of before.
#include "moe/train/trained_tensors.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <string_view>

#include "../support/layer_step.hpp"
#include "../support/throws.hpp"
#include "moe/train/adamw.hpp"
#include "moe/train/sgd.hpp"

namespace moe::trained_tensors_test {
namespace {

using testing::make_layer;
using testing::message_of;
using testing::random_matrix;
using testing::same_bits;

TEST(TrainedTensors, RefuseAWalkThatHasANameTwice) {
  Matrix<float> a = random_matrix<float>(4, 5, 1), b = random_matrix<float>(4, 5, 2);
  const Matrix<float> before_a = a, before_b = b, gradient = Matrix<float>::Ones(4, 5);
  AdamW<float> adam;
  const auto step = [&](const char* first, const char* second) {
    return message_of([&] {
      adam.step(
          [&](auto&& visit) {
            visit(first, a, gradient);
            visit(second, b, gradient);
          },
          {.rate = 0.1});
    });
  };
  EXPECT_EQ(step("up", "up"), "optimiser: the walk has up twice, expected a name for each tensor");
  EXPECT_TRUE(same_bits(a, before_a) && same_bits(b, before_b));
  EXPECT_EQ(adam.steps(), 0);
  EXPECT_EQ(step("up", "down"), "(nothing was thrown)");
  EXPECT_EQ(adam.steps(), 1);
}

TEST(TrainedTensors, RefuseAWalkThatVisitsANumberTwice) {
  Matrix<float> tied = random_matrix<float>(4, 5, 1);
  const Matrix<float> before = tied, gradient = Matrix<float>::Ones(4, 5);
  AdamW<float> adam;
  EXPECT_EQ(message_of([&] {
              adam.step(
                  [&](auto&& visit) {
                    visit("embedding", tied, gradient);
                    visit("head", tied, gradient);
                  },
                  {.rate = 0.1});
            }),
            "optimiser: parameters embedding and head share memory, expected every number in one "
            "tensor of the walk");
  using Rows = Eigen::Map<Matrix<float>>;
  const Matrix<float> part = gradient.topRows(2);
  Rows top(tied.data(), 2, 5), middle(tied.data() + 5, 2, 5), bottom(tied.data() + 10, 2, 5);
  const auto walk = [&](Rows& first, Rows& second) {
    return [&](auto&& visit) {
      visit("first", first, part);
      visit("second", second, part);
    };
  };
  EXPECT_THROW(adam.step(walk(middle, top), {.rate = 0.1}), std::invalid_argument);
  EXPECT_TRUE(same_bits(tied, before));
  adam.step(walk(bottom, top), {.rate = 0.1});  // side by side
  EXPECT_EQ((tied.array() != before.array()).count(), 20);
}

TEST(TrainedTensors, RefuseTensorsOfOneShapeInAnotherOrder) {
  Matrix<float> a = random_matrix<float>(3, 5, 1), b = random_matrix<float>(3, 5, 2);
  const Matrix<float> a_before = a;
  const Matrix<float> gradient = Matrix<float>::Zero(3, 5);
  const auto walk = [&](auto first, auto second) {
    return [&gradient, &a, &b, first, second](auto&& visit) {
      visit(first, a, gradient);
      visit(second, b, gradient);
    };
  };
  Sgd<float> sgd({.decay = 0.1});
  sgd.prepare(walk("a", "b"));
  EXPECT_EQ(message_of([&] { sgd.step(walk("b", "a"), {.rate = 0.1}); }),
            "optimiser: parameter b, expected a as before");
  EXPECT_EQ(message_of([&] { sgd.step(walk("a", std::string("c")), {.rate = 0.1}); }),
            "optimiser: parameter c, expected b as before");
  EXPECT_TRUE(same_bits(a, a_before));
  const auto made = [](const char* name) { return [name] { return std::string(name); }; };
  sgd.step(walk(made("b"), made("a")), {.rate = 0.1});  // to know them they would have to be made
  EXPECT_EQ(sgd.steps(), 1);
}

TEST(TrainedTensors, RefuseALayerWhoseNameIsAnother) {
  auto layer = make_layer<float>({.d_model = 6, .d_ff = 5, .num_experts = 12, .top_k = 2}, 1);
  auto grads = layer.zero_grads();
  Sgd<float> sgd;
  const auto step = [&](std::string_view prefix) {
    sgd.step([&](auto&& visit) { visit_trained(visit, layer, grads, prefix); }, {.rate = 0.1});
  };
  step("layers.0.");
  step("layers.0.");
  const std::string message = message_of([&] { step("layers.1."); });
  EXPECT_TRUE(message.starts_with("optimiser: parameter layers.1.")) << message;
  EXPECT_NE(message.find(", expected layers.0."), std::string::npos) << message;
}

TEST(TrainedTensors, RefuseATensorInAnotherScalarThanBefore) {
  const std::string refused =
      "optimiser: parameter w is in another scalar, expected that of before";
  Matrix<float> wide = random_matrix<float>(3, 5, 1);
  const Matrix<float> gradient = random_matrix<float>(3, 5, 2);
  Matrix<bf16> narrow = wide.cast<bf16>();
  const auto walk = [&](auto& parameter) {
    return [&](auto&& visit) { visit("w", parameter, gradient); };
  };
  AdamW<float> of_wide, of_narrow;
  of_wide.step(walk(wide), {.rate = 0.1});
  of_narrow.step(walk(narrow), {.rate = 0.1});
  const Matrix<float> wide_before = wide;
  const Matrix<bf16> narrow_before = narrow;
  EXPECT_EQ(message_of([&] { of_wide.step(walk(narrow), {.rate = 0.1}); }), refused);
  EXPECT_EQ(message_of([&] { of_narrow.step(walk(wide), {.rate = 0.1}); }), refused);
  EXPECT_TRUE(same_bits(wide, wide_before));
  EXPECT_TRUE(same_bits(narrow, narrow_before));
  EXPECT_EQ(of_wide.steps(), 1);
}

}  // namespace
}  // namespace moe::trained_tensors_test
