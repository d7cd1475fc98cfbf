// SPDX-License-Identifier: Apache-2.0
// From a directory to a layer: which of its numbers stand where, and every way in which the files
// can fail to be what config.json says.
#include "moe/io/load_layer.hpp"

#include "family_configs.hpp"
#include "family_layer.hpp"
#include "moe/io/save_layer.hpp"
#include "small_models.hpp"

namespace moe::io::testing::load_layer_test {
namespace {

class LoadLayer : public ModelFolder {
 protected:
  void write_model(const NewTensors& tensors, std::string_view config = mixtral_config) const {
    write("config.json", config);
    write("model.safetensors", tensors);
  }
  fs::path file() const { return folder() / "model.safetensors"; }

  /// Loading layer 0 must fail so.
  void expect_bad(const NewTensors& tensors, const fs::path& file, std::string_view tensor,
                  std::initializer_list<std::string_view> facts,
                  std::string_view config = mixtral_config) const {
    write_model(tensors, config);
    expect_fault([&] { load_layer<float>(folder(), 0); }, file, tensor, facts);
    expect_fault([&] { load_packed<float>(folder(), 0); }, file, tensor, facts);
  }
};

template <Real T>
void expect_mixtral(const MoELayer<T>& layer) {
  EXPECT_EQ(layer.router().params().weight, matrix(1, E, D).template cast<Wide<T>>());
  EXPECT_EQ(layer.router().config().weight.renormalise, true);
  for (int e = 0; e < E; ++e) {
    const auto& expert = layer.experts()[static_cast<std::size_t>(e)].params();
    EXPECT_EQ(expert.gate, matrix(10 + 3 * e, F, D).template cast<T>());
    EXPECT_EQ(expert.up, matrix(11 + 3 * e, F, D).template cast<T>());
    EXPECT_EQ(expert.down, matrix(12 + 3 * e, D, F).template cast<T>());
  }
  EXPECT_FALSE(layer.shared());
}

TEST_F(LoadLayer, TakesMixtralByItsOwnNames) {
  write_model(mixtral());
  expect_mixtral(load_layer<float>(folder(), 0));
  expect_mixtral(load_layer<double>(folder(), 2));
  expect_mixtral(load_layer<bf16>(folder(), 2));
}

TEST_F(LoadLayer, TakesTheFusedNamesOfTransformers5) {
  write_model(fused_mixtral());
  expect_mixtral(load_layer<float>(folder(), 0));
}

TEST_F(LoadLayer, TakesShards) {
  NewTensors all = mixtral(), some;
  write("config.json", mixtral_config);
  some.insert(all.extract("model.layers.0.block_sparse_moe.experts.1.w3.weight"));
  some.insert(all.extract("model.layers.0.block_sparse_moe.gate.weight"));
  std::string map;
  for (const auto& [tensors, shard] : {std::pair(&all, "1"), std::pair(&some, "2")}) {
    for (const auto& [name, tensor] : *tensors) {
      map += joined(map.empty() ? "" : ", ", "\"", name, "\": \"", shard, ".safetensors\"");
    }
  }
  write("1.safetensors", all);
  write("2.safetensors", some);
  write("model.safetensors.index.json", joined(R"({"weight_map": {)", map, "}}"));
  expect_mixtral(load_layer<float>(folder(), 0));
}

TEST_F(LoadLayer, TakesTheSplitNamesOfAFusedFamily) {
  NewTensors tensors;
  const std::string block = "model.layers.0.block_sparse_moe.";
  tensors[block + "router.layer.weight"] = weights(1, {E, D});
  for (int e = 0; e < E; ++e) {
    const std::string expert = joined(block, "experts.", e, ".");
    tensors[expert + "gate_proj.weight"] = weights(10 + 3 * e, {F, D});
    tensors[expert + "up_proj.weight"] = weights(11 + 3 * e, {F, D});
    tensors[expert + "down_proj.weight"] = weights(12 + 3 * e, {D, F});
  }
  std::string config(mixtral_config);
  write_model(tensors, config.replace(config.find("mixtral"), 7, "granitemoe"));
  const auto layer = load_layer<float>(folder(), 0);
  EXPECT_EQ(layer.experts()[3].params().up, matrix(20, F, D));
  EXPECT_EQ(layer.router().config().weight.source, WeightSource::softmax_of_chosen);
}

TEST_F(LoadLayer, RoundsOnceFromAnyFloat) {
  NewTensors tensors = mixtral();
  const std::string name = "model.layers.0.block_sparse_moe.experts.0.w1.weight";
  // Half way between two bfloat16, but for a bit that no float has.
  tensors[name] = tensor_of("F64", {F, D}, std::vector<double>(F * D, 1.00390625 + 0x1p-40));
  write_model(tensors);
  EXPECT_EQ(load_layer<double>(folder(), 0).experts()[0].params().gate(0, 0), 1.00390625 + 0x1p-40);
  EXPECT_EQ(static_cast<float>(load_layer<bf16>(folder(), 0).experts()[0].params().gate(5, 7)),
            1.0078125F);
  tensors[name] = tensor_of("BF16", {F, D}, std::vector<std::uint16_t>(F * D, 0x3F81));
  write_model(tensors);
  EXPECT_EQ(load_layer<float>(folder(), 0).experts()[0].params().gate(5, 7), 1.0078125F);
  tensors[name] = tensor_of("F16", {F, D}, std::vector<std::uint16_t>(F * D, 0x3C01));
  write_model(tensors);
  EXPECT_EQ(load_layer<float>(folder(), 0).experts()[0].params().gate(5, 7), 1.0009765625F);
}

TEST_F(LoadLayer, PackedIsThePackedFormOfTheLoadedLayer) {
  write_model(mixtral());
  const auto expect_same = [&]<class S>(std::type_identity<S>) {
    const auto packed = unpack(load_packed<S>(folder(), 2));
    const auto wanted = unpack(pack<S>(load_layer<Wide<S>>(folder(), 2)));
    EXPECT_EQ(packed.router().params().weight, wanted.router().params().weight);
    for (std::size_t e = 0; e < 4; ++e) {
      EXPECT_EQ(packed.experts()[e].params().gate, wanted.experts()[e].params().gate);
      EXPECT_EQ(packed.experts()[e].params().up, wanted.experts()[e].params().up);
      EXPECT_EQ(packed.experts()[e].params().down, wanted.experts()[e].params().down);
    }
  };
  expect_same(std::type_identity<float>{});
  expect_same(std::type_identity<bf16>{});
}

TEST_F(LoadLayer, TakesASharedExpertWithItsGate) {
  NewTensors tensors;
  const std::string block = "model.layers.0.mlp.";
  tensors[block + "gate.weight"] = weights(1, {E, D});
  tensors[block + "experts.gate_up_proj"] = stacked(10, 3, 2, F, D);
  tensors[block + "experts.down_proj"] = stacked(12, 3, 1, D, F);
  tensors[block + "shared_expert.gate_proj.weight"] = weights(2, {3, D});
  tensors[block + "shared_expert.up_proj.weight"] = weights(3, {3, D});
  tensors[block + "shared_expert.down_proj.weight"] = weights(4, {D, 3});
  tensors[block + "shared_expert_gate.weight"] = weights(5, {1, D});
  write_model(tensors, R"({"model_type": "qwen2_moe", "hidden_size": 8,
      "moe_intermediate_size": 6, "shared_expert_intermediate_size": 3, "num_experts": 4,
      "num_experts_per_tok": 2})");
  const auto layer = load_layer<float>(folder(), 0);
  ASSERT_TRUE(layer.shared());
  EXPECT_EQ(layer.shared()->params().down, matrix(4, D, 3));
  EXPECT_EQ(layer.shared()->params().output_gate, matrix(5, 1, D));
  EXPECT_EQ(layer.router().config().weight.renormalise, false);
  EXPECT_EQ(unpack(load_packed<float>(folder(), 0)).shared()->params().gate, matrix(2, 3, D));
}

/// A layer of Gemma 4: its router and experts lie beside a dense branch and norms of the model's.
NewTensors gemma4() {
  NewTensors tensors;
  const std::string layer = "model.language_model.layers.0.";
  tensors[layer + "router.proj.weight"] = weights(1, {E, D});
  tensors[layer + "router.scale"] = weights(2, {D});
  tensors[layer + "router.per_expert_scale"] = weights(3, {E});
  tensors[layer + "experts.gate_up_proj"] = stacked(10, 3, 2, F, D);
  tensors[layer + "experts.down_proj"] = stacked(12, 3, 1, D, F);
  tensors[layer + "mlp.gate_proj.weight"] = weights(4, {F, D});
  tensors[layer + "pre_feedforward_layernorm_2.weight"] = weights(5, {D});
  return tensors;
}
constexpr std::string_view gemma4_config = R"({"model_type": "gemma4", "text_config":
    {"model_type": "gemma4_text", "hidden_size": 8, "moe_intermediate_size": 6, "num_experts": 4,
     "top_k_experts": 2, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh"}})";

TEST_F(LoadLayer, TakesARouterOfTheFamilysType) {
  write_model(gemma4(), gemma4_config);
  const auto layer = load_layer<float, NormRouter<float>>(folder(), 0);
  const auto& router = layer.router().params();
  EXPECT_EQ(router.weight, matrix(1, E, D));
  EXPECT_EQ(router.norm_scale, matrix(2, 1, D));
  EXPECT_EQ(router.expert_scale, matrix(3, 1, E));
  EXPECT_EQ(layer.experts()[1].params().down, matrix(15, D, F));
  const auto packed = load_packed<float, NormRouter<float>>(folder(), 0);
  EXPECT_EQ(packed.router().params().norm_scale, matrix(2, 1, D));
}

TEST_F(LoadLayer, RefusesARouterOfAnotherType) {
  expect_bad(gemma4(), folder() / "config.json", "",
             {"family gemma4 has a NormRouter", "not of Router"}, gemma4_config);
}

/// A layer of LongCat-Flash: four feed-forwards, and two that copy, which the bias prefers.
NewTensors longcat() {
  NewTensors tensors;
  const std::string block = "model.layers.0.mlp.";
  tensors[block + "router.classifier.weight"] = weights(1, {E + 2, D});
  tensors[block + "router.e_score_correction_bias"] =
      tensor_of("F32", {E + 2}, std::vector<float>{0, 0, 0, 0, 9, 9});
  for (int e = 0; e < E; ++e) {
    const std::string expert = joined(block, "experts.", e, ".");
    tensors[expert + "gate_proj.weight"] = weights(10 + 3 * e, {F, D});
    tensors[expert + "up_proj.weight"] = weights(11 + 3 * e, {F, D});
    tensors[expert + "down_proj.weight"] = weights(12 + 3 * e, {D, F});
  }
  return tensors;
}
constexpr std::string_view longcat_config = R"({"model_type": "longcat_flash", "hidden_size": 8,
    "expert_ffn_hidden_size": 6, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2,
    "routed_scaling_factor": 6.0})";

