// SPDX-License-Identifier: Apache-2.0
// What a whole model costs: its embedding, attention, norms and head here, its MoE layers from
// cost.hpp.
//
// FLOPs of a token: 2 for each weight that multiplies it - projections of the attention, routers,
// chosen and shared experts, dense layers, head. Left out: the look-up of the embedding, norms,
// biases, activations, and the scores of the attention, which grow with the context.
#pragma once

#include <optional>
#include <variant>

#include "../config.hpp"
#include "cost.hpp"
#include "models.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

/// Parameters of a model, and the FLOPs of one token in its forward.
struct ModelCost {
  Index total = 0;
  Index active = 0;     ///< as the publisher counts: by PublishedCount::rule
  Index embedding = 0;  ///< of the input; 0 where it is tied to the head, which is active anyhow
  Index active_with_embedding = 0;
  double flops_per_token = 0;
};

namespace detail {

/// The weights of one sublayer: all, those used for one token, and of these those multiplied by it.
struct SublayerSize {
  Index total = 0, active = 0, matmul = 0;

  friend SublayerSize operator+(SublayerSize a, SublayerSize b) {
    return {a.total + b.total, a.active + b.active, a.matmul + b.matmul};
  }
  friend SublayerSize operator*(Index n, SublayerSize s) {
    return {n * s.total, n * s.active, n * s.matmul};
  }
};

/// All of them used for every token, `matmul` of them in products.
inline SublayerSize always(Index parameters, Index matmul) {
  return {parameters, parameters, matmul};
}

inline SublayerSize attention_size(const GroupedQueryAttentionConfig& a, Index d_model) {
  const Index q = a.heads * a.head_dim, kv = 2 * a.kv_heads * a.head_dim;
  const Index matmul = d_model * (q + kv) + q * d_model;
  return always(matmul + (a.qkv_bias ? q + kv : 0) + (a.output_bias ? d_model : 0) + a.qk_norm +
                    (a.sinks ? a.heads : 0),
                matmul);
}

inline SublayerSize attention_size(const LatentAttentionConfig& a, Index d_model) {
  const Index q = a.heads * (a.nope_dim + a.rope_dim);
  const Index queries = a.q_rank > 0 ? d_model * a.q_rank + a.q_rank * q : d_model * q;
  const Index keys_values =
      d_model * (a.kv_rank + a.rope_dim) + a.kv_rank * a.heads * (a.nope_dim + a.v_dim);
  const Index matmul = queries + keys_values + a.heads * a.v_dim * d_model;
  return always(matmul + a.q_rank + a.kv_rank, matmul);  // a norm on each compressed vector
}

inline SublayerSize moe_size(const ModelConfig& model) {
  const ParameterCount count = parameters(model.moe);
  const Flops flops = forward_flops(model.moe, predicted_work(model.moe, 1)).sum();
  return {count.total, count.active, static_cast<Index>(flops.matmul / 2)};
}

/// One dense feed-forward of the experts' kind.
inline SublayerSize dense_size(const ModelConfig& model, Index d_ff) {
  if (d_ff == 0) {
    return {};
  }
  MoEConfig c = model.moe;
  c.d_ff = d_ff;
  c.num_experts = c.top_k = 1;
  c.shared = std::nullopt;
  const Flops flops = forward_flops(c, predicted_work(c, 1)).experts;
  return always(parameters(c).expert, static_cast<Index>(flops.matmul / 2));
}

/// The model with these feed-forwards in place of its MoE layers.
inline ModelCost cost_with(const ModelConfig& model, SublayerSize moe_layer) {
  const Index d = model.moe.d_model, attentions = model.layers + model.cross_attention_layers;
  const SublayerSize attention =
      std::visit([&](const auto& a) { return attention_size(a, d); }, model.attention);
  const Index norms = (attentions + model.layers + model.stacks) * d;
  const Index head = model.vocabulary * d;
  const SublayerSize sum = attentions * attention + always(norms + model.relative_bias, 0) +
                           model.dense_layers * dense_size(model, model.dense_d_ff) +
                           (model.layers - model.dense_layers) * moe_layer + always(head, head);
  ModelCost cost;
  cost.embedding = model.tied ? 0 : head;
  cost.total = sum.total + cost.embedding;
  cost.active_with_embedding = sum.active + cost.embedding;
  cost.active =
      model.published.rule == ActiveCount::with_embedding ? cost.active_with_embedding : sum.active;
  cost.flops_per_token = 2.0 * static_cast<double>(sum.matmul);
  return cost;
}

}  // namespace detail

/// Throws std::invalid_argument if the model is not valid: ModelConfig::validate().
inline ModelCost model_cost(const ModelConfig& model) {
  model.validate();
  return detail::cost_with(model, detail::moe_size(model));
}

/// The dense model of equal active size: its feed-forwards as wide as what a token uses.
inline ModelCost dense_of_equal_active(const ModelConfig& model) {
  model.validate();
  const MoEConfig& c = model.moe;
  const Index d_ff = c.top_k * c.d_ff + (c.shared ? c.shared->d_ff : 0);
  return detail::cost_with(model, detail::dense_size(model, d_ff));
}

/// The dense model of equal total size: every token uses all of it.
inline ModelCost dense_of_equal_total(const ModelConfig& model) {
  model.validate();
  const MoEConfig& c = model.moe;
  const Index d_ff = c.num_experts * c.d_ff + (c.shared ? c.shared->d_ff : 0);
  return detail::cost_with(model, detail::dense_size(model, d_ff));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
