// SPDX-License-Identifier: Apache-2.0
// The model: the next byte from the last C, by one linear map of their embeddings, residual blocks
// of RMSNorm and feed-forward, and a softmax over 256. No byte sees another's hidden state, so that
// the feed-forwards, dense or MoE, are what the model learns with.
//
//   h = W_in (e(b_1) ... e(b_C));   h += ffn(norm(h)) for each block;   logits = W_out norm(h)
#pragma once

#include "feed_forward.hpp"

namespace byte_lm {

struct ModelConfig {
  Index context = 16, embedding = 16, blocks = 2;
  FeedForwardConfig feed_forward = {};
};

template <class T>
class Model {
 public:
  Model(const ModelConfig& config, std::uint64_t seed)
      : embedding_(config.embedding, 64 * seed),
        in_(config.context * config.embedding, config.feed_forward.d_model, 64 * seed + 1),
        norm_(config.feed_forward.d_model),
        out_(config.feed_forward.d_model, 256, 64 * seed + 2),
        context_(config.context) {
    Eigen::setNbThreads(1);  // of the program: rows are shared out here, and Eigen would allocate
    for (Index b = 0; b < config.blocks; ++b) {
      blocks_.emplace_back(config, b, 64 * seed + 3 + static_cast<std::uint64_t>(b));
    }
  }

  Index num_blocks() const { return static_cast<Index>(blocks_.size()); }
  FeedForward<T>& feed_forward(Index block) {
    return blocks_[static_cast<std::size_t>(block)].feed_forward;
  }
  Index context() const { return context_; }
  /// At least 1; results do not depend on it.
  void set_threads(int threads) { threads_ = threads; }

  /// (N, 256), until the next call. Targets are not read.
  const Rows<T>& logits(const Batch& batch) {
    embedding_.forward(batch, context_, embedded_, threads_);
    in_.forward(embedded_, stream(0), threads_);
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      Block& block = blocks_[b];
      block.norm.forward(block.x, block.normed, threads_);
      block.feed_forward.forward(block.normed, stream(b + 1), threads_);
      stream(b + 1) += block.x;
    }
    norm_.forward(last_, normed_, threads_);
    out_.forward(normed_, logits_, threads_);
    return logits_;
  }
  /// The mean loss in nats; backward may follow.
  double forward(const Batch& batch) {
    logits(batch);
    return cross_entropy(logits_, batch, terms_, threads_);
  }
  /// Gradients =, of the loss of the last forward and of what the routers add to it, which is
  /// returned.
  double backward(const Batch& batch, const RouterLosses& losses) {
    walk([](const auto&, auto&, auto& gradient) { gradient.setZero(); });
    out_.backward(normed_, logits_, dnormed_, threads_);
    dx_.resize(last_.rows(), last_.cols());
    dx_.setZero();
    norm_.backward(last_, dnormed_, dx_, threads_);
    double sum = 0.0;
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      sum += block->feed_forward.backward(block->normed, dx_, dnormed_, losses, threads_);
      block->norm.backward(block->x, dnormed_, dx_, threads_);
    }
    in_.backward(embedded_, dx_, dembedded_, threads_);
    embedding_.backward(batch, dembedded_);
    return sum;
  }

  /// visit(name, parameter, gradient) for all of them, in the same order each time, where name() is
  /// the text: what an optimiser, a checkpoint and a count of parameters walk.
  template <class Visit>
  void walk(Visit&& visit) {
    visit([] { return "embedding"; }, embedding_.table, embedding_.gradient);
    visit([] { return "in"; }, in_.weight, in_.gradient);
    for (Block& block : blocks_) {
      block.feed_forward.walk(block.prefix, visit);
      visit([&] { return block.prefix + "norm"; }, block.norm.scale, block.norm.gradient);
    }
    visit([] { return "norm"; }, norm_.scale, norm_.gradient);
    visit([] { return "out"; }, out_.weight, out_.gradient);
  }

  Index num_parameters() {
    Index sum = 0;
    walk([&](const auto&, const auto& parameter, const auto&) { sum += parameter.size(); });
    return sum;
  }

 private:
  struct Block {
    std::string prefix;  // "blocks.0."
    RmsNorm<T> norm;
    FeedForward<T> feed_forward;
    Rows<T> x, normed;  // (N, D) its input, which backward reads again

    Block(const ModelConfig& config, Index number, std::uint64_t seed)
        : prefix("blocks." + std::to_string(number) + "."),
          norm(config.feed_forward.d_model),
          feed_forward(config.feed_forward, config.blocks, seed) {}
  };
  /// The residual stream before a block, or behind the last one.
  Rows<T>& stream(std::size_t block) { return block < blocks_.size() ? blocks_[block].x : last_; }

  Embedding<T> embedding_;
  Linear<T> in_;
  std::vector<Block> blocks_;
  RmsNorm<T> norm_;
  Linear<T> out_;
  Index context_;
  int threads_ = 1;
  Rows<T> embedded_, last_, normed_, logits_, terms_;
  Rows<T> dnormed_, dx_, dembedded_;
};

/// Of one token: products of the embedding and the head, and all of the feed-forwards.
struct ModelFlops {
  double forward, training;

  explicit ModelFlops(const ModelConfig& config) {
    const double width = static_cast<double>(config.feed_forward.d_model);
    const double ends = 2.0 * width * static_cast<double>(config.context * config.embedding + 256);
    const double blocks = static_cast<double>(config.blocks);
    forward = ends + blocks * config.feed_forward.forward_flops();
    training = forward + 2.0 * ends + blocks * config.feed_forward.backward_flops();
  }
};

}  // namespace byte_lm