TEST_F(LoadLayer, TakesExpertsThatComputeNothing) {
  write_model(longcat(), longcat_config);
  const auto layer = load_layer<float, Router<float>, ZeroExperts<float>>(folder(), 0);
  EXPECT_EQ(layer.num_experts(), E + 2);
  EXPECT_EQ(layer.experts().zero().copies, 2);
  EXPECT_EQ(layer.experts().set()[3].params().up, matrix(20, F, D));
  const auto packed =
      load_packed<float, Router<float>, ZeroExperts<float, PackedExperts<float>>>(folder(), 0);
  const Matrix<float> x = 0.25F * matrix(7, 3, D);
  Matrix<float> y(3, D), packed_y(3, D);
  decltype(layer)::Scratch scratch;
  decltype(packed)::Scratch packed_scratch;
  layer.forward(x, y, scratch);
  packed.forward(x, packed_y, packed_scratch);
  EXPECT_EQ(packed_y, y);
  for (Index t = 0; t < 3; ++t) {  // both copies: y = 6 (p_4 + p_5) x
    const auto p = (x.row(t) * matrix(1, E + 2, D).transpose()).array().exp().eval();
    const float weight = 6.0F * (p(4) + p(5)) / p.sum();
    EXPECT_LT((y.row(t) - weight * x.row(t)).norm(), 1e-5F * y.row(t).norm());
  }
}

