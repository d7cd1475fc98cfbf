// SPDX-License-Identifier: Apache-2.0
// Experts that compute nothing or next to nothing, as a set around a set and in a layer: values,
// gradients, names, cost, and what is refused.
#include "moe/experts/zero.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "../support/counting_scalar.hpp"
#include "../support/finite_difference.hpp"
#include "../support/matrix_near.hpp"
#include "../support/random_matrix.hpp"
#include "../support/throws.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/reference.hpp"

namespace moe::zero_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

constexpr Index D = 5;
constexpr ZeroComputation zero{.constants = 2, .copies = 1, .zeros = 1};

/// Two feed-forwards and the four of `zero`.
template <class T>
ZeroExperts<T> experts() {
  std::vector<Expert<T>> list;
  for (const Index d_ff : {3, 4}) {
    list.emplace_back(typename Expert<T>::Sizes{D, d_ff, D}, ExpertConfig{}, 7);
  }
  return ZeroExperts<T>(FfnExperts<T>(std::move(list)), zero, 3);
}

/// Rows of every expert, in its order.
struct Rows {
  std::vector<Index> offset{0, 2, 3, 5, 8, 10, 12};
  std::vector<Index> token{0, 3, 1, 2, 4, 5, 0, 1, 3, 4, 5, 2};
  std::vector<double> weight{0.5, 2, 1, 0.25, 3, 1, 0.5, 2, 4, 1, 1, 2};
  Matrix<double> x = random_matrix<double>(6, D, 1);

  ExpertInput<double> input(bool weighted) const {
    return {
        x, {offset, token}, weighted ? std::span<const double>(weight) : std::span<const double>()};
  }
};

Matrix<double> forward(const ZeroExperts<double>& set, const ExpertInput<double>& input) {
  Matrix<double> rows = Matrix<double>::Constant(12, D, std::nan(""));
  ZeroExperts<double>::Scratch scratch;
  set.forward(input, rows, scratch, 1);
  return rows;
}

TEST(ZeroExperts, PassOnMixOrLeaveOutTheirRowsAsTheReference) {
  const auto set = experts<double>();
  const Rows rows;
  for (const bool weighted : {false, true}) {
    const Matrix<double> got = forward(set, rows.input(weighted));
    for (std::size_t e = 0; e < 6; ++e) {
      for (Index row = rows.offset[e]; row < rows.offset[e + 1]; ++row) {
        const auto slot = static_cast<std::size_t>(row);
        reference::Row x = reference::row_of(rows.x, rows.token[slot]);
        for (double& value : x) {
          value *= weighted ? rows.weight[slot] : 1.0;
        }
        const Expert<double>& ffn = set.set()[e < 2 ? e : 0];
        const auto& p = set.constants()[e == 3 ? 1 : 0];
        const auto want = e < 2 ? reference::expert(ffn.params(), ffn.config(), x)
                                : reference::zero_expert(zero, static_cast<Index>(e) - 2, p, x);
        EXPECT_TRUE(testing::matrix_near(
            got.row(row), Eigen::Map<const Matrix<double>>(want.data(), 1, D), 1e-14));
      }
    }
    EXPECT_TRUE(got.bottomRows(2).isZero(0));
  }
}

TEST(ZeroExperts, MixAConstantByHand) {
  std::vector<Expert<double>> list;
  list.emplace_back(Expert<double>::Sizes{2, 1, 2}, ExpertConfig{}, 1);
  ConstantParams<double> p{.mixing = Matrix<double>(2, 2), .vector = Matrix<double>(1, 2)};
  p.mixing << std::log(3.0), 0, 0, 0;  // for x = (1, 8): softmax of (log 3, 0) = (3/4, 1/4)
  p.vector << 4, -16;
  const ZeroExperts<double> set(FfnExperts<double>(std::move(list)), {.constants = 1}, {p});
  Matrix<double> x(1, 2), y(1, 2), want(1, 2);
  x << 1, 8;
  want << 1.75, 2;
  const std::vector<Index> offset{0, 0, 1};
  ZeroExperts<double>::Scratch scratch;
  set.forward({x, {offset}}, y, scratch, 1);
  EXPECT_TRUE(testing::matrix_near(y, want, 1e-14));
}

TEST(ZeroExperts, HaveTheGradientsOfDifferences) {
  auto set = experts<double>();
  Rows rows;
  const Matrix<double> drows = random_matrix<double>(12, D, 2);
  for (const bool weighted : {false, true}) {
    ZeroExperts<double>::Tape tape;
    Matrix<double> out(12, D), dx_rows(12, D), dx = Matrix<double>::Zero(6, D);
    auto grads = set.zero_grads();
    set.forward(rows.input(weighted), out, tape, 2);
    EXPECT_TRUE(same_bits(out, forward(set, rows.input(weighted))));
    set.backward(rows.input(weighted), drows, tape, dx_rows, grads, 2);
    for (Index row = 0; row < 12; ++row) {
      const auto slot = static_cast<std::size_t>(row);
      dx.row(rows.token[slot]) += (weighted ? rows.weight[slot] : 1.0) * dx_rows.row(row);
    }
    const auto f = [&] { return forward(set, rows.input(weighted)).cwiseProduct(drows).sum(); };
    EXPECT_LT(testing::gradient_error(f, rows.x, dx), 1e-7);
    int tensors = 0;
    walk_params(
        set, {.word = "experts"},
        [&](const ParameterName& name, Matrix<double>& parameter, const Matrix<double>& grad) {
          EXPECT_LT(testing::gradient_error(f, parameter, grad), 1e-7) << name.text();
          tensors += parameter.size() > 0 ? 1 : 0;
        },
        grads);
    EXPECT_EQ(tensors, 2 * 3 + 2 * 2);
  }
}

