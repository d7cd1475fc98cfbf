// SPDX-License-Identifier: Apache-2.0
// ik_llama.cpp's ggml: up, gate and activation in one operation, combine in another, and types
// whose rows lie interleaved (_R4, _R8, _R16), each beside our storage of as many bits.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include "../shapes.hpp"
#include "ggml_peer.hpp"

namespace moe::bench {
namespace {

class IkLlama : public GgmlPeer {
 public:
  IkLlama(const MoELayer<float>& layer, int threads, ggml_type type)
      : GgmlPeer(layer, threads, type) {
    set_weights(ggml_backend_cpu_buffer_type(),
                [](ggml_type its, const float* from, std::byte* to, Index rows, Index cols) {
                  ggml_quantize_chunk(its, from, to, 0, rows, cols, nullptr, nullptr);
                });
  }

 private:
  ggml_tensor* hidden(ggml_context* c, ggml_tensor* x, ggml_tensor* expert) const override {
    return ggml_moe_up_gate(c, up_, gate_, x, expert, GGML_UNARY_OP_SILU);
  }
  ggml_tensor* combined(ggml_context* c, ggml_tensor* rows, ggml_tensor* weight) const override {
    return ggml_mul_multi_add(c, rows, weight);
  }
};

[[maybe_unused]] const bool added =
    add_type<IkLlama>("ik F32", Type::f32, GGML_TYPE_F32) &&
    add_type<IkLlama>("ik BF16", Type::bf16, GGML_TYPE_BF16) &&
    add_type<IkLlama>("ik Q8_0", Type::q8, GGML_TYPE_Q8_0) &&
    add_type<IkLlama>("ik Q8_0_R8", Type::q8, GGML_TYPE_Q8_0_R8) &&
    add_type<IkLlama>("ik Q4_0", Type::q4, GGML_TYPE_Q4_0) &&
    add_type<IkLlama>("ik Q4_0_R8", Type::q4, GGML_TYPE_Q4_0_R8) &&
    add_type<IkLlama>("ik IQ4_NL_R4", Type::q4, GGML_TYPE_IQ4_NL_R4) &&
    add_type<IkLlama>("ik MXFP4", Type::mxfp4, GGML_TYPE_MXFP4) &&
    add_type<IkLlama>("ik MXFP4_R8", Type::mxfp4, GGML_TYPE_MXFP4_R8);

#if defined(__AVX512BF16__)  // without which the library ends the process
[[maybe_unused]] const bool added_of_16 =
    add_type<IkLlama>("ik BF16_R16", Type::bf16, GGML_TYPE_BF16_R16);
#endif

/// Types of blocks of 256 weights, which no row of the smallest sizes has.
[[maybe_unused]] const bool added_of_256 =
    smoke() || (add_type<IkLlama>("ik Q8_K_R8", Type::q8, GGML_TYPE_Q8_K_R8) &&
                add_type<IkLlama>("ik Q4_K", Type::q4_k, GGML_TYPE_Q4_K) &&
                add_type<IkLlama>("ik Q4_K_R4", Type::q4_k, GGML_TYPE_Q4_K_R4));

}  // namespace
}  // namespace moe::bench
