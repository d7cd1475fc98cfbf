// SPDX-License-Identifier: Apache-2.0
// A decoder-only model: token ids -> embedding -> layers -> norm -> logits. New tokens of several
// sequences go through it as one batch; only their attention is each sequence's own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.hpp"
#include "feed_forward.hpp"

namespace decoder {

using TokenId = std::int32_t;

/// What the model has seen of a text: a cache for each layer.
struct Sequence {
  std::vector<KvCache> layers;

  Index length() const { return layers.front().length(); }
};

/// The tokens that follow in a sequence.
struct NewTokens {
  Sequence* sequence;
  std::span<const TokenId> ids;
};

/// What was between, for whoever compares.
struct Trace {
  Rows embedding;                                   // (N, D)
  std::vector<Rows> layers;                         // (N, D) behind each
  Rows norm;                                        // (N, D)
  std::vector<moe::Matrix<moe::ExpertId>> experts;  // (N, K) of each layer; empty of a dense one
};

template <moe::Storage S>
class Model {
 public:
  /// Memory of a call.
  struct Scratch {
    Rows normed, out;
    Attention::Scratch attention;
    typename FeedForward<S>::Scratch feed_forward;
  };

  /// Throws io::FormatError unless the directory holds such a model, whole and with nothing else.
  explicit Model(const std::filesystem::path& directory) : Model(io::Checkpoint(directory)) {}

  Index vocabulary() const { return embedding_.rows(); }
  Index num_layers() const { return static_cast<Index>(layers_.size()); }
  Sequence sequence() const { return {std::vector<KvCache>(layers_.size())}; }

  /// The last states (N, D) of the new tokens, those of one sequence behind those of the other.
  /// Throws std::invalid_argument, before anything is computed, on an id that is none.
  Rows forward(std::span<const NewTokens> batch, Scratch& scratch, Trace* trace = nullptr) const;
  /// (N, vocabulary) of last states.
  Rows logits(const ConstRowsRef& states) const {
    return states * (output_.size() > 0 ? output_ : embedding_).transpose();
  }

 private:
  struct Layer {
    RmsNorm attention_norm, feed_forward_norm;
    Attention attention;
    FeedForward<S> feed_forward;
  };

  explicit Model(io::Checkpoint checkpoint) : Model(checkpoint, Config(checkpoint.config())) {}
  Model(io::Checkpoint& checkpoint, const Config& config);
  Rows embed(std::span<const NewTokens> batch) const;

  Rows embedding_, output_;  // (vocabulary, D); no output where the embedding is both
  std::vector<Layer> layers_;
  RmsNorm norm_;
  Rotary rotary_;
};

template <moe::Storage S>
Model<S>::Model(io::Checkpoint& checkpoint, const Config& config) : rotary_(config.rotary()) {
  Weights weights(checkpoint);
  const Index width = config.d_model();
  embedding_ = weights.matrix("model.embed_tokens.weight", config.vocabulary(), width);
  for (Index layer = 0; layer < config.num_layers(); ++layer) {
    const std::string prefix = checkpoint.layer_prefix(layer);
    layers_.push_back({weights.norm(prefix + "input_layernorm", width, config.epsilon()),
                       weights.norm(prefix + "post_attention_layernorm", width, config.epsilon()),
                       Attention(config.attention(layer), weights, prefix + "self_attn."),
                       FeedForward<S>::load(checkpoint, config, weights, layer)});
  }
  norm_ = weights.norm("model.norm", width, config.epsilon());
  if (config.tied()) {
    weights.leave("lm_head.weight");
  } else {
    output_ = weights.matrix("lm_head.weight", config.vocabulary(), width);
  }
  weights.check_all_taken();
}

template <moe::Storage S>
Rows Model<S>::embed(std::span<const NewTokens> batch) const {
  std::vector<TokenId> ids;
  for (const NewTokens& tokens : batch) {
    ids.insert(ids.end(), tokens.ids.begin(), tokens.ids.end());
  }
  for (const TokenId id : ids) {
    if (id < 0 || id >= vocabulary()) {
      throw std::invalid_argument("token id " + std::to_string(id) + ", expected in [0, " +
                                  std::to_string(vocabulary()) + ")");
    }
  }
  Rows x(static_cast<Index>(ids.size()), embedding_.cols());
  for (Index row = 0; row < x.rows(); ++row) {
    x.row(row) = embedding_.row(ids[static_cast<std::size_t>(row)]);
  }
  return x;
}

template <moe::Storage S>
Rows Model<S>::forward(std::span<const NewTokens> batch, Scratch& scratch, Trace* trace) const {
  Rows x = embed(batch);
  std::vector<NewRows> rows;
  std::vector<Index> positions;
  for (const NewTokens& tokens : batch) {
    const auto begin = static_cast<Index>(positions.size());
    const auto count = static_cast<Index>(tokens.ids.size());
    rows.push_back({nullptr, begin, count});
    for (Index i = 0; i < count; ++i) {
      positions.push_back(tokens.sequence->length() + i);
    }
  }
  const Rotation rotation = rotary_.at(positions);
  if (trace != nullptr) {
    trace->embedding = x;
    trace->layers.clear();
    trace->experts.clear();
  }
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    for (std::size_t i = 0; i < batch.size(); ++i) {
      rows[i].cache = &batch[i].sequence->layers[l];
    }
    scratch.normed = x;
    layer.attention_norm.apply(scratch.normed);
    layer.attention.forward(scratch.normed, rotation, rows, scratch.out, scratch.attention);
    x += scratch.out;
    scratch.normed = x;
    layer.feed_forward_norm.apply(scratch.normed);
    layer.feed_forward.forward(scratch.normed, scratch.out, scratch.feed_forward);
    x += scratch.out;
    if (trace != nullptr) {
      trace->layers.push_back(x);
      trace->experts.emplace_back();
      if (layer.feed_forward.is_sparse()) {
        trace->experts.back() = scratch.feed_forward.moe.routing.expert;
      }
    }
  }
  norm_.apply(x);
  if (trace != nullptr) {
    trace->norm = x;
  }
  return x;
}

}  // namespace decoder
