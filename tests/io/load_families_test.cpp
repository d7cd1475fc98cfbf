// SPDX-License-Identifier: Apache-2.0
// Layers of families with more than one set of experts, one router or one kind of it: ERNIE 4.5 VL,
// NLLB-MoE, Klear, ZAYA1, JetMoE and nomic, by the names of their files.
#include "moe/io/load_layer.hpp"
#include "moe/io/save_layer.hpp"
#include "small_models.hpp"
#include "support/throws.hpp"

namespace moe::io::testing::load_families_test {
namespace {

class LoadFamily : public ModelFolder {
 protected:
  void write_model(const NewTensors& tensors, std::string_view config) const {
    write("config.json", config);
    write("model.safetensors", tensors);
  }
};

constexpr Index vision_width = 3;
constexpr std::string_view ernie_config = R"({"model_type": "ernie4_5_vl_moe", "hidden_size": 8,
    "moe_num_experts": [4, 4], "moe_k": 2, "moe_intermediate_size": [6, 3],
    "moe_num_shared_experts": 1})";

void add_shared(NewTensors& tensors, const std::string& block) {
  tensors[block + "shared_experts.gate_proj.weight"] = weights(70, {F, D});
  tensors[block + "shared_experts.up_proj.weight"] = weights(71, {F, D});
  tensors[block + "shared_experts.down_proj.weight"] = weights(72, {D, F});
}

/// Routers 1 and 2 as (D, E), biases 3, expert e from 10 + 3 e.
NewTensors ernie() {
  NewTensors tensors;
  const std::string block = "model.layers.1.mlp.";
  tensors[block + "gate.weight"] = weights(1, {D, E});
  tensors[block + "gate.weight_1"] = weights(2, {D, E});
  tensors[block + "moe_statics.e_score_correction_bias"] = weights(3, {2, E});
  for (int e = 0; e < 2 * E; ++e) {
    const std::string expert = joined(block, "experts.", e, ".");
    const Index width = e < E ? F : vision_width;
    tensors[expert + "gate_proj.weight"] = weights(10 + 3 * e, {width, D});
    tensors[expert + "up_proj.weight"] = weights(11 + 3 * e, {width, D});
    tensors[expert + "down_proj.weight"] = weights(12 + 3 * e, {D, width});
  }
  add_shared(tensors, block);
  return tensors;
}

NewTensor part_of_tensor(int n, Index begin, const std::vector<Index>& shape) {
  std::vector<float> values;
  for (Index i = 0; i < shape[0] * shape[1]; ++i) {
    values.push_back(value_of(n, begin + i));
  }
  return tensor_of("F32", shape, values);
}
NewTensor transposed(int n) {
  std::vector<float> values;
  for (Index e = 0; e < E; ++e) {
    for (Index d = 0; d < D; ++d) {
      values.push_back(value_of(n, d * E + e));
    }
  }
  return tensor_of("F32", {E, D}, values);
}

/// The same numbers as transformers 5 keeps them.
NewTensors fused_ernie() {
  NewTensors tensors;
  const std::string block = "model.language_model.layers.1.mlp.";
  tensors[block + "text_moe.gate.weight"] = transposed(1);
  tensors[block + "vision_moe.gate.weight"] = transposed(2);
  const std::string bias = "gate.moe_statics.e_score_correction_bias";
  tensors[joined(block, "text_moe.", bias)] = part_of_tensor(3, 0, {1, E});
  tensors[joined(block, "vision_moe.", bias)] = part_of_tensor(3, E, {1, E});
  tensors[block + "text_moe.experts.gate_up_proj"] = stacked(10, 3, 2, F, D);
  tensors[block + "text_moe.experts.down_proj"] = stacked(12, 3, 1, D, F);
  tensors[block + "vision_moe.experts.gate_up_proj"] = stacked(22, 3, 2, vision_width, D);
  tensors[block + "vision_moe.experts.down_proj"] = stacked(24, 3, 1, D, vision_width);
  add_shared(tensors, block);
  return tensors;
}

