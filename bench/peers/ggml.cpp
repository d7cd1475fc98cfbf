// SPDX-License-Identifier: Apache-2.0
// ggml, the library of llama.cpp: all experts of a kind in one tensor, multiplied for each token by
// the ones that it has. Weights are in float32 or in its types of as many bits as ours, where it
// can in the layout that it multiplies best. It takes our routing, whose time counts as its own.
#include <ggml-cpu.h>

#include "peer.hpp"

namespace moe::bench {
namespace {

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
Context make_context(std::size_t tensors) {
  return Context(ggml_init({.mem_size = tensors * ggml_tensor_overhead() + ggml_graph_overhead(),
                            .mem_buffer = nullptr,
                            .no_alloc = true}));
}

class GgmlPeer : public Peer {
 public:
  GgmlPeer(const MoELayer<float>& layer, int threads, ggml_type type)
      : layer_(layer), threads_(threads), type_(type), backend_(ggml_backend_cpu_init()) {
    ggml_backend_cpu_set_n_threads(backend_.get(), threads);
    const ExpertParams<float>& first = layer.experts()[0].params();
    const Index experts = layer.num_experts();
    weights_ = make_context(3);
    const auto tensor = [&](const Matrix<float>& w) {
      return ggml_new_tensor_3d(weights_.get(), type, w.cols(), w.rows(), experts);
    };
    gate_ = tensor(first.gate), up_ = tensor(first.up), down_ = tensor(first.down);
    weight_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_.get(), buffer_type()));
    set(gate_, &ExpertParams<float>::gate);
    set(up_, &ExpertParams<float>::up);
    set(down_, &ExpertParams<float>::down);
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

 private:
  /// One that lays weights out anew, if it takes these.
  ggml_backend_buffer_type_t buffer_type() const {
    const ggml_backend_dev_t device = ggml_backend_get_device(backend_.get());
    const auto extra_types =
        reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (auto type = extra_types ? extra_types(device) : nullptr; type && *type; ++type) {
      if (takes(device, *type, gate_) && takes(device, *type, down_)) {
        return *type;
      }
    }
    return ggml_backend_cpu_buffer_type();
  }
  static bool takes(ggml_backend_dev_t device, ggml_backend_buffer_type_t type, ggml_tensor* w) {
    const Context context = make_context(3);
    ggml_tensor* const x = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, w->ne[0], 1, 1);
    ggml_tensor* const expert = ggml_new_tensor_2d(context.get(), GGML_TYPE_I32, 1, 1);
    const Buffer buffer(ggml_backend_buft_alloc_buffer(type, 0));
    w->buffer = buffer.get();
    const ggml_tensor* const product = ggml_mul_mat_id(context.get(), w, x, expert);
    const bool supported = ggml_backend_dev_supports_op(device, product);
    w->buffer = nullptr;
    return supported;
  }

  void set(ggml_tensor* tensor, Matrix<float> ExpertParams<float>::*weight) const {
    std::vector<std::byte> bytes(ggml_nbytes(tensor));
    const std::size_t size = bytes.size() / layer_.experts().size();
    for (std::size_t e = 0; e < layer_.experts().size(); ++e) {
      const Matrix<float>& w = layer_.experts()[e].params().*weight;
      ggml_quantize_chunk(type_, w.data(), bytes.data() + e * size, 0, w.rows(), w.cols(), nullptr);
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
    ggml_tensor* const hidden = ggml_swiglu_split(c, ggml_mul_mat_id(c, gate_, x_, expert_),
                                                  ggml_mul_mat_id(c, up_, x_, expert_));
    ggml_tensor* const rows = ggml_mul(c, ggml_mul_mat_id(c, down_, hidden, expert_), weight_);
    for (Index k = 0; k < top_k; ++k) {
      ggml_tensor* const row = ggml_view_2d(c, rows, layer_.d_out(), tokens, rows->nb[2],
                                            static_cast<std::size_t>(k) * rows->nb[1]);
      y_ = k == 0 ? ggml_cont(c, row) : ggml_add(c, y_, row);
    }
    graph_ = ggml_new_graph(c);
    ggml_build_forward_expand(graph_, y_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(c, backend_.get()));
  }

  const MoELayer<float>& layer_;
  int threads_;
  ggml_type type_;
  Routed<float, Router<float>> routed_;
  Backend backend_;
  Context weights_, tensors_;
  Buffer weight_buffer_, buffer_;
  ggml_tensor *gate_ = nullptr, *up_ = nullptr, *down_ = nullptr;                    // (., ., E)
  ggml_tensor *x_ = nullptr, *expert_ = nullptr, *weight_ = nullptr, *y_ = nullptr;  // a row each
  ggml_cgraph* graph_ = nullptr;
};

bool add_type(const char* name, Type type, ggml_type its_type) {
  return add_peer({name, type, false, [its_type](const MoELayer<float>& layer, int threads) {
                     return std::make_unique<GgmlPeer>(layer, threads, its_type);
                   }});
}

[[maybe_unused]] const bool added = add_type("ggml F32", Type::f32, GGML_TYPE_F32) &&
                                    add_type("ggml Q8_0", Type::q8, GGML_TYPE_Q8_0) &&
                                    add_type("ggml Q4_0", Type::q4, GGML_TYPE_Q4_0) &&
                                    add_type("ggml MXFP4", Type::mxfp4, GGML_TYPE_MXFP4);

}  // namespace
}  // namespace moe::bench
