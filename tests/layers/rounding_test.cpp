// SPDX-License-Identifier: Apache-2.0
// What a layer of 16 bits adds up for a token it rounds once, as the sum in double would be: of the
// router, the shared expert and the rows of the routed experts, each in 16 bits as it came.
#include <gtest/gtest.h>

#include <optional>

#include "moe/layers/moe_layer.hpp"
#include "support/layer_step.hpp"

namespace moe::rounding_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

constexpr Index N = 30, D = 40, E = 3;

/// Token t goes to the experts t and t + 1 mod E; its gradient by x is what it was made with.
template <class T>
struct GivenGradient {
  using Table = RoutingTable<Wide<T>>;
  using Params = NoParams;
  Matrix<T> given;
  Params none_at_all = {};

  Params& params() { return none_at_all; }
  const Params& params() const { return none_at_all; }
  Index num_experts() const { return E; }
  void route(ConstMatrixRef<T> x, const CallOptions&, Table& table) const {
    table.expert.resize(x.rows(), 2);
    table.weight.resize(x.rows(), 2);
    for (Index t = 0; t < x.rows(); ++t) {
      table.expert.row(t) << static_cast<ExpertId>(t % E), static_cast<ExpertId>((t + 1) % E);
      table.weight.row(t) << Wide<T>(0.75), Wide<T>(-0.25);  // their products are exact in float
    }
  }
  void backward(ConstMatrixRef<T>, const Table&, RoutingGradient<Wide<T>>&, MatrixRef<T> dx,
                Params&) const {
    dx = given;
  }
};

template <class T>
class LayerRounding : public ::testing::Test {
 public:
  using Router = GivenGradient<T>;
  using Layer = MoELayer<T, Router>;

  static Layer layer(WeightOn weight_on, std::optional<DenseFfn<T>> shared) {
    return Layer(Router{random_matrix<T>(N, D, 1)},
                 make_experts<T>({.d_model = D, .d_ff = 24, .num_experts = E, .top_k = 2}, 2),
                 {.weight_on = weight_on}, std::move(shared));
  }

  /// base + the sum of each token's rows times their weights (S), in double.
  static Matrix<double> sums(const Matrix<T>& base, const typename Layer::Tape& tape,
                             const GrowingMatrix<T>& rows, bool weighted) {
    Matrix<double> sums = base.template cast<double>();
    for (std::size_t row = 0; row < tape.plan.token().size(); ++row) {
      const double weight = weighted ? double(tape.work.row_weight[row]) : 1.0;
      sums.row(tape.plan.token()[row]) +=
          weight * rows.row(static_cast<Index>(row)).template cast<double>();
    }
    return sums;
  }
  static Matrix<T> rounded(const Matrix<double>& sums) {
    return sums.unaryExpr([](double sum) { return kernels::convert<T>(sum); });
  }
};
using Scalars = ::testing::Types<bf16, Eigen::half>;
TYPED_TEST_SUITE(LayerRounding, Scalars);

TYPED_TEST(LayerRounding, OfTheGradientOfAnInputIsThatOfTheSumOfAllItsParts) {
  using T = TypeParam;
  const auto layer =
      TestFixture::layer(WeightOn::output, DenseFfn<T>({D, 16, D}, ExpertConfig{}, 3));
  typename TestFixture::Layer::Tape tape;
  const auto step = testing::run_step(layer, random_matrix<T>(N, D, 4), {.num_threads = 1}, &tape);
  const Matrix<double> base =
      layer.router().given.template cast<double>() + tape.work.shared_dx.template cast<double>();
  Matrix<double> want = TestFixture::sums(Matrix<T>::Zero(N, D), tape, tape.work.dx_rows, false);
  want += base;
  EXPECT_TRUE(same_bits(step.dx, TestFixture::rounded(want)));
}

TYPED_TEST(LayerRounding, OfWeightsOfInputsIsThatOfTheSumOfTheWeightedGradients) {
  using T = TypeParam;
  const auto layer = TestFixture::layer(WeightOn::input, std::nullopt);
  typename TestFixture::Layer::Tape tape;
  const auto step = testing::run_step(layer, random_matrix<T>(N, D, 4), {.num_threads = 1}, &tape);
  EXPECT_TRUE(same_bits(step.dx, TestFixture::rounded(TestFixture::sums(layer.router().given, tape,
                                                                        tape.work.dx_rows, true))));
}

TYPED_TEST(LayerRounding, OfAnOutputIsThatOfTheSumOfTheSharedExpertAndTheWeightedRows) {
  using T = TypeParam;
  const auto layer =
      TestFixture::layer(WeightOn::output, DenseFfn<T>({D, 16, D}, ExpertConfig{}, 3));
  typename TestFixture::Layer::Tape tape;
  const auto step = testing::run_step(layer, random_matrix<T>(N, D, 4), {.num_threads = 1}, &tape);
  EXPECT_TRUE(same_bits(step.y, TestFixture::rounded(TestFixture::sums(tape.work.shared_out, tape,
                                                                       tape.work.rows, true))));
}

}  // namespace
}  // namespace moe::rounding_test
