// SPDX-License-Identifier: Apache-2.0
// Rows of GGUF architectures that have something of their own.
#include "moe/io/gguf_rows.hpp"

#include "gguf_models.hpp"
#include "moe/storage.hpp"

namespace moe::io::testing::gguf::gguf_rows_test {
namespace {

TEST_F(GgufModels, HaveTheLimitBehindSiluElsewhere) {
  GgufFile file = model("step35", experts("blk.0."));
  file.keys.push_back({"step35.swiglu_clamp_exp", gguf_array(6, {raw(7.0F), raw(0.0F)})});
  const LayerConfig config = config_of(file);
  EXPECT_EQ(config.expert.clamp, Clamp::after);
  EXPECT_EQ(config.expert.limit, 7.0);
  EXPECT_EQ(config.router.score, Score::sigmoid);
}

TEST_F(GgufModels, HaveTheLimitOfRoutedExpertsAloneInHyV4) {
  GgufFile file = model("hy-v4", experts("blk.0."));
  file.keys.push_back({"hy-v4.swiglu_clamp_exp", gguf_array(6, {raw(10.0F)})});
  file.keys.push_back({"hy-v4.expert_shared_count", gguf_u32(1)});
  const LayerConfig config = config_of(file);
  EXPECT_EQ(config.expert.limit, 10.0);
  EXPECT_EQ(config.expert.clamp, Clamp::before);
  ASSERT_TRUE(config.shared);
  EXPECT_FALSE(config.shared->limit);
}

TEST_F(GgufModels, CapTheRoutersOfGrokWhereTheirKeyIsLeftOut) {
  GgufFile file = model("grok", experts("blk.0."));
  EXPECT_EQ(config_of(file).router.logits.softcap, 30.0);
  EXPECT_EQ(config_of(model("laguna", experts("blk.0."))).router.logits.softcap, 0.0);
  file.keys.push_back({"grok.router_logit_softcapping", gguf_f32(5.0F)});
  EXPECT_EQ(config_of(file).router.logits.softcap, 5.0);
}

TEST_F(GgufModels, HaveLatentExpertsWithBoundsInKimiK3) {
  GgufFile file = model("kimi-k3", experts("blk.0."));
  file.keys.push_back({"kimi-k3.expert_latent_length", gguf_u32(32)});
  file.keys.push_back({"kimi-k3.activation.situ_beta", gguf_f32(3.0F)});
  const LayerConfig config = config_of(file);
  ASSERT_TRUE(config.latent);
  EXPECT_EQ(config.latent->width, 32);
  EXPECT_TRUE(config.latent->norm);
  EXPECT_EQ(config.expert.activation, Activation::situ);
  EXPECT_EQ(config.expert.gate_bound, 3.0);
  EXPECT_EQ(config.expert.up_bound, 25.0);
}

TEST_F(GgufModels, OfGemma4AreLoadedWithTheScalesOfTheirRouter) {
  std::vector<GgufTensor> tensors = experts("blk.0.");
  tensors.push_back(tensor("blk.0.ffn_gate_inp.scale", {D}, 6));
  tensors.push_back(tensor("blk.0.ffn_down_exps.scale", {E}, 7));
  const auto layer = load_layer<float, NormRouter<float>>(write(model("gemma4", tensors)), 0);
  EXPECT_EQ(layer.router().params().norm_scale.cols(), D);
  EXPECT_EQ(layer.router().params().expert_scale.cols(), E);
  EXPECT_EQ(layer.experts()[0].config().activation, Activation::gelu_tanh);
}

TEST_F(GgufModels, OfGroveAreLoadedWithTheSmallExpertsThatOthersShare) {
  std::vector<GgufTensor> tensors = experts("blk.0.");
  constexpr Index small = 8;
  tensors.push_back(tensor("blk.0.ffn_gate_chexps.weight", {E / 2, small, D}, 6));
  tensors.push_back(tensor("blk.0.ffn_up_chexps.weight", {E / 2, small, D}, 7));
  tensors.push_back(tensor("blk.0.ffn_down_chexps.weight", {E / 2, D, small}, 8));
  GgufFile file = model("grovemoe", tensors);
  file.keys.push_back({"grovemoe.expert_chunk_feed_forward_length", gguf_u32(small)});
  file.keys.push_back({"grovemoe.experts_per_group", gguf_u32(2)});
  file.keys.push_back({"grovemoe.expert_group_scale", gguf_f32(0.05F)});
  const fs::path path = write(file);
  const auto layer = load_layer<float, Router<float>, AdjugateExperts<float>>(path, 0);
  ASSERT_EQ(layer.experts().adjugates().num_experts(), E / 2);
  EXPECT_EQ(layer.experts().adjugates()[1].d_ff(), small);
  EXPECT_FLOAT_EQ(static_cast<float>(layer.experts().scale()), 0.05F);
  using Packed = AdjugateExperts<float, PackedExperts<float>>;
  const auto packed = load_packed<float, Router<float>, Packed>(path, 0);
  const Matrix<float> x = Matrix<float>::Constant(3, D, 0.25F);
  Matrix<float> y(3, D), z(3, D);
  decltype(layer)::Scratch scratch;
  decltype(packed)::Scratch packed_scratch;
  layer.forward(x, y, scratch);
  packed.forward(x, z, packed_scratch);
  EXPECT_EQ(y, z);
  EXPECT_THROW(load_layer<float>(path, 0), FormatError);
  EXPECT_THROW((load_layer<float, Router<float>, AdjugateExperts<float>>(
                   write(model("qwen3moe", experts("blk.0."))), 0)),
               FormatError);
}

}  // namespace
}  // namespace moe::io::testing::gguf::gguf_rows_test
