// SPDX-License-Identifier: Apache-2.0
// Published models, one struct literal each, from their config.json. The formulae that turn them
// into counts are in model_cost.hpp.
#pragma once

#include <moe/config.hpp>
#include <string_view>
#include <variant>
#include <vector>

namespace moe::report {

/// Multi-head where kv_heads == heads (Ainslie 2023).
struct GroupedQueryAttention {
  Index heads, kv_heads, head_dim;
  bool qkv_bias = false, output_bias = false;
  Index qk_norm = 0;   ///< weights of the norms of queries and keys together
  bool sinks = false;  ///< one learned logit for each head (gpt-oss)
};

/// Multi-head latent attention (DeepSeek-V2): queries and keys of nope_dim + rope_dim.
struct LatentAttention {
  Index heads;
  Index q_rank;  ///< 0: queries are not compressed
  Index kv_rank, nope_dim, rope_dim, v_dim;
};

/// Whether the publisher's active count has the input embedding in it: a look-up, not a product.
enum class Counts { with_embedding, without_embedding };

struct Published {
  double total, active;
  Counts active_counts;
  std::string_view source;
};

/// Where the label stands beside the point of the model in the picture.
enum class Side { above, below, left, right };

/// A transformer with pre-norms. An encoder-decoder has the layers of both its stacks here.
struct Model {
  std::string_view name, family, label;
  Side side = Side::above;
  Index layers;
  Index dense_layers = 0, dense_d_ff = 0;  ///< those without experts
  Index vocabulary;
  bool tied = false;  ///< the head is the embedding
  std::variant<GroupedQueryAttention, LatentAttention> attention;
  Index cross_attention_layers = 0, stacks = 1;
  Index relative_bias = 0;       ///< position biases of the whole model (T5)
  bool correction_bias = false;  ///< a bias for each expert in the selection only (DeepSeek-V3)
  MoEConfig moe;
  Published published;
  std::string_view note = "";
};

/// T5-Base with experts in every other layer of both stacks (Fedus 2021).
inline Model switch_base(std::string_view name, std::string_view label, Index experts,
                         Published published, std::string_view note = "") {
  return {.name = name,
          .family = "Switch-Base",
          .label = label,
          .layers = 24,
          .dense_layers = 12,
          .dense_d_ff = 3072,
          .vocabulary = 32128,
          .tied = true,
          .attention = GroupedQueryAttention{.heads = 12, .kv_heads = 12, .head_dim = 64},
          .cross_attention_layers = 12,
          .stacks = 2,
          .relative_bias = 2 * 32 * 12,
          .moe = {.d_model = 768,
                  .d_ff = 3072,
                  .num_experts = experts,
                  .top_k = 1,
                  .expert = {.activation = Activation::relu, .gated = false},
                  .router = {.renormalise = false}},
          .published = published,
          .note = note};
}

inline Model gpt_oss(std::string_view name, std::string_view label, Index layers, Index experts,
                     Published published) {
  return {.name = name,
          .family = "gpt-oss",
          .label = label,
          .layers = layers,
          .vocabulary = 201088,
          .attention = GroupedQueryAttention{.heads = 64,
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
                  .router = {.bias = true, .weight = WeightSource::softmax_of_chosen}},
          .published = published,
          .note =
              "The publisher counts the head as active, the input embedding not. Its clamped "
              "SwiGLU has the same products as SwiGLU."};
}

inline std::vector<Model> published_models() {
  using enum Counts;
  constexpr std::string_view fedus =
      "total: Fedus 2021, table of the distilled models; active: T5-Base";
  constexpr std::string_view switch_note =
      "FLOPs of a token of the input and one of the output together. Active is T5-Base plus the "
      "routers.";
  return {
      switch_base("Switch-Base-8", "8", 8,
                  {0.619e9, 0.223e9, with_embedding,
                   "total: Hugging Face, size of its safetensors; active: T5-Base"},
                  switch_note),
      switch_base("Switch-Base-64", "64", 64, {3.8e9, 0.223e9, with_embedding, fedus}, switch_note),
      switch_base("Switch-Base-128", "128", 128, {7.4e9, 0.223e9, with_embedding, fedus},
                  switch_note),
      switch_base("Switch-Base-256", "256", 256, {14.7e9, 0.223e9, with_embedding, fedus},
                  "FLOPs of a token of the input and one of the output together. Active is T5-Base "
                  "plus routers of 2.4 M, which are the 1 % of difference."),
      {.name = "OLMoE-1B-7B",
       .family = "OLMoE",
       .label = "1B-7B",
       .side = Side::left,
       .layers = 16,
       .vocabulary = 50304,
       .attention =
           GroupedQueryAttention{.heads = 16, .kv_heads = 16, .head_dim = 128, .qk_norm = 2 * 2048},
       .moe = {.d_model = 2048,
               .d_ff = 1024,
               .num_experts = 64,
               .top_k = 8,
               .router = {.renormalise = false}},
       .published = {6.9e9, 1.3e9, with_embedding, "Muennighoff 2024"},
       .note = "1.28 B, published as 1.3 B."},
      {.name = "Qwen1.5-MoE-A2.7B",
       .family = "Qwen",
       .label = "1.5-MoE",
       .side = Side::left,
       .layers = 24,
       .vocabulary = 151936,
       .attention =
           GroupedQueryAttention{.heads = 16, .kv_heads = 16, .head_dim = 128, .qkv_bias = true},
       .moe = {.d_model = 2048,
               .d_ff = 1408,
               .num_experts = 60,
               .top_k = 4,
               .router = {.renormalise = false},
               .shared = SharedExpertConfig{.d_ff = 5632, .output_gate = true}},
       .published = {14.3e9, 2.7e9, with_embedding, "model card"}},
      {.name = "DeepSeek-V2-Lite",
       .family = "DeepSeek",
       .label = "V2-Lite",
       .side = Side::below,
       .layers = 27,
       .dense_layers = 1,
       .dense_d_ff = 10944,
       .vocabulary = 102400,
       .attention = LatentAttention{.heads = 16,
                                    .q_rank = 0,
                                    .kv_rank = 512,
                                    .nope_dim = 128,
                                    .rope_dim = 64,
                                    .v_dim = 128},
       .moe = {.d_model = 2048,
               .d_ff = 1408,
               .num_experts = 64,
               .top_k = 6,
               .router = {.renormalise = false},
               .shared = SharedExpertConfig{.d_ff = 2 * 1408}},
       .published = {15.7e9, 2.4e9, without_embedding, "model card"},
       .note = "2.45 B with the head and without the input embedding, published as 2.4 B; "
               "2.66 B with both."},
      gpt_oss("gpt-oss-20b", "20b", 24, 32,
              {20.91e9, 3.61e9, without_embedding, "model card, table 1"}),
      {.name = "Qwen3-30B-A3B",
       .family = "Qwen",
       .label = "3-30B",
       .side = Side::right,
       .layers = 48,
       .vocabulary = 151936,
       .attention =
           GroupedQueryAttention{.heads = 32, .kv_heads = 4, .head_dim = 128, .qk_norm = 2 * 128},
       .moe = {.d_model = 2048, .d_ff = 768, .num_experts = 128, .top_k = 8},
       .published = {30.5e9, 3.3e9, with_embedding, "model card"},
       .note = "3.35 B, published as 3.3 B."},
      {.name = "Mixtral-8x7B",
       .family = "Mixtral",
       .label = "8x7B",
       .layers = 32,
       .vocabulary = 32000,
       .attention = GroupedQueryAttention{.heads = 32, .kv_heads = 8, .head_dim = 128},
       .moe = {.d_model = 4096, .d_ff = 14336, .num_experts = 8, .top_k = 2},
       .published = {46.7e9, 12.9e9, with_embedding, "Jiang 2024"}},
      {.name = "Mixtral-8x22B",
       .family = "Mixtral",
       .label = "8x22B",
       .layers = 56,
       .vocabulary = 32000,
       .attention = GroupedQueryAttention{.heads = 48, .kv_heads = 8, .head_dim = 128},
       .moe = {.d_model = 6144, .d_ff = 16384, .num_experts = 8, .top_k = 2},
       .published = {141e9, 39e9, with_embedding, "Mistral AI, release note"}},
      gpt_oss("gpt-oss-120b", "120b", 36, 128,
              {116.83e9, 5.13e9, without_embedding, "model card, table 1"}),
      {.name = "DeepSeek-V3",
       .family = "DeepSeek",
       .label = "V3",
       .layers = 61,
       .dense_layers = 3,
       .dense_d_ff = 18432,
       .vocabulary = 129280,
       .attention = LatentAttention{.heads = 128,
                                    .q_rank = 1536,
                                    .kv_rank = 512,
                                    .nope_dim = 128,
                                    .rope_dim = 64,
                                    .v_dim = 128},
       .correction_bias = true,
       .moe = {.d_model = 7168,
               .d_ff = 2048,
               .num_experts = 256,
               .top_k = 8,
               .router = {.score = Score::sigmoid, .scale = 2.5},
               .shared = SharedExpertConfig{.d_ff = 2048}},
       .published = {671e9, 36.7e9, without_embedding, "README_WEIGHTS.md of its repository"},
       .note = "The paper rounds to 37 B. README_WEIGHTS.md says that 36.7 B has the input "
               "embedding (0.9 B) in it; by its config that is the count without, 37.6 B with. "
               "Multi-token prediction (11.5 B more) left out, as there."},
  };
}

}  // namespace moe::report
