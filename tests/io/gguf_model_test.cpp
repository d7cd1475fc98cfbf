// SPDX-License-Identifier: Apache-2.0
// From a GGUF file to a layer: what its keys and tensors say by their architecture, where its
// numbers stand, and how it is refused.
#include "moe/io/gguf_config.hpp"

#include "gguf_models.hpp"
#include "moe/storage.hpp"

namespace moe::io::testing::gguf::gguf_model_test {
namespace {

TEST_F(GgufModels, HaveTheirWeightsInRowsOfOutputs) {
  auto tensors = experts("blk.0.");
  tensors.push_back(gguf_floats("blk.0.ffn_norm_exps.weight", {D}));  // before the block
  const fs::path path = write(model("qwen3moe", tensors));
  const auto layer = load_layer<float>(path, 0);
  expect_experts(layer, tensors);
  EXPECT_FALSE(layer.shared());
  Checkpoint checkpoint(path);
  EXPECT_EQ(checkpoint.layers(), std::vector<Index>{0});
  EXPECT_EQ(checkpoint.family().name(), "qwen3moe");
  expect_fault([&] { checkpoint.block_of(1); }, path, "", {"layer 1 is no MoE layer"});
}

TEST_F(GgufModels, AreDecodedWhateverTypesAreMixed) {
  for (const std::array<std::uint32_t, 3> types :
       {std::array<std::uint32_t, 3>{8, 2, 39}, {6, 39, 8}, {2, 8, 6}}) {
    const auto tensors = experts("blk.0.", types);
    const fs::path path = write(model("qwen3moe", tensors));
    expect_experts(load_layer<float>(path, 0), tensors);
    const auto wide = load_layer<double>(path, 0);
    EXPECT_EQ(wide.experts()[1].params().up.cast<float>(), values(tensors[2], F * D, F, D));
    const auto packed = load_packed<float>(path, 0);
    const Matrix<float> x = Matrix<float>::Random(3, D);
    Matrix<float> y(3, D), want(3, D);
    typename std::decay_t<decltype(packed)>::Scratch scratch;
    packed.forward(x, y, scratch, {});
    pack<float>(load_layer<float>(path, 0)).forward(x, want, scratch, {});
    EXPECT_EQ(y, want);
    EXPECT_TRUE(y.allFinite());
  }
}

TEST_F(GgufModels, AreDecodedFromSuperBlocks) {
  constexpr Index wide = 256;
  for (const std::uint32_t type : {12U, 13U, 14U}) {
    std::vector<GgufTensor> tensors = experts("blk.0.");
    tensors[0] = tensor("blk.0.ffn_gate_inp.weight", {E, wide}, 1);
    tensors[1] = tensor("blk.0.ffn_gate_exps.weight", {E, F, wide}, 2, type);
    tensors[2] = tensor("blk.0.ffn_up_exps.weight", {E, F, wide}, 3, type);
    tensors[3] =
        tensor("blk.0.ffn_down_exps.weight", {E, wide, F}, 4, 8);  // which F is too few for
    GgufFile file = model("qwen3moe", tensors);
    file.keys[2].second = gguf_u32(wide);
    const auto layer = load_layer<float>(write(file), 0);
    const auto& expert = layer.experts()[2].params();
    const auto same = [](const Matrix<float>& a, const Matrix<float>& b) {
      return std::memcmp(a.data(), b.data(), sizeof(float) * static_cast<std::size_t>(a.size())) ==
             0;  // any block may have a NaN
    };
    EXPECT_TRUE(same(expert.up, values(tensors[2], 2 * F * wide, F, wide)));
    EXPECT_TRUE(same(expert.down, values(tensors[3], 2 * F * wide, wide, F)));
  }
}

TEST_F(GgufModels, MayHaveGateAndUpInOneTensor) {
  std::vector<GgufTensor> tensors = experts("blk.0.");
  const GgufTensor fused = tensor("blk.0.ffn_gate_up_exps.weight", {E, 2 * F, D}, 5, 8);
  tensors[1] = fused;
  tensors.erase(tensors.begin() + 2);
  const auto layer = load_layer<float>(write(model("qwen3moe", tensors)), 0);
  for (Index e = 0; e < E; ++e) {
    const auto& expert = layer.experts()[static_cast<std::size_t>(e)].params();
    EXPECT_EQ(expert.gate, values(fused, 2 * e * F * D, F, D));
    EXPECT_EQ(expert.up, values(fused, (2 * e + 1) * F * D, F, D));
  }
}

TEST_F(GgufModels, MayBeSplit) {
  const auto tensors = experts("blk.0.");
  GgufFile first = model("qwen3moe", {tensors.begin(), tensors.begin() + 2});
  GgufFile second{.tensors = {tensors.begin() + 2, tensors.end()}};
  for (GgufFile* const part : {&first, &second}) {
    part->keys.push_back({"split.no", gguf_u16(part == &first ? 0 : 1)});
    part->keys.push_back({"split.count", gguf_u16(2)});
  }
  write(second, "m-00002-of-00002.gguf");
  expect_experts(load_layer<float>(write(first, "m-00001-of-00002.gguf"), 0), tensors);
}

TEST_F(GgufModels, HaveSharedExperts) {
  std::vector<GgufTensor> tensors = experts("blk.0.");
  tensors.push_back(tensor("blk.0.ffn_gate_shexp.weight", {2 * F, D}, 6));
  tensors.push_back(tensor("blk.0.ffn_up_shexp.weight", {2 * F, D}, 7, 8));
  tensors.push_back(tensor("blk.0.ffn_down_shexp.weight", {D, 2 * F}, 8));
  GgufFile file = model("qwen2moe", tensors);
  file.tensors.push_back(tensor("blk.0.ffn_gate_inp_shexp.weight", {D}, 9));
  file.keys.push_back({"qwen2moe.expert_shared_feed_forward_length", gguf_u32(2 * F)});
  const auto layer = load_layer<float>(write(file), 0);
  ASSERT_TRUE(layer.shared());
  const auto& shared = layer.shared()->expert().params();
  EXPECT_EQ(shared.up, values(tensors[7], 0, 2 * F, D));
  EXPECT_EQ(shared.output_gate, values(file.tensors.back(), 0, 1, D));
  EXPECT_EQ(layer.router().config().weight.renormalise, false);

  GgufFile counted = model("deepseek2", tensors);
  counted.keys.push_back({"deepseek2.expert_shared_count", gguf_u32(2)});
  EXPECT_EQ(config_of(counted).shared->d_ff, 2 * F);
  counted.keys.push_back({"deepseek2.expert_shared_feed_forward_length", gguf_u32(2 * F)});
  EXPECT_EQ(config_of(counted).shared->d_ff, 2 * F);
  counted.keys.back().second = gguf_u32(F);  // of one of them, as the tensors say
  EXPECT_EQ(config_of(counted).shared->d_ff, 2 * F);
  counted.keys.back().second = gguf_u32(F / 2);
  expect_bad(counted, "blk.0.ffn_gate_shexp.weight", {"F32 [64, 64], expected F32 [16, 64]"});
  counted.keys.resize(counted.keys.size() - 2);
  expect_bad(counted, "blk.0.ffn_down_shexp.weight", {"no parameter of family deepseek2"});
}

TEST_F(GgufModels, OfGptOssHaveBiases) {
  std::vector<GgufTensor> tensors = experts("blk.0.", {39, 39, 39});
  tensors.push_back(tensor("blk.0.ffn_gate_inp.bias", {E}, 6));
  tensors.push_back(tensor("blk.0.ffn_gate_exps.bias", {E, F}, 7));
  tensors.push_back(tensor("blk.0.ffn_up_exps.bias", {E, F}, 8));
  tensors.push_back(tensor("blk.0.ffn_down_exps.bias", {E, D}, 9));
  const auto layer = load_layer<float>(write(model("gpt-oss", tensors)), 0);
  expect_experts(layer, tensors);
  EXPECT_EQ(layer.router().params().bias, values(tensors[6], 0, 1, E));
  const auto& expert = layer.experts()[3];
  EXPECT_EQ(expert.params().gate_bias, values(tensors[7], 3 * F, 1, F));
  EXPECT_EQ(expert.params().up_bias, values(tensors[8], 3 * F, 1, F));
  EXPECT_EQ(expert.params().down_bias, values(tensors[9], 3 * D, 1, D));
  EXPECT_EQ(expert.config().activation, Activation::gelu_quick);
  EXPECT_EQ(expert.config().limit, 7.0);
  EXPECT_EQ(expert.config().up_offset, 1.0);
  EXPECT_EQ(layer.router().config().weight.source, WeightSource::softmax_of_chosen);
}

TEST_F(GgufModels, HaveTheRulesOfDeepSeek) {
  std::vector<GgufTensor> tensors = experts("blk.0.");
  tensors.push_back(tensor("blk.0.exp_probs_b.bias", {E}, 6));
  GgufFile file = model("deepseek2", tensors);
  const std::size_t bare = file.keys.size();
  EXPECT_EQ(config_of(file).router.score, Score::softmax);
  file.keys.push_back({"deepseek2.expert_gating_func", gguf_u32(2)});
  file.keys.push_back({"deepseek2.expert_weights_norm", gguf_bool(true)});
  file.keys.push_back({"deepseek2.expert_weights_scale", gguf_f32(2.5F)});
  file.keys.push_back({"deepseek2.expert_group_count", gguf_u32(2)});
  file.keys.push_back({"deepseek2.expert_group_used_count", gguf_u32(1)});
  const LayerConfig config = config_of(file);
  EXPECT_EQ(config.router.score, Score::sigmoid);
  EXPECT_TRUE(config.router.selection.bias);
  ASSERT_TRUE(config.router.selection.groups);
  EXPECT_EQ(config.router.selection.groups->num_groups, 2);
  EXPECT_EQ(config.router.selection.groups->kept, 1);
  EXPECT_EQ(config.router.selection.groups->rule, GroupRule::sum_of_two_best);
  EXPECT_EQ(config.router.selection.groups->others, OtherGroups::minus_infinity);
  EXPECT_EQ(config.router.weight.scale, 2.5);
  EXPECT_EQ(config.router.weight.renormalise, true);
  EXPECT_EQ(config.router.weight.epsilon, 0x1p-14);
  EXPECT_EQ(config.router.weight.epsilon_rule, EpsilonRule::least);
  EXPECT_EQ(load_layer<float>(write(file), 0).router().params().selection_bias,
            values(tensors[6], 0, 1, E));

  file.keys.resize(bare);  // GLM-4.7-Flash of before the key
  file.keys[1].second = gguf_u32(47);
  file.keys.push_back({"deepseek2.vocab_size", gguf_u32(154880)});
  file.keys.push_back({"deepseek2.expert_weights_scale", gguf_f32(0)});
  EXPECT_EQ(config_of(file).router.score, Score::sigmoid);
  EXPECT_EQ(config_of(file).router.weight.scale, 1.0);
  file.keys.push_back({"deepseek2.expert_gating_func", gguf_u32(4)});
  expect_bad(file, "", {"expert_gating_func: 4", "1 2, all that is supported of deepseek2"});
}

TEST_F(GgufModels, HaveTablesAndTheLimitBeforeSiluInDeepSeek4) {
  std::vector<GgufTensor> tensors = experts("blk.0.");
  GgufTensor table{"blk.0.ffn_gate_tid2eid.weight", {K, 3}, 26, {}};
  for (const std::int32_t expert : {0, 1, 3, 2, 1, 2}) {
    append(table.data, raw(expert));
  }
  tensors.push_back(table);
  GgufFile file = model("deepseek4", tensors);
  for (const GgufTensor& second : experts("blk.1.")) {
    file.tensors.push_back(second);
  }
  file.tensors.push_back(tensor("blk.1.exp_probs_b.bias", {E}, 6));
  file.keys.push_back({"deepseek4.expert_gating_func", gguf_u32(4)});
  file.keys.push_back({"deepseek4.expert_weights_norm", gguf_bool(true)});
  file.keys.push_back({"deepseek4.hash_layer_count", gguf_u32(1)});
  file.keys.push_back({"deepseek4.swiglu_clamp_exp", gguf_array(6, {raw(10.0F), raw(9.0F)})});
  file.keys.push_back(
      {"tokenizer.ggml.tokens", gguf_array(8, {raw_text("a"), raw_text("b"), raw_text("c")})});
  const fs::path path = write(file);
  Checkpoint checkpoint(path);
  const LayerConfig first = checkpoint.layer_config(0), second = checkpoint.layer_config(1);
  EXPECT_EQ(first.router.selection.vocabulary, 3);
  EXPECT_EQ(first.router.score, Score::sqrt_softplus);
  EXPECT_EQ(first.expert.limit, 10.0);
  EXPECT_EQ(first.expert.clamp, Clamp::before);
  EXPECT_EQ(second.expert.limit, 9.0);
  EXPECT_EQ(second.router.selection.vocabulary, 0);
  EXPECT_TRUE(second.router.selection.bias);
  EXPECT_EQ(load_layer<float>(path, 0).router().top_k(), K);
  EXPECT_EQ(load_layer<float>(path, 1).router().top_k(), K);
}

TEST_F(GgufModels, PredictFurtherTokensInLayersThatAreNotCounted) {
  GgufFile file = model("glm4moe", experts("blk.0."));
  for (const GgufTensor& second : experts("blk.1.")) {
    file.tensors.push_back(second);
  }
  EXPECT_EQ(Checkpoint(write(file)).layers(), (std::vector<Index>{0, 1}));
  file.keys.push_back({"glm4moe.nextn_predict_layers", gguf_u32(1)});
  Checkpoint checkpoint(write(file));
  EXPECT_EQ(checkpoint.layers(), std::vector<Index>{0});
  EXPECT_EQ(checkpoint.multi_token_prediction(), std::vector<std::string>{"blk.1"});
}

TEST_F(GgufModels, OfEveryRowHaveAConfig) {
  for (const Family& family : io::detail::gguf_families) {
    for (const std::string_view type : io::detail::words(family.model_types)) {
      GgufFile file = model(std::string(type), experts("blk.0."));
      const std::string keys = joined(family.adjugates.each.keys, " ", family.adjugates.width.keys,
                                      " ", family.adjugates.scale.keys);
      for (const std::string_view key : io::detail::words(keys)) {
        file.keys.push_back({joined(type, ".", key), gguf_u32(2)});
      }
      const LayerConfig config = config_of(file);
      EXPECT_NO_THROW(config.validate()) << type;
      EXPECT_EQ(config.d_model, D) << type;
      EXPECT_EQ(config.d_ff, F) << type;
      EXPECT_EQ(config.num_experts, E) << type;
      EXPECT_EQ(config.top_k, K) << type;
      EXPECT_EQ(config.router.weight.scale, 1.0) << type;
      EXPECT_FALSE(config.expert.bias) << type;
      EXPECT_EQ(find_gguf_family(type), &family) << type;
    }
  }
}

TEST_F(GgufModels, OfUnknownArchitecturesAreRefused) {
  expect_bad(model("nomic-bert", experts("blk.0.")), "",
             {"general.architecture: \"nomic-bert\"", "expected one of llama, dbrx", "gpt-oss",
              "deepseek4"});
  GgufFile file = model("qwen3moe", experts("blk.0."));
  file.keys.erase(file.keys.begin());
  expect_bad(file, "", {"key \"general.architecture\": no such key, expected text"});
  file.keys.push_back({"general.architecture", gguf_u32(1)});
  expect_bad(file, "", {"key \"general.architecture\": 1, expected text"});
}

TEST_F(GgufModels, AreRefusedUnlessTheyAreWhatTheirKeysSay) {
  const auto changed = [](std::size_t key, std::uint32_t value) {
    GgufFile file = model("qwen3moe", experts("blk.0."));
    file.keys[key].second = gguf_u32(value);
    return file;
  };
  expect_bad(changed(2, D / 2), "blk.0.ffn_gate_inp.weight", {"F32 [4, 64], expected F32 [4, 32]"});
  expect_bad(changed(4, F / 2), "blk.0.ffn_gate_exps.weight", {"expected F32 [4, 16, 64]"});
  expect_bad(changed(5, ~0U), "", {"num_experts = 4294967295"});
  expect_bad(changed(6, E + 1), "", {"top_k"});
  GgufFile file = model("qwen3moe", experts("blk.0."));
  file.keys[5].second = gguf_text("4");
  expect_bad(file, "", {"config key expert_count: \"4\", expected a whole number"});
  file = model("qwen3moe", experts("blk.0."));
  file.tensors.erase(file.tensors.begin() + 3);
  expect_bad(file, "blk.0.ffn_down_exps.weight", {"no tensor of this name"});
  file = model("qwen3moe", experts("blk.0."));
  file.tensors.push_back(tensor("blk.0.ffn_gate_exps.scale", {E}, 6));
  expect_bad(file, "blk.0.ffn_gate_exps.scale", {"no parameter of family qwen3moe"});
  file = model("qwen3moe", experts("blk.0."));
  file.tensors[1] = tensor("blk.0.ffn_gate_exps.weight", {E, F, D}, 2, 20);
  expect_bad(file, "blk.0.ffn_gate_exps.weight",
             {"dtype IQ4_NL, expected F64, F32, F16 or BF16, or blocks of Q8_0"});
}

}  // namespace
}  // namespace moe::io::testing::gguf::gguf_model_test
