// SPDX-License-Identifier: Apache-2.0
// What whole models cost: one by hand, weight by weight, and what must hold of all.
#include "moe/cost/model_cost.hpp"

#include <gtest/gtest.h>

#include <stdexcept>

#include "moe/cost/models.hpp"

namespace moe::model_cost_test {
namespace {

TEST(ModelCost, OfMixtralByHand) {
  const ModelCost cost = model_cost(published_model("Mixtral-8x7B"));
  const Index attention = 2 * 4096 * 4096 + 2 * 4096 * 1024;  // q and output; k and v of 8 heads
  const Index expert = 3 * 4096 * 14336, router = 8 * 4096, embedding = 32000 * 4096;
  const Index norms = (2 * 32 + 1) * 4096;
  EXPECT_EQ(cost.total, 32 * (attention + router + 8 * expert) + norms + 2 * embedding);
  EXPECT_EQ(2 * cost.total, 93'405'585'408) << "bytes in bfloat16, from the index of its files";
  EXPECT_EQ(cost.active, 32 * (attention + router + 2 * expert) + norms + 2 * embedding);
  EXPECT_EQ(cost.active_with_embedding, cost.active);
  EXPECT_EQ(cost.embedding, embedding);
  EXPECT_EQ(cost.flops_per_token,
            2.0 * static_cast<double>(32 * (attention + router + 2 * expert) + embedding));
}

ModelConfig tiny() {
  return {.name = "tiny",
          .family = "tiny",
          .layers = 3,
          .dense_layers = 1,
          .dense_d_ff = 7,
          .vocabulary = 11,
          .attention =
              LatentAttentionConfig{
                  .heads = 2, .q_rank = 3, .kv_rank = 5, .nope_dim = 4, .rope_dim = 2, .v_dim = 6},
          .moe = {.d_model = 10,
                  .d_ff = 8,
                  .num_experts = 4,
                  .top_k = 2,
                  .router = {.selection = {.bias = true}},
                  .shared = SharedExpertConfig{.d_ff = 9}},
          .published = {.rule = ActiveCount::without_embedding}};
}

TEST(ModelCost, OfATinyModelByHand) {
  const Index queries = 10 * 3 + 3 * 2 * (4 + 2), keys_values = 10 * (5 + 2) + 5 * 2 * (4 + 6);
  const Index attention = queries + keys_values + 2 * 6 * 10;
  const Index dense = 3 * 10 * 7, expert = 3 * 10 * 8, shared = 3 * 10 * 9, router = 4 * 10;
  const Index products = 3 * attention + dense + 2 * (router + 2 * expert + shared) + 11 * 10;
  const Index norms = 3 * (3 + 5) + (2 * 3 + 1) * 10, correction = 2 * 4;
  const ModelCost cost = model_cost(tiny());
  EXPECT_EQ(cost.flops_per_token, 2.0 * static_cast<double>(products));
  EXPECT_EQ(cost.embedding, 11 * 10);
  EXPECT_EQ(cost.active, products + norms + correction);
  EXPECT_EQ(cost.active_with_embedding, cost.active + cost.embedding);
  EXPECT_EQ(cost.total, cost.active_with_embedding + 2 * 2 * expert);
}

TEST(ModelCost, OfATiedModelHasOneEmbedding) {
  ModelConfig model = tiny();
  model.tied = true;
  EXPECT_EQ(model_cost(model).total, model_cost(tiny()).total - 11 * 10);
  EXPECT_EQ(model_cost(model).active, model_cost(tiny()).active);
  EXPECT_EQ(model_cost(model).embedding, 0);
}

TEST(DenseOfEqual, IsTheModelWithoutItsRouters) {
  for (const ModelConfig& model : published_models()) {
    if (model.moe.expert.bias) {
      continue;  // several small feed-forwards have more biases than one that is as wide
    }
    const MoEConfig& c = model.moe;
    const Index gate = c.shared && c.shared->output_gate ? c.d_model : 0;
    const Index router = c.num_experts * (c.d_model + (c.router.selection.bias ? 1 : 0)) + gate;
    const Index routers = (model.layers - model.dense_layers) * router;
    const ModelCost cost = model_cost(model), total = dense_of_equal_total(model);
    EXPECT_EQ(dense_of_equal_active(model).total, cost.active_with_embedding - routers)
        << model.name;
    EXPECT_EQ(total.total, cost.total - routers) << model.name;
    EXPECT_EQ(total.active_with_embedding, total.total) << model.name;
  }
}

TEST(ModelCost, ThrowsForAModelThatIsNotValid) {
  ModelConfig model = tiny();
  model.dense_layers = 4;
  EXPECT_THROW(model_cost(model), std::invalid_argument);
  EXPECT_THROW(dense_of_equal_active(model), std::invalid_argument);
  EXPECT_THROW(dense_of_equal_total(model), std::invalid_argument);
}

}  // namespace
}  // namespace moe::model_cost_test
