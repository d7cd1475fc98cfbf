// SPDX-License-Identifier: Apache-2.0
// What a layer of product keys costs by its config, against a layer that counts what it does.
#include "moe/cost/product_key_cost.hpp"

#include <gtest/gtest.h>

#include "../support/counting_scalar.hpp"
#include "../support/random_matrix.hpp"
#include "moe/cost/part_cost.hpp"

namespace moe::product_key_cost_test {
namespace {

using testing::count_flops;
using testing::Counting;
using testing::random_matrix;

ProductKeyLayerConfig config_of(Index num_keys, Index top_k) {
  return {.d_model = 5, .keys = {num_keys, top_k}, .d_out = 6, .shared_d_ff = 3};
}

TEST(ProductKeyFlops, AreThoseThatALayerPerforms) {
  for (const Activation activation : all_activations) {
    for (const auto& [num_keys, top_k] : {std::pair<Index, Index>{4, 3}, {3, 9}, {6, 1}}) {
      for (const bool shared : {false, true}) {
        ProductKeyLayerConfig config = config_of(num_keys, top_k);
        config.expert.activation = activation;
        if (!shared) {
          config.shared_d_ff.reset();
        }
        const ProductKeyLayer<Counting> layer(config, 1);
        const auto x = random_matrix<Counting>(12, 5, 2), dy = random_matrix<Counting>(12, 6, 3);
        Matrix<Counting> y(12, 6), dx(12, 5);
        ProductKeyScratch<Counting> scratch;
        ProductKeyTape<Counting> tape;
        auto grads = layer.zero_grads();
        const CallOptions call{.num_threads = 1};
        Work work = predicted_work(config, 12);
        EXPECT_EQ(work.rows, 12 * top_k);
        EXPECT_EQ(forward_flops(config, work).total(),
                  count_flops([&] { layer.forward(x, y, scratch, call); }));
        EXPECT_EQ(forward_flops(config, work).total(),
                  count_flops([&] { layer.forward(x, y, tape, call); }));
        const auto count = count_flops([&] { layer.backward(x, dy, tape, dx, grads); });
        work.distinct_experts = static_cast<double>(tape.plan.num_active());
        EXPECT_EQ(backward_flops(config, work).total(), count);
      }
    }
  }
}

TEST(ProductKeyFlops, OfRoutingGrowWithTheRootOfTheNumberOfExperts) {
  const auto gate = [](Index num_keys) {
    const ProductKeyLayerConfig config = config_of(num_keys, 8);
    return forward_flops(config, predicted_work(config, 1)).router.matmul;
  };
  EXPECT_EQ(gate(128), 2.0 * 2 * 128 * 5);
  EXPECT_EQ(gate(256), 2.0 * gate(128));
}

TEST(ProductKeyParameters, AreThoseThatALayerHas) {
  const ProductKeyLayerConfig config = config_of(4, 3);
  const ParameterCount count = parameters(config);
  EXPECT_EQ(count.total, parameters(ProductKeyLayer<float>(config, 1)));
  EXPECT_EQ(count.router, 8 * 5);
  EXPECT_EQ(count.total - count.active, (16 - 3) * (5 + 6));
  EXPECT_THROW(parameters(ProductKeyLayerConfig{}), std::invalid_argument);
}

TEST(ProductKeyBytes, AreThoseOfTheWeightsOfTheChosenExperts) {
  const ProductKeyLayerConfig config = config_of(4, 3);
  const LayerBytes bytes = forward_bytes(config, predicted_work(config, 1), 4);
  EXPECT_NEAR(bytes.weights, 4.0 * static_cast<double>(parameters(config).active), 1e-9);
  EXPECT_EQ(bytes.activations, 4.0 * (5 + 6 + 8));
}

}  // namespace
}  // namespace moe::product_key_cost_test
