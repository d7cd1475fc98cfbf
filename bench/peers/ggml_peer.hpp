// SPDX-License-Identifier: Apache-2.0
// What ggml and ik_llama.cpp, which grew out of it, have in common: all experts of a kind in one
// tensor, multiplied for each token by the ones that it has. They take our routing, whose time
// counts as their own. Each source includes the library's own headers first.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <vector>

#include "peer.hpp"

namespace moe::bench {

template <auto Free>
struct Freed {
  template <class P>
  void operator()(P* p) const {
    Free(p);
  }
};
using Context = std::unique_ptr<ggml_context, Freed<ggml_free>>;
using Backend = std::unique_ptr<ggml_backend, Freed<ggml_backend_free>>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Freed<ggml_backend_buffer_free>>;

/// For so many tensors, whose memory comes later.
inline Context make_context(std::size_t tensors) {
  return Context(ggml_init({.mem_size = tensors * ggml_tensor_overhead() + ggml_graph_overhead(),
                            .mem_buffer = nullptr,
                            .no_alloc = true}));
}

class GgmlPeer : public Peer {
 public:
  GgmlPeer(const MoELayer<float>& layer, int threads, ggml_type type)
      : layer_(layer), backend_(ggml_backend_cpu_init()), threads_(threads), type_(type) {
    ggml_backend_cpu_set_n_threads(backend_.get(), threads);
    const ExpertParams<float>& first = layer.experts()[0].params();
    const Index experts = layer.num_experts();
    weights_ = make_context(3);
    const auto tensor = [&](const Matrix<float>& w) {
      return ggml_new_tensor_3d(weights_.get(), type, w.cols(), w.rows(), experts);
    };
    gate_ = tensor(first.gate), up_ = tensor(first.up), down_ = tensor(first.down);
  }

  void forward(const Matrix<float>& x, Matrix<float>& y) override {
    if (graph_ == nullptr || x_->ne[2] != x.rows()) {
      build(x.rows());
    }
    layer_.route(x, {.num_threads = threads_}, routed_);
    ggml_backend_tensor_set(x_, x.data(), 0, ggml_nbytes(x_));
    ggml_backend_tensor_set(expert_, routed_.routing.expert.data(), 0, ggml_nbytes(expert_));
    ggml_backend_tensor_set(weight_, routed_.routing.weight.data(), 0, ggml_nbytes(weight_));
    if (ggml_backend_graph_compute(backend_.get(), graph_) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("moe_peers: ggml failed");
    }
    ggml_backend_tensor_get(y_, y.data(), 0, ggml_nbytes(y_));
  }

 protected:
  /// The weights, in memory of that kind; quantize(type, from, to, rows, cols) is the library's.
  template <class Quantize>
  void set_weights(ggml_backend_buffer_type_t memory, Quantize&& quantize) {
    weight_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_.get(), memory));
    set(gate_, &ExpertParams<float>::gate, quantize);
    set(up_, &ExpertParams<float>::up, quantize);
    set(down_, &ExpertParams<float>::down, quantize);
  }
  /// silu(gate x) * (up x): (F, K, tokens) of x (D, 1, tokens) and its experts (K, tokens).
  virtual ggml_tensor* hidden(ggml_context* c, ggml_tensor* x, ggml_tensor* expert) const = 0;
  /// The sum over K of rows (D, K, tokens) by weight (1, K, tokens): (D, tokens).
  virtual ggml_tensor* combined(ggml_context* c, ggml_tensor* rows, ggml_tensor* weight) const = 0;

  const MoELayer<float>& layer_;
  Backend backend_;
  ggml_tensor *gate_ = nullptr, *up_ = nullptr, *down_ = nullptr;  // (., ., E)

 private:
  template <class Quantize>
  void set(ggml_tensor* tensor, Matrix<float> ExpertParams<float>::*weight,
           Quantize& quantize) const {
    std::vector<std::byte> bytes(ggml_nbytes(tensor));
    const std::size_t size = bytes.size() / layer_.experts().size();
    for (std::size_t e = 0; e < layer_.experts().size(); ++e) {
      const Matrix<float>& w = layer_.experts()[e].params().*weight;
      quantize(type_, w.data(), bytes.data() + e * size, w.rows(), w.cols());
    }
    ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
  }

  void build(Index tokens) {
    const auto top_k = layer_.router().top_k();
    tensors_ = make_context(static_cast<std::size_t>(16 + 4 * top_k));
    ggml_context* const c = tensors_.get();
    x_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, layer_.d_in(), 1, tokens);
    expert_ = ggml_new_tensor_2d(c, GGML_TYPE_I32, top_k, tokens);
    weight_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, top_k, tokens);
    ggml_tensor* const rows = ggml_mul_mat_id(c, down_, hidden(c, x_, expert_), expert_);
    y_ = combined(c, rows, weight_);
    graph_ = ggml_new_graph(c);
    ggml_build_forward_expand(graph_, y_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(c, backend_.get()));
  }

  int threads_;
  ggml_type type_;
  Routed<float, Router<float>> routed_;
  Context weights_, tensors_;
  Buffer weight_buffer_, buffer_;
  ggml_tensor *x_ = nullptr, *expert_ = nullptr, *weight_ = nullptr, *y_ = nullptr;  // a row each
  ggml_cgraph* graph_ = nullptr;
};

/// Adds a peer of class P, whose weights are of its type.
template <class P>
bool add_type(const char* name, Type type, ggml_type its_type) {
  return add_peer({name, type, false, [its_type](const MoELayer<float>& layer, int threads) {
                     return std::make_unique<P>(layer, threads, its_type);
                   }});
}

}  // namespace moe::bench