template <class Layer>
void expect_ernie(const Layer& layer) {
  ASSERT_EQ(layer.num_experts(), 2 * E);
  const auto& router = layer.router().params();
  EXPECT_EQ(router.weight.topRows(E), matrix(1, D, E).transpose());
  EXPECT_EQ(router.weight.bottomRows(E), matrix(2, D, E).transpose());
  EXPECT_EQ(router.selection_bias, matrix(3, 1, 2 * E));
  EXPECT_EQ(layer.experts()[1].params().up, matrix(14, F, D));
  EXPECT_EQ(layer.experts()[4].params().gate, matrix(22, vision_width, D));
  EXPECT_EQ(layer.experts()[7].params().down, matrix(33, D, vision_width));
  EXPECT_EQ(layer.shared()->params().up, matrix(71, F, D));
}

TEST_F(LoadFamily, TakesTwoSetsOfExpertsByTheirOwnNamesAndTheFusedOnes) {
  write_model(ernie(), ernie_config);
  expect_ernie(load_layer<float>(folder(), 1));
  write_model(fused_ernie(), ernie_config);
  expect_ernie(load_layer<float>(folder(), 1));
}

TEST_F(LoadFamily, GivesATokenTheExpertsOfItsSetAlone) {
  write_model(ernie(), ernie_config);
  Checkpoint model(folder());
  const auto layer = load_layer<float>(model, 1);
  const auto packed = load_packed<float>(model, 1);
  const std::uint8_t is_image[] = {0, 1, 2, 0};
  const ExpertMask mask = mask_of_sets(model.layer_config(1), is_image);
  const CallOptions call{.num_threads = 1, .expert_mask = &mask};
  const Matrix<float> x = 0.25F * matrix(7, 4, D);
  Matrix<float> y(4, D), packed_y(4, D);
  MoELayer<float>::Scratch scratch;
  PackedLayer<float>::Scratch packed_scratch;
  layer.forward(x, y, scratch, call);
  packed.forward(x, packed_y, packed_scratch, call);
  EXPECT_EQ(packed_y, y);
  for (Index t = 0; t < 4; ++t) {
    for (Index k = 0; k < 2; ++k) {
      EXPECT_EQ(scratch.routing.expert(t, k) >= E, is_image[t] != 0);
    }
    EXPECT_NEAR(scratch.routing.probs.row(t).sum(), 1.0F, 1e-5F);
    EXPECT_NEAR(scratch.routing.weight.row(t).sum(), 1.0F, 1e-5F);
  }
}

TEST_F(LoadFamily, SavesTwoSetsAsTheyWere) {
  write_model(ernie(), ernie_config);
  const auto layer = load_layer<float>(folder(), 1);
  save_layer(layer, *find_family("ernie4_5_vl_moe"), folder(), {.layer = "model.layers.1."});
  expect_ernie(load_layer<float>(folder(), 1));
  const SafeTensors file = SafeTensors::map(folder() / "model.safetensors");
  EXPECT_EQ(file.tensors().size(), ernie().size());
  EXPECT_EQ(file.at("model.layers.1.mlp.gate.weight_1").shape, (std::vector<Index>{D, E}));
  EXPECT_EQ(file.at("model.layers.1.mlp.moe_statics.e_score_correction_bias").shape,
            (std::vector<Index>{2, E}));
}

TEST_F(LoadFamily, RefusesSetsThatAreNotAlike) {
  write("config.json", R"({"model_type": "ernie4_5_vl_moe", "hidden_size": 8,
    "moe_num_experts": [4, 3], "moe_k": 2, "moe_intermediate_size": [6, 3]})");
  const ModelConfig config = ModelConfig::load(folder() / "config.json");
  expect_fault([&] { layer_config(*find_family("ernie4_5_vl_moe"), config, 1); },
               folder() / "config.json", "", {"the second set has 3 experts of width 3"});
}

constexpr std::string_view nllb_config = R"({"model_type": "nllb-moe", "d_model": 8,
    "encoder_ffn_dim": 6, "decoder_ffn_dim": 6, "num_experts": 4, "expert_capacity": 2)";

NewTensors nllb() {
  NewTensors tensors;
  for (const std::string stack : {"encoder", "decoder"}) {
    const std::string block = joined("model.", stack, ".layers.3.ffn.");
    tensors[block + "router.classifier.weight"] = weights(stack == "encoder" ? 1 : 2, {E, D});
    for (int e = 0; e < E; ++e) {
      const std::string expert = joined(block, "experts.expert_", e, ".");
      tensors[expert + "fc1.weight"] = weights(10 + 4 * e, {F, D});
      tensors[expert + "fc1.bias"] = weights(11 + 4 * e, {F});
      tensors[expert + "fc2.weight"] = weights(12 + 4 * e, {D, F});
      tensors[expert + "fc2.bias"] = weights(13 + 4 * e, {D});
    }
  }
  return tensors;
}

