// SPDX-License-Identifier: Apache-2.0
// Published models as data, one literal each, from their config.json: what their layers are, and
// how many parameters their publishers count. model_cost.hpp turns them into counts and FLOPs.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "../config.hpp"
#include "../detail/check.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Multi-head where kv_heads == heads (Ainslie 2023).
struct GroupedQueryAttentionConfig {
  Index heads, kv_heads, head_dim;
  bool qkv_bias = false, output_bias = false;
  Index qk_norm = 0;   ///< weights of the norms of queries and keys together
  bool sinks = false;  ///< one learned logit for each head (gpt-oss)
};

/// Multi-head latent attention (DeepSeek-V2): queries and keys of nope_dim + rope_dim.
struct LatentAttentionConfig {
  Index heads;
  Index q_rank;  ///< 0: queries are not compressed
  Index kv_rank, nope_dim, rope_dim, v_dim;
};

/// Whether a count of active parameters has the input embedding in it: a look-up, not a product.
enum class ActiveCount { with_embedding, without_embedding };

/// Parameters as the publisher gives them, rounded as there.
struct PublishedCount {
  double total = 0, active = 0;
  ActiveCount rule = ActiveCount::with_embedding;
  std::string_view source = {};
};

/// A transformer with pre-norms and one kind of MoE layer. An encoder-decoder has the layers of
/// both its stacks here. All text is static.
struct ModelConfig {
  std::string_view name, family;
  Index layers;
  Index dense_layers = 0, dense_d_ff = 0;  ///< those of `layers` without experts
  Index vocabulary;
  bool tied = false;  ///< the head is the embedding
  std::variant<GroupedQueryAttentionConfig, LatentAttentionConfig> attention;
  Index cross_attention_layers = 0, stacks = 1;
  Index relative_bias = 0;  ///< position biases of the whole model (T5)
  MoEConfig moe;
  PublishedCount published = {};
  std::string_view note = {};

  /// Throws std::invalid_argument that names the value and what is expected of it.
  void validate() const {
    moe.validate();
    detail::throw_unless(layers >= 1, "ModelConfig: layers = ", layers, ", expected at least 1");
    detail::throw_unless(dense_layers >= 0 && dense_layers <= layers,
                         "ModelConfig: dense_layers = ", dense_layers,
                         ", expected in [0, layers = ", layers, "]");
    detail::throw_unless(dense_layers == 0 || dense_d_ff >= 1,
                         "ModelConfig: dense_d_ff = ", dense_d_ff,
                         ", expected at least 1 with dense_layers");
    detail::check_enum(published.rule, ActiveCount::without_embedding,
                       "ModelConfig: published.rule");
    detail::throw_unless(vocabulary >= 1, "ModelConfig: vocabulary = ", vocabulary,
                         ", expected at least 1");
  }
};

namespace detail {

/// T5-Base with experts in every other layer of both stacks (Fedus 2021).
inline ModelConfig switch_base(std::string_view name, Index experts, PublishedCount published,
                               std::string_view note = "") {
  return {.name = name,
          .family = "Switch-Base",
          .layers = 24,
          .dense_layers = 12,
          .dense_d_ff = 3072,
          .vocabulary = 32128,
          .tied = true,
          .attention = GroupedQueryAttentionConfig{.heads = 12, .kv_heads = 12, .head_dim = 64},
          .cross_attention_layers = 12,
          .stacks = 2,
          .relative_bias = Index{2} * 32 * 12,
          .moe = {.d_model = 768,
                  .d_ff = 3072,
                  .num_experts = experts,
                  .top_k = 1,
                  .expert = {.activation = Activation::relu, .gated = false},
                  .router = {.weight = {.renormalise = false}}},
          .published = published,
          .note = note};
}

inline ModelConfig gpt_oss(std::string_view name, Index layers, Index experts,
                           PublishedCount published) {
  return {.name = name,
          .family = "gpt-oss",
          .layers = layers,
          .vocabulary = 201088,
          .attention = GroupedQueryAttentionConfig{.heads = 64,
                                                   .kv_heads = 8,
                                                   .head_dim = 64,
                                                   .qkv_bias = true,
                                                   .output_bias = true,
                                                   .sinks = true},
          .moe = {.d_model = 2880,
                  .d_ff = 2880,
                  .num_experts = experts,
                  .top_k = 4,
                  .expert = {.bias = true},
                  .router = {.logits = {.bias = true},
                             .weight = {.source = WeightSource::softmax_of_chosen}}},
          .published = published,
          .note =
              "The publisher counts the head as active, the input embedding not. Its clamped "
              "SwiGLU has the same products as SwiGLU."};
}

}  // namespace detail