TEST_F(LoadLayer, RefusesExpertsThatComputeNothingInASetWithoutSuch) {
  expect_bad(longcat(), folder() / "config.json", "",
             {"longcat_flash has 2 experts that compute nothing", "a layer of ZeroExperts"},
             longcat_config);
}

TEST_F(LoadLayer, RefusesWeightsOnHiddenRowsInASetThatHasNoneToShow) {
  write("config.json", config_text("inkling"));
  save_layer(random_layer<float>(layer_config(*find_family("inkling"),
                                              ModelConfig::parse(config_text("inkling")), 0)),
             *find_family("inkling"), folder());
  EXPECT_NO_THROW(load_layer<float>(folder(), 0));
  const auto as_zero_experts = [&] {
    load_layer<float, Router<float>, ZeroExperts<float>>(folder(), 0);
  };
  expect_fault(as_zero_experts, folder() / "config.json", "",
               {"family inkling has weights on hidden rows", "expected a layer of Expert"});
}

TEST_F(LoadLayer, MayHaveASetForThemWhereThereAreNone) {
  write_model(mixtral());
  const auto layer = load_layer<float, Router<float>, ZeroExperts<float>>(folder(), 0);
  EXPECT_EQ(layer.experts().zero().num_experts(), 0);
  EXPECT_EQ(layer.experts().set()[3].params().down, matrix(21, D, F));
}