TEST_F(LoadFamily, TakesNllbAsItIsEvaluated) {
  write_model(nllb(), joined(nllb_config, "}"));
  Checkpoint model(folder(), {.stack = "model.decoder.layers."});
  const auto layer = load_layer<float, SecondExpertRouter<float>>(model, 3);
  EXPECT_EQ(layer.router().params().weight, matrix(2, E, D));
  EXPECT_EQ(layer.experts()[2].params().up_bias, matrix(19, 1, F));
  EXPECT_EQ(layer.experts()[2].params().down_bias, matrix(21, 1, D));
  EXPECT_FALSE(layer.options().capacity.limited());
  const Matrix<float> x = 0.25F * matrix(7, 3, D);
  Matrix<float> y(3, D);
  decltype(layer)::Scratch scratch;
  layer.forward(x, y, scratch);
  for (Index t = 0; t < 3; ++t) {  // 0.8 of the two best, by their shares
    const auto p = (x.row(t) * matrix(2, E, D).transpose()).array().exp().eval();
    Matrix<float> want = Matrix<float>::Zero(1, D);
    float sum = 0;
    for (Index k = 0; k < 2; ++k) {
      const ExpertId e = scratch.routing.expert(t, k);
      const auto& expert = layer.experts()[static_cast<std::size_t>(e)].params();
      const Matrix<float> hidden =
          (x.row(t) * expert.up.transpose() + expert.up_bias).cwiseMax(0.0F);
      want += p(e) * (hidden * expert.down.transpose() + expert.down_bias);
      sum += p(e);
    }
    EXPECT_LT((y.row(t) - 0.8F * want / sum).norm(), 1e-5F * y.row(t).norm());
    EXPECT_GE(p(scratch.routing.expert(t, 0)), p(scratch.routing.expert(t, 1)));
  }
}

LayerConfig nllb_config_with(std::string_view more) {
  return layer_config(*find_family("nllb-moe"),
                      ModelConfig::parse(joined(nllb_config, more, "}"), "config.json"), 3);
}

TEST_F(LoadFamily, TakesThePoliciesOfNllb) {
  const LayerConfig plain = nllb_config_with("");
  EXPECT_EQ(plain.second_expert.policy, SecondPolicy::always);
  EXPECT_EQ(plain.second_expert.normalise, SecondNormalise::after);
  EXPECT_FALSE(plain.second_expert.of_share);
  EXPECT_EQ(plain.capacity.policy, DropPolicy::second_choices);
  EXPECT_DOUBLE_EQ(plain.routed_scale, 0.8);
  EXPECT_FALSE(plain.router.logits.bias);
  EXPECT_TRUE(plain.expert.bias);

  const LayerConfig other = nllb_config_with(R"(, "second_expert_policy": "random",
      "normalize_router_prob_before_dropping": true, "batch_prioritized_routing": true,
      "moe_eval_capacity_token_fraction": 0.5, "moe_token_dropout": 0.0, "router_bias": true)");
  EXPECT_EQ(other.second_expert.policy, SecondPolicy::random);
  EXPECT_EQ(other.second_expert.normalise, SecondNormalise::before);
  EXPECT_EQ(other.capacity.policy, DropPolicy::second_choices_by_priority);
  EXPECT_EQ(other.capacity.factor, 1.0);  // of 2 N / 4 rows
  EXPECT_EQ(other.routed_scale, 1.0);
  EXPECT_TRUE(other.router.logits.bias);
  EXPECT_EQ(nllb_config_with(R"(, "second_expert_policy": "sampling")").second_expert.policy,
            SecondPolicy::sampled);
  EXPECT_EQ(nllb_config_with(R"(, "moe_eval_capacity_token_fraction": -1,
      "normalize_router_prob_before_dropping": true)")
                .capacity.rows,
            2);
}

TEST_F(LoadFamily, RefusesOtherPoliciesAndWeightsThatAreNormalisedAfterACapacity) {
  expect_fault([] { nllb_config_with(R"(, "second_expert_policy": "best")"); }, "config.json", "",
               {"second_expert_policy", "\"best\"", "all, random or sampling"});
  expect_fault([] { nllb_config_with(R"(, "moe_eval_capacity_token_fraction": 0.5)"); },
               "config.json", "", {"normalize_router_prob_before_dropping", "expected true"});
}