TEST(ZeroExperts, StandInALayer) {
  using Layer = MoELayer<double, Router<double>, ZeroExperts<double>>;
  Layer layer(Router<double>(D, 6, 3, {.weight = {.renormalise = false}}, 5), experts<double>());
  Matrix<double> x = random_matrix<double>(8, D, 9);
  const Matrix<double> dy = random_matrix<double>(8, D, 10);
  Matrix<double> y(8, D), dx(8, D);
  Layer::Tape tape;
  Layer::Scratch scratch;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape);
  layer.backward(x, dy, tape, dx, grads);
  const auto f = [&] {
    layer.forward(x, y, scratch);
    return y.cwiseProduct(dy).sum();
  };
  EXPECT_LT(testing::gradient_error(f, x, dx), 1e-7);
  std::vector<std::string> names;
  layer.for_each_parameter(
      [&](const std::string& name, Matrix<double>& parameter, const Matrix<double>& grad) {
        names.push_back(name);
        EXPECT_LT(testing::gradient_error(f, parameter, grad), 1e-7) << name;
      },
      grads);
  EXPECT_EQ(names.back(), "experts.3.vector");
}

TEST(ZeroExperts, CostNothingButTheMixing) {
  using T = testing::Counting;
  const auto set = experts<T>();
  const Matrix<T> x = random_matrix<T>(4, D, 1), drows = random_matrix<T>(4, D, 2);
  Matrix<T> rows(4, D), dx_rows(4, D);
  const auto flops = [&](const std::vector<Index>& offset) {
    ZeroExperts<T>::Tape tape;
    auto grads = set.zero_grads();
    const ExpertInput<T> input{x, {offset}};
    const auto forward = testing::count_flops([&] { set.forward(input, rows, tape, 1); });
    const auto backward =
        testing::count_flops([&] { set.backward(input, drows, tape, dx_rows, grads, 1); });
    return std::pair{forward, backward};
  };
  EXPECT_EQ(flops({0, 0, 0, 0, 0, 3, 4}), (std::pair<std::int64_t, std::int64_t>{0, 0}));
  EXPECT_EQ(flops({0, 0, 0, 2, 3, 4, 4}),
            (std::pair<std::int64_t, std::int64_t>{3 * constant_expert_flops(D),
                                                   3 * constant_expert_backward_flops(D)}));
}

TEST(ZeroExperts, StandAroundPackedExpertsWithTheSameBits) {
  std::vector<Expert<float>> list;
  list.emplace_back(Expert<float>::Sizes{D, 9, D}, ExpertConfig{}, 7);
  const FfnExperts<float> ffn(std::move(list));
  const ZeroExperts<float> trains(ffn, zero, 3);
  const ZeroExperts<float, PackedExperts<float>> packed(PackedExperts<float>(ffn), zero,
                                                        trains.constants());
  const Matrix<float> x = random_matrix<float>(10, D, 1);
  Matrix<float> want(10, D), got(10, D);
  const std::vector<Index> offset{0, 3, 5, 7, 8, 10};
  ZeroExperts<float>::Scratch scratch;
  ZeroExperts<float, PackedExperts<float>>::Scratch packed_scratch;
  trains.forward({x, {offset}}, want, scratch, 2);
  packed.forward({x, {offset}}, got, packed_scratch, 2);
  EXPECT_TRUE(same_bits(got, want));
}

TEST(ZeroExperts, RefuseWhatDoesNotFit) {
  const auto ffn = [](Index d_out) {
    std::vector<Expert<float>> list;
    list.emplace_back(Expert<float>::Sizes{D, 3, d_out}, ExpertConfig{}, 7);
    return FfnExperts<float>(std::move(list));
  };
  const auto message = [](auto f) { return testing::message_of(f); };
  EXPECT_EQ(message([&] { ZeroExperts<float>(ffn(4), {.zeros = 2}, 1); }), "(nothing was thrown)");
  EXPECT_EQ(message([&] { ZeroExperts<float>(ffn(4), {.copies = 2}, 1); }),
            "ZeroExperts: the set is 5 to 4 wide, expected as wide as its input for constants and "
            "copies");
  EXPECT_EQ(message([&] { ZeroExperts<float>(ffn(5), {.copies = -1}, 1); }),
            "ZeroExperts: (0, -1, 0) constants, copies and zeros, expected at least 0 of each");
  EXPECT_EQ(message([&] {
              ZeroExperts<float>(ffn(5), {.constants = 1}, std::vector<ConstantParams<float>>());
            }),
            "ZeroExperts: there are parameters of 0 constant experts, expected 1");
}

}  // namespace
}  // namespace moe::zero_test