TEST_F(LoadLayer, TakesTheTableThatSelectsInSomeLayers) {
  NewTensors tensors;
  const std::string block = "layers.0.ffn.", table = block + "gate.tid2eid";
  tensors[block + "gate.weight"] = weights(1, {E, D});
  tensors[table] = tensor_of("I64", {3, 2}, std::vector<std::int64_t>{0, 1, 3, 2, 1, 3});
  for (int e = 0; e < E; ++e) {
    const std::string expert = joined(block, "experts.", e, ".");
    tensors[expert + "w1.weight"] = weights(10 + 3 * e, {F, D});
    tensors[expert + "w3.weight"] = weights(11 + 3 * e, {F, D});
    tensors[expert + "w2.weight"] = weights(12 + 3 * e, {D, F});
  }
  constexpr std::string_view config = R"({"model_type": "deepseek_v4", "hidden_size": 8,
      "moe_intermediate_size": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "vocab_size": 3,
      "num_hash_layers": 1, "n_shared_experts": 0})";
  write_model(tensors, config);
  const auto layer = load_layer<float>(folder(), 0);
  Matrix<ExpertId> wanted(3, 2);
  wanted << 0, 1, 3, 2, 1, 3;
  EXPECT_EQ(layer.router().rule().table(), wanted);
  EXPECT_EQ(layer.experts()[2].params().up, matrix(17, F, D));

  tensors[table] = tensor_of("I64", {2, 3}, std::vector<std::int64_t>{0, 1, 3, 2, 1, 3});
  expect_bad(tensors, file(), table, {"I64 [2, 3]", "expected integers [3, 2]"}, config);
  tensors[table] = tensor_of("I64", {3, 2}, std::vector<std::int64_t>{0, 1, 3, 4, 1, 3});
  expect_bad(tensors, file(), table, {"has 4 for id 1", "num_experts = 4"}, config);
  tensors[table] = tensor_of("I64", {3, 2}, std::vector<std::int64_t>{0, 1, 3, 2, 1, 1LL << 40});
  expect_bad(tensors, file(), table, {"out of range", "expected numbers of experts"}, config);
  tensors[table] = tensor_of("F32", {3, 2}, std::vector<float>(6));
  expect_bad(tensors, file(), table, {"dtype F32"}, config);
  tensors.erase(table);
  expect_bad(tensors, file(), table, {"no tensor of this name", "deepseek_v4"}, config);
}

TEST_F(LoadLayer, RefusesATensorThatIsMissing) {
  NewTensors tensors = mixtral();
  const std::string name = "model.layers.0.block_sparse_moe.experts.3.w2.weight";
  tensors.erase(name);
  expect_bad(tensors, file(), name, {"no tensor of this name", "mixtral"});
  tensors["model.layers.0.block_sparse_moe.experts.3.w2.weight_packed"] = counted({1});
  expect_bad(tensors, file(), name, {"a quantised one", "weight_packed", "expected floats"});
}

