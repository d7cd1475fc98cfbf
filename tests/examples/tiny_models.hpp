// SPDX-License-Identifier: Apache-2.0
// Random models of examples/decoder's families, tiny: the facts for the reference, the tensors by
// the names in the families' code, and the text of config.json.
#pragma once

#include <random>

#include "reference_decoder.hpp"

namespace moe::testing {

struct TinyModel {
  ReferenceDecoder facts;
  std::string config;
};

/// Fills in what the facts ask for.
class TensorDraw {
 public:
  TensorDraw(ReferenceDecoder& facts, unsigned seed) : facts_(facts), random_(seed) {}

  void all() {
    const auto& f = facts_;
    add("model.embed_tokens.weight", {f.vocabulary, f.d_model}, 1);
    add("model.norm.weight", {f.d_model}, 0.3, 1);
    if (!f.tied) {
      add("lm_head.weight", {f.vocabulary, f.d_model}, 2 / std::sqrt(24));
    }
    for (Index l = 0; l < f.layers; ++l) {
      layer("model.layers." + std::to_string(l) + ".", f.dense.contains(l));
    }
  }

 private:
  void add(const std::string& name, const std::vector<Index>& shape, double deviation,
           double mean = 0) {
    const Index size = std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>());
    std::vector<float> values;
    for (Index i = 0; i < size; ++i) {
      // Of a standard normal, near enough, and the same numbers with every standard library.
      double draw = -6;
      for (int n = 0; n < 12; ++n) {
        draw += static_cast<double>(random_()) / 4294967296.0;
      }
      values.push_back(static_cast<float>(mean + deviation * draw));
    }
    facts_.tensors[name] = io::testing::tensor_of("F32", shape, values);
  }
  void linear(const std::string& name, Index out, Index in, bool bias = false) {
    add(name + ".weight", {out, in}, 1.3 / std::sqrt(static_cast<double>(in)));
    if (bias) {
      add(name + ".bias", {out}, 0.3);
    }
  }
  void layer(const std::string& prefix, bool is_dense) {
    const auto& f = facts_;
    const std::string self = prefix + "self_attn.";
    const Index q = f.heads * f.head_dim, kv = f.kv_heads * f.head_dim;
    add(prefix + "input_layernorm.weight", {f.d_model}, 0.3, 1);
    add(prefix + "post_attention_layernorm.weight", {f.d_model}, 0.3, 1);
    linear(self + "q_proj", q, f.d_model, f.qkv_bias);
    linear(self + "k_proj", kv, f.d_model, f.qkv_bias);
    linear(self + "v_proj", kv, f.d_model, f.qkv_bias);
    linear(self + "o_proj", f.d_model, q, f.out_bias);
    if (f.qk_norm != f.none) {
      add(self + "q_norm.weight", {f.qk_norm == f.of_head ? f.head_dim : q}, 0.3, 1);
      add(self + "k_norm.weight", {f.qk_norm == f.of_head ? f.head_dim : kv}, 0.3, 1);
    }
    if (f.sinks) {
      add(self + "sinks", {f.heads}, 1);
    }
    const std::string block = prefix + (f.mixtral ? "block_sparse_moe." : "mlp.");
    is_dense ? swiglu(block, f.dense_width) : experts(block);
  }
  void swiglu(const std::string& prefix, Index width) {
    const bool mixtral = facts_.mixtral;
    linear(prefix + (mixtral ? "w1" : "gate_proj"), width, facts_.d_model);
    linear(prefix + (mixtral ? "w3" : "up_proj"), width, facts_.d_model);
    linear(prefix + (mixtral ? "w2" : "down_proj"), facts_.d_model, width);
  }
  void experts(const std::string& block) {
    const auto& f = facts_;
    add(block + (f.gpt_oss ? "router.weight" : "gate.weight"), {f.experts, f.d_model}, 0.3);
    if (f.gpt_oss) {
      add(block + "router.bias", {f.experts}, 0.3);
      add(block + "experts.gate_up_proj", {f.experts, f.d_model, 2 * f.d_ff}, 0.6);
      add(block + "experts.gate_up_proj_bias", {f.experts, 2 * f.d_ff}, 0.5);
      add(block + "experts.down_proj", {f.experts, f.d_ff, f.d_model}, 0.3);
      add(block + "experts.down_proj_bias", {f.experts, f.d_model}, 0.3);
      return;
    }
    for (Index e = 0; e < f.experts; ++e) {
      swiglu(block + "experts." + std::to_string(e) + ".", f.d_ff);
    }
    if (f.shared_width > 0) {
      swiglu(block + "shared_expert.", f.shared_width);
      linear(block + "shared_expert_gate", 1, f.d_model);
    }
  }