/// A layer of ZAYA1: a state of width 5, four experts and one that gives nothing.
NewTensors zaya(int layer) {
  NewTensors tensors;
  const std::string block = joined("model.layers.", layer, ".mlp."), gate = block + "gate.";
  constexpr Index R = 5;
  tensors[gate + "down_proj.weight"] = weights(1, {R, D});
  tensors[gate + "down_proj.bias"] = weights(2, {R});
  if (layer > 0) {
    tensors[gate + "router_states_scale"] = weights(3, {R});
  }
  tensors[gate + "router_mlp.norm.weight"] = weights(4, {R});
  tensors[gate + "router_mlp.fc1.weight"] = weights(5, {R, R});
  tensors[gate + "router_mlp.fc1.bias"] = weights(6, {R});
  tensors[gate + "router_mlp.fc2.weight"] = weights(7, {R, R});
  tensors[gate + "router_mlp.fc2.bias"] = weights(8, {R});
  tensors[gate + "router_mlp.out_proj.weight"] = weights(9, {E + 1, R});
  tensors[gate + "balancing_biases"] =
      tensor_of("F32", {E + 1}, std::vector<float>{0, 0, 0, 0, -1});
  tensors[block + "experts.gate_up_proj"] = stacked(10, 3, 2, F, D);
  tensors[block + "experts.down_proj"] = stacked(12, 3, 1, D, F);
  return tensors;
}
constexpr std::string_view zaya_config = R"({"model_type": "zaya", "hidden_size": 8,
    "moe_intermediate_size": 6, "num_experts": 4, "router_hidden_size": 5})";

TEST_F(LoadFamily, TakesZayaWhoseFirstLayerHasNoStateToTake) {
  NewTensors tensors = zaya(0);
  tensors.merge(zaya(1));
  write_model(tensors, zaya_config);
  Checkpoint model(folder());
  const auto first = load_layer<float, StateRouter<float>, ZeroExperts<float>>(model, 0);
  const auto second = load_layer<float, StateRouter<float>, ZeroExperts<float>>(model, 1);
  EXPECT_EQ(first.router().d_model(), D);
  EXPECT_EQ(second.router().d_model(), D + 5);
  EXPECT_EQ(second.router().params().state_scale, matrix(3, 1, 5));
  EXPECT_EQ(second.router().params().second.bias, matrix(8, 1, 5));
  EXPECT_EQ(second.router().params().output.weight, matrix(9, E + 1, 5));
  EXPECT_EQ(second.router().params().selection_bias(0, E), -1.0F);
  EXPECT_EQ(second.router().gate().config().epsilon, 1e-5);
  EXPECT_EQ(second.experts().zero().zeros, 1);
  EXPECT_EQ(second.experts().set()[3].params().up, matrix(20, F, D));

  const auto packed =
      load_packed<float, StateRouter<float>, ZeroExperts<float, PackedExperts<float>>>(model, 1);
  const Matrix<float> x = matrix(7, 6, D);
  Matrix<float> y(6, D), packed_y(6, D), both(6, D + 5);
  decltype(first)::Scratch scratch;
  first.forward(x, y, scratch);
  both << x, scratch.routing.state;
  second.forward({x, both}, y, scratch);
  decltype(packed)::Scratch packed_scratch;
  packed.forward({x, both}, packed_y, packed_scratch);
  EXPECT_EQ(packed_y, y);
  EXPECT_GT(y.norm(), 0.0F);
}

TEST_F(LoadFamily, SavesALayerOfZayaAsItWas) {
  write_model(zaya(1), zaya_config);
  const auto layer = load_layer<float, StateRouter<float>, ZeroExperts<float>>(folder(), 1);
  save_layer(layer, *find_family("zaya"), folder(), {.layer = "model.layers.1."});
  const auto again = load_layer<float, StateRouter<float>, ZeroExperts<float>>(folder(), 1);
  EXPECT_EQ(again.router().params().first.weight, layer.router().params().first.weight);
  EXPECT_EQ(again.router().params().state_scale, layer.router().params().state_scale);
  const SafeTensors file = SafeTensors::map(folder() / "model.safetensors");
  EXPECT_EQ(file.tensors().size(), zaya(1).size());
}