TEST_F(LoadLayer, RefusesATensorThatIsNobodys) {
  for (const char* name : {"block_sparse_moe.experts.4.w1.weight", "block_sparse_moe.gate.bias",
                           "block_sparse_moe.experts.0.w1.bias", "mlp.experts.0.up_proj.weight",
                           "block_sparse_moe.experts.0.w1.weight_scale_inv"}) {
    NewTensors tensors = mixtral();
    const std::string full = joined("model.layers.0.", name);
    tensors[full] = counted({1});
    expect_bad(tensors, file(), full, {"no parameter of family mixtral", "expected none"});
  }
}

TEST_F(LoadLayer, RefusesAnotherShapeOrType) {
  const std::string name = "model.layers.0.block_sparse_moe.experts.2.w2.weight";
  NewTensors tensors = mixtral();
  tensors[name] = counted({F, D});  // as many numbers, the wrong way round
  expect_bad(tensors, file(), name, {"F32 [6, 8]", "expected F32 [8, 6]"});
  tensors[name] = tensor_of("F8_E4M3", {D, F}, std::vector<char>(D * F));
  expect_bad(tensors, file(), name, {"dtype F8_E4M3", "expected F64, F32, F16 or BF16"});
  tensors[name] = tensor_of("I32", {D, F}, std::vector<std::int32_t>(D * F));
  expect_bad(tensors, file(), name, {"dtype I32"});
}

TEST_F(LoadLayer, RefusesADirectoryWithoutAConfigOrModel) {
  expect_fault([&] { load_layer<float>(folder(), 0); }, folder() / "config.json", "",
               {"cannot open"});
  write("config.json", mixtral_config);
  expect_fault([&] { load_layer<float>(folder(), 0); }, folder(), "", {"no model.safetensors"});
}

TEST_F(LoadLayer, RefusesALayerThatIsNone) {
  write_model(mixtral());
  for (const Index layer : {Index{1}, Index{3}, Index{-1}, std::numeric_limits<Index>::max(),
                            std::numeric_limits<Index>::min()}) {
    expect_fault([&] { load_layer<float>(folder(), layer); }, file(), "",
                 {joined("layer ", layer, " is no MoE layer"), "expected one of 0, 2"});
  }
}

// Of sizes that only config.json has nothing is made: neither would fit into memory.
TEST_F(LoadLayer, RefusesSizesThatTheFilesDoNotHave) {
  const std::string config(mixtral_config);
  const auto with = [&](std::string_view key, std::string_view value) {
    std::string text = config;
    const std::size_t at = text.find(':', text.find(joined("\"", key, "\"")));
    return text.replace(at + 1, text.find_first_of(",}", at) - at - 1, value);
  };
  const std::string block = "model.layers.0.block_sparse_moe.";
  expect_bad(mixtral(), file(), block + "gate.weight", {"expected F32 [2000000000, 8]"},
             with("num_local_experts", "2000000000"));
  expect_bad(mixtral(), file(), block + "gate.weight", {"expected F32 [4, 10000000000000000]"},
             with("hidden_size", "10000000000000000"));
  expect_bad(mixtral(), file(), block + "experts.0.w1.weight",
             {"F32 [6, 8], expected F32 [10000000000000000, 8]"},
             with("intermediate_size", "10000000000000000"));
}

#if !defined(_WIN32)
TEST_F(LoadLayer, RefusesAFileThatWasCutShortAfterItWasMapped) {
  write_model(mixtral());
  Checkpoint model(folder());
  expect_mixtral(load_layer<float>(model, 0));
  fs::resize_file(file(), fs::file_size(file()) / 2);
  expect_fault([&] { load_layer<float>(model, 2); }, file(),
               "model.layers.2.block_sparse_moe.gate.weight", {"end of file", "shrank"});
  expect_fault([&] { load_packed<float>(model, 0); }, file(),
               "model.layers.0.block_sparse_moe.gate.weight", {"end of file", "shrank"});
}
#endif

}  // namespace
}  // namespace moe::io::testing::load_layer_test