  ReferenceDecoder& facts_;
  std::mt19937 random_;
};

/// Keys that all of the models have.
inline std::string config_of(const ReferenceDecoder& facts, const std::string& type,
                             const std::string& others) {
  using io::testing::joined;
  return joined(R"({"model_type": ")", type, R"(", "hidden_act": "silu", "vocab_size": )",
                facts.vocabulary, R"(, "hidden_size": )", facts.d_model,
                R"(, "num_hidden_layers": )", facts.layers, R"(, "num_attention_heads": )",
                facts.heads, R"(, "num_key_value_heads": )", facts.kv_heads,
                R"(, "rms_norm_eps": )", facts.epsilon, R"(, "num_experts_per_tok": )", facts.top_k,
                ", ", others, "}");
}

inline TinyModel tiny_mixtral(unsigned seed) {
  ReferenceDecoder facts{.theta = 1e6, .window = {4, 4}, .mixtral = true};
  TensorDraw(facts, seed).all();
  return {facts, config_of(facts, "mixtral",
                           R"("intermediate_size": 14, "num_local_experts": 5,
                              "rope_theta": 1000000.0, "sliding_window": 4)")};
}

/// Biases, a shared expert, and the first of three layers dense.
inline TinyModel tiny_qwen2_moe(unsigned seed) {
  ReferenceDecoder facts{.layers = 3,
                         .epsilon = 1e-6,
                         .qkv_bias = true,
                         .window = {0, 0, 0},
                         .dense = {0},
                         .shared_width = 18,
                         .renormalise = false};
  TensorDraw(facts, seed).all();
  return {facts, config_of(facts, "qwen2_moe",
                           R"("intermediate_size": 20, "moe_intermediate_size": 14,
                              "shared_expert_intermediate_size": 18, "num_experts": 5,
                              "norm_topk_prob": false, "decoder_sparse_step": 1,
                              "mlp_only_layers": [0], "rope_theta": 10000.0, "qkv_bias": true,
                              "use_sliding_window": false, "sliding_window": 32768,
                              "max_window_layers": 21)")};
}

/// Biases that no published one has, YaRN, heads wider than their share, a tied embedding.
inline TinyModel tiny_qwen3_moe(unsigned seed) {
  ReferenceDecoder facts{
      .head_dim = 16,
      .theta = 1000,
      .epsilon = 1e-6,
      .yarn = ReferenceDecoder::Yarn{.factor = 4, .context = 1024, .whole = true},
      .qkv_bias = true,
      .out_bias = true,
      .tied = true,
      .qk_norm = ReferenceDecoder::of_head};
  TensorDraw(facts, seed).all();
  return {facts, config_of(facts, "qwen3_moe",
                           R"("moe_intermediate_size": 14, "num_experts": 5, "head_dim": 16,
                              "norm_topk_prob": true, "attention_bias": true, "rope_theta": 1000,
                              "max_position_embeddings": 4096, "tie_word_embeddings": true,
                              "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                              "original_max_position_embeddings": 1024})")};
}

inline TinyModel tiny_olmoe(unsigned seed) {
  ReferenceDecoder facts{
      .kv_heads = 4, .qk_norm = ReferenceDecoder::of_all, .clip = 0.7, .renormalise = false};
  TensorDraw(facts, seed).all();
  return {facts, config_of(facts, "olmoe",
                           R"("intermediate_size": 14, "num_experts": 5, "clip_qkv": 0.7,
                              "norm_topk_prob": false, "rope_theta": 10000.0)")};
}

inline TinyModel tiny_gpt_oss(unsigned seed) {
  ReferenceDecoder facts{
      .head_dim = 16,
      .theta = 1000,
      .yarn = ReferenceDecoder::Yarn{.factor = 4, .context = 1024, .whole = false},
      .qkv_bias = true,
      .out_bias = true,
      .sinks = true,
      .window = {3, 0},
      .gpt_oss = true};
  TensorDraw(facts, seed).all();
  return {facts, config_of(facts, "gpt_oss",
                           R"("intermediate_size": 14, "num_local_experts": 5, "head_dim": 16,
                              "attention_bias": true, "rope_theta": 1000, "swiglu_limit": 7.0,
                              "layer_types": ["sliding_attention", "full_attention"],
                              "sliding_window": 3, "max_position_embeddings": 4096,
                              "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                              "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                              "original_max_position_embeddings": 1024})")};
}

}  // namespace moe::testing
