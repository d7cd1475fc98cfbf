// SPDX-License-Identifier: Apache-2.0
// ggml, the library of llama.cpp. Weights are in float32 or in its types of as many bits as ours,
// where it can in the layout that it multiplies best.
#include <ggml-cpu.h>

#include "../shapes.hpp"
#include "ggml_peer.hpp"

namespace moe::bench {
namespace {

class Ggml : public GgmlPeer {
 public:
  Ggml(const MoELayer<float>& layer, int threads, ggml_type type) : GgmlPeer(layer, threads, type) {
    set_weights(buffer_type(),
                [](ggml_type its, const float* from, std::byte* to, Index rows, Index cols) {
                  ggml_quantize_chunk(its, from, to, 0, rows, cols, nullptr);
                });
  }

 private:
  ggml_tensor* hidden(ggml_context* c, ggml_tensor* x, ggml_tensor* expert) const override {
    return ggml_swiglu_split(c, ggml_mul_mat_id(c, gate_, x, expert),
                             ggml_mul_mat_id(c, up_, x, expert));
  }
  ggml_tensor* combined(ggml_context* c, ggml_tensor* rows, ggml_tensor* weight) const override {
    rows = ggml_mul(c, rows, weight);
    ggml_tensor* sum = nullptr;
    for (Index k = 0; k < layer_.router().top_k(); ++k) {
      ggml_tensor* const row = ggml_view_2d(c, rows, rows->ne[0], rows->ne[2], rows->nb[2],
                                            static_cast<std::size_t>(k) * rows->nb[1]);
      sum = k == 0 ? ggml_cont(c, row) : ggml_add(c, sum, row);
    }
    return sum;
  }

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
};

[[maybe_unused]] const bool added = add_type<Ggml>("ggml F32", Type::f32, GGML_TYPE_F32) &&
                                    add_type<Ggml>("ggml BF16", Type::bf16, GGML_TYPE_BF16) &&
                                    add_type<Ggml>("ggml Q8_0", Type::q8, GGML_TYPE_Q8_0) &&
                                    add_type<Ggml>("ggml Q4_0", Type::q4, GGML_TYPE_Q4_0) &&
                                    add_type<Ggml>("ggml MXFP4", Type::mxfp4, GGML_TYPE_MXFP4);

/// A type of blocks of 256 weights, which no row of the smallest sizes has.
[[maybe_unused]] const bool added_of_256 =
    smoke() || add_type<Ggml>("ggml Q4_K", Type::q4_k, GGML_TYPE_Q4_K);

}  // namespace
}  // namespace moe::bench