/// Models of 0.6 to 671 billion parameters.
inline std::vector<ModelConfig> published_models() {
  using enum ActiveCount;
  constexpr std::string_view fedus =
      "total: Fedus 2021, table of the distilled models; active: T5-Base";
  constexpr std::string_view switch_note =
      "FLOPs of a token of the input and one of the output together. Active is T5-Base plus the "
      "routers.";
  return {
      detail::switch_base("Switch-Base-8", 8,
                          {0.619e9, 0.223e9, with_embedding,
                           "total: Hugging Face, size of its safetensors; active: T5-Base"},
                          switch_note),
      detail::switch_base("Switch-Base-64", 64, {3.8e9, 0.223e9, with_embedding, fedus},
                          switch_note),
      detail::switch_base("Switch-Base-128", 128, {7.4e9, 0.223e9, with_embedding, fedus},
                          switch_note),
      detail::switch_base(
          "Switch-Base-256", 256, {14.7e9, 0.223e9, with_embedding, fedus},
          "FLOPs of a token of the input and one of the output together. Active is T5-Base "
          "plus routers of 2.4 M, which are the 1 % of difference."),
      {.name = "OLMoE-1B-7B",
       .family = "OLMoE",
       .layers = 16,
       .vocabulary = 50304,
       .attention =
           GroupedQueryAttentionConfig{
               .heads = 16, .kv_heads = 16, .head_dim = 128, .qk_norm = Index{2} * 2048},
       .moe = {.d_model = 2048,
               .d_ff = 1024,
               .num_experts = 64,
               .top_k = 8,
               .router = {.weight = {.renormalise = false}}},
       .published = {6.9e9, 1.3e9, with_embedding, "Muennighoff 2024"},
       .note = "1.28 B, published as 1.3 B."},
      {.name = "Qwen1.5-MoE-A2.7B",
       .family = "Qwen",
       .layers = 24,
       .vocabulary = 151936,
       .attention =
           GroupedQueryAttentionConfig{
               .heads = 16, .kv_heads = 16, .head_dim = 128, .qkv_bias = true},
       .moe = {.d_model = 2048,
               .d_ff = 1408,
               .num_experts = 60,
               .top_k = 4,
               .router = {.weight = {.renormalise = false}},
               .shared = SharedExpertConfig{.d_ff = 5632, .output_gate = true}},
       .published = {14.3e9, 2.7e9, with_embedding, "model card"}},
      {.name = "DeepSeek-V2-Lite",
       .family = "DeepSeek",
       .layers = 27,
       .dense_layers = 1,
       .dense_d_ff = 10944,
       .vocabulary = 102400,
       .attention = LatentAttentionConfig{.heads = 16,
                                          .q_rank = 0,
                                          .kv_rank = 512,
                                          .nope_dim = 128,
                                          .rope_dim = 64,
                                          .v_dim = 128},
       .moe = {.d_model = 2048,
               .d_ff = 1408,
               .num_experts = 64,
               .top_k = 6,
               .router = {.weight = {.renormalise = false}},
               .shared = SharedExpertConfig{.d_ff = Index{2} * 1408}},
       .published = {15.7e9, 2.4e9, without_embedding, "model card"},
       .note = "2.45 B with the head and without the input embedding, published as 2.4 B; "
               "2.66 B with both."},
      detail::gpt_oss("gpt-oss-20b", 24, 32,
                      {20.91e9, 3.61e9, without_embedding, "model card, table 1"}),
      {.name = "Qwen3-30B-A3B",
       .family = "Qwen",
       .layers = 48,
       .vocabulary = 151936,
       .attention =
           GroupedQueryAttentionConfig{
               .heads = 32, .kv_heads = 4, .head_dim = 128, .qk_norm = Index{2} * 128},
       .moe = {.d_model = 2048, .d_ff = 768, .num_experts = 128, .top_k = 8},
       .published = {30.5e9, 3.3e9, with_embedding, "model card"},
       .note = "3.35 B, published as 3.3 B."},
      {.name = "Mixtral-8x7B",
       .family = "Mixtral",
       .layers = 32,
       .vocabulary = 32000,
       .attention = GroupedQueryAttentionConfig{.heads = 32, .kv_heads = 8, .head_dim = 128},
       .moe = {.d_model = 4096, .d_ff = 14336, .num_experts = 8, .top_k = 2},
       .published = {46.7e9, 12.9e9, with_embedding, "Jiang 2024"}},
      {.name = "Mixtral-8x22B",
       .family = "Mixtral",
       .layers = 56,
       .vocabulary = 32000,
       .attention = GroupedQueryAttentionConfig{.heads = 48, .kv_heads = 8, .head_dim = 128},
       .moe = {.d_model = 6144, .d_ff = 16384, .num_experts = 8, .top_k = 2},
       .published = {141e9, 39e9, with_embedding, "Mistral AI, release note"}},
      detail::gpt_oss("gpt-oss-120b", 36, 128,
                      {116.83e9, 5.13e9, without_embedding, "model card, table 1"}),
      {.name = "DeepSeek-V3",
       .family = "DeepSeek",
       .layers = 61,
       .dense_layers = 3,
       .dense_d_ff = 18432,
       .vocabulary = 129280,
       .attention = LatentAttentionConfig{.heads = 128,
                                          .q_rank = 1536,
                                          .kv_rank = 512,
                                          .nope_dim = 128,
                                          .rope_dim = 64,
                                          .v_dim = 128},
       .moe = {.d_model = 7168,
               .d_ff = 2048,
               .num_experts = 256,
               .top_k = 8,
               .router = {.score = Score::sigmoid,
                          .selection = {.bias = true},
                          .weight = {.scale = 2.5}},
               .shared = SharedExpertConfig{.d_ff = 2048}},
       .published = {671e9, 36.7e9, without_embedding, "README_WEIGHTS.md of its repository"},
       .note = "The paper rounds to 37 B. README_WEIGHTS.md says that 36.7 B has the input "
               "embedding (0.9 B) in it; by its config that is the count without, 37.6 B with. "
               "Multi-token prediction (11.5 B more) left out, as there."},
  };
}

/// One of them by its name: "Mixtral-8x7B". Throws std::invalid_argument that lists all names.
inline ModelConfig published_model(std::string_view name) {
  std::string names;
  for (const ModelConfig& model : published_models()) {
    if (model.name == name) {
      return model;
    }
    names += detail::joined(names.empty() ? "" : ", ", model.name);
  }
  detail::fail("published_model: name = ", name, ", expected one of ", names);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
