// SPDX-License-Identifier: Apache-2.0
// Product keys and experts of rank one as a layer: against plain loops and against the formula of
// the published model, what they are where that is known, and gradients.
#include "moe/layers/product_key_layer.hpp"

#include <gtest/gtest.h>

#include "moe/losses/z_loss.hpp"
#include "moe/reference/product_keys.hpp"
#include "support/finite_difference.hpp"
#include "support/product_key_layers.hpp"

namespace moe {

template class ProductKeyLayer<float>;
template class ProductKeyLayer<double>;
template class ProductKeyLayer<bf16>;
template class ProductKeyLayer<Eigen::half>;
static_assert(TrainableExpert<ProductKeyLayer<float>, float>);

}  // namespace moe

namespace moe::product_key_layer_test {
namespace {

using namespace testing::product_keys;
using testing::matrix_near;
using testing::random_matrix;
using testing::same_bits;

template <class T>
void expect_plain_loops(const ProductKeyLayerConfig& config, double tolerance) {
  const auto layer = make_layer<T>(config);
  const auto x = random_matrix<T>(N, config.d_model, 3);
  for (const Tokens& tokens : all_tokens()) {
    const CallOptions call{.num_threads = 2, .tokens = tokens};
    const Matrix<double> want = reference::product_key_layer(layer, x, tokens);
    EXPECT_TRUE(matrix_near(forward(layer, x, call), want, tolerance));
    EXPECT_TRUE(matrix_near(run_step(layer, x, call).y, want, tolerance)) << "training";
  }
}

TEST(ProductKeyLayer, IsWhatPlainLoopsMakeOfBothReadingsAndPadding) {
  for (const KeyReading reading : all_readings) {
    ProductKeyLayerConfig config = small_config(reading);
    for (const Index top_k : {1, 3, 9, 16}) {
      config.keys.top_k = top_k;
      expect_plain_loops<double>(config, 1e-13);
      expect_plain_loops<float>(config, 2e-6);
    }
    config.shared_d_ff.reset();
    config.keys.top_k = 3;
    expect_plain_loops<double>(config, 1e-13);
    expect_plain_loops<bf16>(config, 0.02);
    expect_plain_loops<Eigen::half>(config, 0.003);
  }
}

TEST(ProductKeyLayer, OfManyKeysAndWideRowsIsWhatPlainLoopsMake) {
  ProductKeyLayerConfig config{.d_model = 70, .keys = {.num_keys = 40, .top_k = 64}, .d_out = 1100};
  for (const Activation activation : all_activations) {
    config.expert.activation = activation;
    const auto layer = make_layer<double>(config);
    const auto x = random_matrix<double>(5, 70, 3);
    EXPECT_TRUE(matrix_near(forward(layer, x), reference::product_key_layer(layer, x), 1e-12));
  }
}

/// The block of Doge as its code has it, step by step: one linear map, whose memory is taken for
/// two matrices (N, n), all sums of the sorted halves, the best of those, a softmax, and the rows
/// of two embeddings.
Matrix<double> published(const ProductKeyLayer<double>& layer, const Matrix<double>& x) {
  const Index tokens = x.rows(), n = layer.router().config().num_keys;
  const Index k = layer.router().top_k(), experts = n * n;
  const auto& p = layer.experts().params();
  const auto& shared = layer.shared()->params();
  const auto silu = [](double z) { return z / (1.0 + std::exp(-z)); };
  const Matrix<double> logits = x * layer.router().params().weight.transpose();
  const Eigen::Map<const Matrix<double>> halves(logits.data(), 2 * tokens, n);
  Matrix<double> y(tokens, layer.d_out());
  for (Index t = 0; t < tokens; ++t) {
    std::vector<std::pair<double, Index>> sums;
    for (Index e = 0; e < experts; ++e) {
      sums.emplace_back(halves(t, e / n) + halves(tokens + t, e % n), e);
    }
    std::sort(sums.begin(), sums.end(), std::greater<>());
    Eigen::ArrayXd weight(k);
    for (Index i = 0; i < k; ++i) {
      weight(i) = std::exp(sums[static_cast<std::size_t>(i)].first);
    }
    weight /= weight.sum();
    weight /= weight.sum();  // norm_topk_prob
    const Eigen::VectorXd token = x.row(t).transpose();
    Eigen::VectorXd hidden = shared.gate * token;
    hidden = hidden.unaryExpr(silu).cwiseProduct(shared.up * token);
    Eigen::VectorXd sum = shared.down * hidden;
    for (Index i = 0; i < k; ++i) {
      const Index e = sums[static_cast<std::size_t>(i)].second;
      sum += weight(i) * silu(p.down.row(e).dot(token)) * p.up.row(e).transpose();
    }
    y.row(t) = sum.transpose();
  }
  return y;
}

TEST(ProductKeyLayer, AcrossTheBatchIsThePublishedModel) {
  const auto layer = make_layer<double>(small_config(KeyReading::across_batch));
  for (const Index tokens : {1, 2, 7, 12}) {
    const auto x = random_matrix<double>(tokens, layer.d_in(), 3);
    EXPECT_TRUE(matrix_near(forward(layer, x), published(layer, x), 1e-13)) << tokens;
  }
  const auto own = make_layer<double>(small_config());
  const auto one = random_matrix<double>(1, layer.d_in(), 4);
  EXPECT_TRUE(same_bits(forward(own, one), forward(layer, one))) << "of one token both are one";
  const auto two = random_matrix<double>(2, layer.d_in(), 4);
  EXPECT_FALSE(matrix_near(forward(own, two), forward(layer, two), 1e-3)) << "of two they are not";
}

TEST(ProductKeyLayer, OfAllExpertsIsTheSoftmaxOfAllSums) {
  ProductKeyLayerConfig config = small_config();
  config.keys.top_k = config.keys.num_experts();
  const auto layer = make_layer<double>(config);
  const auto x = random_matrix<double>(N, config.d_model, 3);
  ProductKeyScratch<double> scratch;
  Matrix<double> y(N, layer.d_out());
  layer.forward(x, y, scratch);
  for (Index t = 0; t < N; ++t) {
    const reference::Row all = reference::row_of(scratch.routing.logits, t);
    const reference::Row first = reference::softmax({all.begin(), all.begin() + 4});
    const reference::Row second = reference::softmax({all.begin() + 4, all.end()});
    for (Index k = 0; k < 16; ++k) {
      const auto e = static_cast<std::size_t>(scratch.routing.expert(t, k));
      EXPECT_NEAR(scratch.routing.weight(t, k), first[e / 4] * second[e % 4], 1e-14);
    }
  }
}

/// The worst error of all gradients against differences, with a loss of the logits of the keys.
double gradient_error(ProductKeyLayer<double> layer, const CallOptions& call) {
  auto x = random_matrix<double>(N, layer.d_in(), 3);
  const auto dy = random_matrix<double>(N, layer.d_out(), 4);
  Matrix<double> y(N, layer.d_out()), dx = x;
  ProductKeyTape<double> tape;
  auto grads = layer.zero_grads();
  layer.forward(x, y, tape, call);
  layer.backward(x, dy, tape, dx, grads, (0.3 * z_loss(tape.routing)).gradient);
  ProductKeyScratch<double> scratch;
  const auto f = [&] {
    layer.forward(x, y, scratch, call);
    return (y.array() * dy.array()).sum() + 0.3 * z_loss(scratch.routing).value;
  };
  double worst = testing::gradient_error(f, x, dx);
  layer.for_each_parameter(
      [&](const ParameterName&, Matrix<double>& parameter, const Matrix<double>& grad) {
        worst = std::max(worst, testing::gradient_error(f, parameter, grad));
      },
      grads);
  return worst;
}

TEST(ProductKeyLayer, HasTheGradientsOfCentralDifferences) {
  for (const KeyReading reading : all_readings) {
    for (const Tokens& tokens : {Tokens{}, Tokens{.padding = padding}}) {
      const CallOptions call{.num_threads = 1, .tokens = tokens};
      ProductKeyLayerConfig config = small_config(reading);
      EXPECT_LT(gradient_error(make_layer<double>(config), call), 1e-7);
      config.shared_d_ff.reset();
      config.keys.top_k = 16;
      config.expert.activation = Activation::gelu_tanh;
      EXPECT_LT(gradient_error(make_layer<double>(config), call), 1e-7);
      config.keys.top_k = 1;
      EXPECT_LT(gradient_error(make_layer<double>(config), call), 1e-7);
    }
  }
}

TEST(ProductKeyLayer, AddsToTheGradientsThatThereAre) {
  const auto layer = make_layer<double>(small_config());
  const auto x = random_matrix<double>(N, layer.d_in(), 3);
  testing::expect_gradients_added(layer, x);
}

}  // namespace
}  // namespace moe::product_key_layer_test
