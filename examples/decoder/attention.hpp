// SPDX-License-Identifier: Apache-2.0
// Attention of one decoder layer. Keys and values of a sequence stay in its cache; a new token sees
// a range of them, which is all that causality and sliding windows are here.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <vector>

#include "config.hpp"
#include "weights.hpp"

namespace decoder {

/// Of one sequence in one layer: turned keys, and values, a row a position.
class KvCache {
 public:
  using Block = Eigen::Map<const Rows, 0, Eigen::OuterStride<>>;

  void append(const ConstRowsRef& keys, const ConstRowsRef& values) {
    width_ = keys.cols();
    for (Index row = 0; row < keys.rows(); ++row) {
      keys_.insert(keys_.end(), &keys.coeffRef(row, 0), &keys.coeffRef(row, 0) + width_);
      values_.insert(values_.end(), &values.coeffRef(row, 0), &values.coeffRef(row, 0) + width_);
    }
  }
  Index length() const { return width_ == 0 ? 0 : static_cast<Index>(keys_.size()) / width_; }
  /// (count, head_dim) of a head, from position `begin`.
  Block keys(Index head, Index head_dim, Index begin, Index count) const {
    return {keys_.data() + begin * width_ + head * head_dim, count, head_dim, {width_}};
  }
  Block values(Index head, Index head_dim, Index begin, Index count) const {
    return {values_.data() + begin * width_ + head * head_dim, count, head_dim, {width_}};
  }

 private:
  Index width_ = 0;  // kv_heads * head_dim
  std::vector<float> keys_, values_;
};

/// New tokens of one sequence: rows [begin, begin + count) of a batch, and its cache in this layer.
struct NewRows {
  KvCache* cache;
  Index begin, count;
};

class Attention {
 public:
  /// Memory of a call.
  struct Scratch {
    Rows query, key, value, heads;
    Eigen::VectorXf scores;
  };

  Attention(const AttentionConfig& config, Weights& weights, const std::string& prefix);

  /// y (N, D) = the attention of x (N, D), whose keys and values are appended to the caches.
  void forward(const Rows& x, const Rotation& rotation, std::span<const NewRows> batch, Rows& y,
               Scratch& scratch) const;

 private:
  void clip(Rows& x) const;
  /// heads.row(row) of a token at this position.
  void attend(const KvCache& cache, Index position, Index row, Scratch& scratch) const;

  AttentionConfig config_;
  Linear query_, key_, value_, out_;
  std::optional<RmsNorm> query_norm_, key_norm_;
  Rows sinks_;  // (1, heads), or empty
};

inline Attention::Attention(const AttentionConfig& config, Weights& weights,
                            const std::string& prefix)
    : config_(config) {
  const Index width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  query_ = weights.linear(prefix + "q_proj", width, config.d_model, config.qkv_bias);
  key_ = weights.linear(prefix + "k_proj", kv_width, config.d_model, config.qkv_bias);
  value_ = weights.linear(prefix + "v_proj", kv_width, config.d_model, config.qkv_bias);
  out_ = weights.linear(prefix + "o_proj", config.d_model, width, config.out_bias);
  if (config.qk_norm != Family::QkNorm::none) {
    const bool of_head = config.qk_norm == Family::QkNorm::of_head;
    query_norm_ =
        weights.norm(prefix + "q_norm", of_head ? config.head_dim : width, config.epsilon);
    key_norm_ =
        weights.norm(prefix + "k_norm", of_head ? config.head_dim : kv_width, config.epsilon);
  }
  if (config.sinks) {
    sinks_ = weights.matrix(prefix + "sinks", 1, config.heads);
  }
}

inline void Attention::forward(const Rows& x, const Rotation& rotation,
                               std::span<const NewRows> batch, Rows& y, Scratch& scratch) const {
  query_.forward(x, scratch.query);
  key_.forward(x, scratch.key);
  value_.forward(x, scratch.value);
  if (query_norm_) {
    query_norm_->apply(scratch.query);
    key_norm_->apply(scratch.key);
  }
  for (Rows* part : {&scratch.query, &scratch.key, &scratch.value}) {
    clip(*part);
  }
  rotation.turn(scratch.query);
  rotation.turn(scratch.key);
  scratch.heads.resize(x.rows(), config_.heads * config_.head_dim);
  for (const NewRows& rows : batch) {
    const Index before = rows.cache->length();
    rows.cache->append(scratch.key.middleRows(rows.begin, rows.count),
                       scratch.value.middleRows(rows.begin, rows.count));
    for (Index i = 0; i < rows.count; ++i) {
      attend(*rows.cache, before + i, rows.begin + i, scratch);
    }
  }
  out_.forward(scratch.heads, y);
}

inline void Attention::clip(Rows& x) const {
  if (config_.clip > 0.0) {
    const auto limit = static_cast<float>(config_.clip);
    x = x.unaryExpr([limit](float value) { return std::clamp(value, -limit, limit); });
  }
}

inline void Attention::attend(const KvCache& cache, Index position, Index row,
                              Scratch& scratch) const {
  const Index end = position + 1, width = config_.head_dim;
  const Index begin = config_.window > 0 ? (std::max)(Index{0}, end - config_.window) : 0;
  const Index count = end - begin, queries_per_key = config_.heads / config_.kv_heads;
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(width)));
  Eigen::VectorXf& scores = scratch.scores;
  for (Index head = 0; head < config_.heads; ++head) {
    const Index kv = head / queries_per_key;
    const auto query = scratch.query.row(row).segment(head * width, width);
    scores.noalias() = cache.keys(kv, width, begin, count) * query.transpose();
    scores *= scale;
    float top = scores.maxCoeff();
    if (config_.sinks) {
      top = (std::max)(top, sinks_(0, head));
    }
    scores = (scores.array() - top).exp();
    const float sum = scores.sum() + (config_.sinks ? std::exp(sinks_(0, head) - top) : 0.0F);
    scratch.heads.row(row).segment(head * width, width).noalias() =
        scores.transpose() * cache.values(kv, width, begin, count) / sum;
  }
}

}  // namespace decoder