/// Of family "jetmoe", with the experts of attention that it has beside the block's.
NewTensors jetmoe() {
  NewTensors tensors;
  const std::string block = "model.layers.0.mlp.";
  tensors[block + "router.layer.weight"] = weights(1, {E, D});
  tensors[block + "input_linear.weight"] = stacked(10, 3, 2, F, D);
  tensors[block + "output_linear.weight"] = stacked(12, 3, 1, D, F);
  tensors[block + "bias"] = weights(2, {D});
  const std::string attention = "model.layers.0.self_attention.experts.";
  tensors[attention + "router.layer.weight"] = weights(3, {E, D});
  tensors[attention + "input_linear.weight"] = weights(4, {E, D, D});
  tensors[attention + "bias"] = weights(5, {D});
  return tensors;
}

constexpr std::string_view jetmoe_config = R"({"model_type": "jetmoe", "hidden_size": 8,
    "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 6,
    "activation_function": "silu", "num_hidden_layers": 1})";

TEST_F(LoadFamily, TakesTheBiasOfTheOutputOfJetMoe) {
  write_model(jetmoe(), jetmoe_config);
  const auto layer = load_layer<float>(folder(), 0);
  EXPECT_EQ(layer.shared()->expert().params().down_bias, matrix(2, 1, D));
  EXPECT_EQ(layer.experts()[3].params().up, matrix(20, F, D));
  EXPECT_FALSE(layer.experts()[3].config().bias);
  auto without = layer;
  without.shared().reset();
  const Matrix<float> x = matrix(7, 6, D);
  Matrix<float> y(6, D), routed(6, D);
  MoELayer<float>::Scratch scratch;
  layer.forward(x, y, scratch);
  without.forward(x, routed, scratch);
  EXPECT_LT((y - routed - matrix(2, 1, D).replicate(6, 1)).cwiseAbs().maxCoeff(), 1e-5F);
  PackedLayer<float>::Scratch packed_scratch;
  load_packed<float>(folder(), 0).forward(x, routed, packed_scratch);
  EXPECT_EQ(routed, y);

  save_layer(layer, *find_family("jetmoe"), folder(), {.layer = "model.layers.0."});
  EXPECT_EQ(load_layer<float>(folder(), 0).shared()->expert().params().down_bias, matrix(2, 1, D));
}

TEST_F(LoadFamily, TakesTheFlatExpertsOfNomic) {
  NewTensors tensors;
  const std::string block = "encoder.layers.1.mlp.";
  tensors[block + "router.layer.weight"] = weights(1, {E, D});
  tensors[block + "experts.mlp.w1"] = weights(3, {E * F, D});
  tensors[block + "experts.mlp.w2"] = weights(4, {E * F, D});
  tensors[block + "experts.bias"] = weights(2, {D});
  write_model(tensors, R"({"model_type": "nomic_bert", "n_embd": 8, "n_inner": 6, "num_experts": 4,
      "moe_top_k": 2, "activation_function": "gelu", "n_layer": 2})");
  const auto layer = load_layer<float>(folder(), 1);
  EXPECT_EQ(layer.experts()[2].params().up, matrix(3, E * F, D).middleRows(2 * F, F));
  EXPECT_EQ(layer.experts()[2].params().down, matrix(4, E * F, D).middleRows(2 * F, F).transpose());
  EXPECT_EQ(layer.experts()[2].config().activation, Activation::gelu_erf);
  EXPECT_EQ(layer.shared()->expert().params().down_bias, matrix(2, 1, D));
  EXPECT_FALSE(layer.router().config().weight.renormalises(2));
}

TEST_F(LoadFamily, TakesTheJittersOfPhi) {
  const auto jitters = [](std::string_view more) {
    const LayerConfig config =
        layer_config(*find_family("phimoe"),
                     ModelConfig::parse(joined(R"({"hidden_size": 8, "num_local_experts": 4,
      "intermediate_size": 6)",
                                               more, "}"),
                                        "config.json"),
                     0);
    return std::pair(config.sparse_mixer.jitter, config.router.logits.input_jitter);
  };
  EXPECT_EQ(jitters(""), std::pair(0.01, 0.0));
  EXPECT_EQ(jitters(R"(, "router_jitter_noise": 0.2, "input_jitter_noise": 0.05)"),
            std::pair(0.2, 0.05));
}

}  // namespace
}  // namespace moe::io::testing::load_families_test
