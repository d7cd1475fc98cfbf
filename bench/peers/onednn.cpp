// SPDX-License-Identifier: Apache-2.0
// oneDNN: a loop over the experts, each three products on all threads, of weights that lie as
// oneDNN likes them best. The activation is fused into the product of the gate. A primitive is made
// for each number of rows and kept.
#include <dnnl.hpp>
#include <map>

#include "peer.hpp"

namespace moe::bench {
namespace {

using dnnl::memory;

memory::desc row_major(Index rows, Index cols) {
  return {{rows, cols}, memory::data_type::f32, memory::format_tag::ab};
}

/// x (rows, in) * w^T, for all weights w (out, in) of one shape; gated: silu of it, times another
/// matrix (rows, out).
class Product {
 public:
  Product(const dnnl::engine& engine, Index in, Index out, bool gated)
      : engine_(engine), in_(in), out_(out), gated_(gated), layout_(best_layout()) {}

  memory pack(const Matrix<float>& weight, dnnl::stream& stream) const {
    const memory plain({{in_, out_}, memory::data_type::f32, memory::format_tag::ba}, engine_,
                       const_cast<float*>(weight.data()));
    memory packed(layout_, engine_);
    dnnl::reorder(plain, packed).execute(stream, const_cast<memory&>(plain), packed);
    stream.wait();
    return packed;
  }

  void multiply(Index rows, const float* x, const memory& weight, float* factor, float* y,
                dnnl::stream& stream) {
    auto [place, missing] = primitives_.try_emplace(rows);
    if (missing) {
      place->second = dnnl::matmul(describe(rows, layout_));
    }
    std::unordered_map<int, memory> arguments{
        {DNNL_ARG_SRC, {row_major(rows, in_), engine_, const_cast<float*>(x)}},
        {DNNL_ARG_WEIGHTS, weight},
        {DNNL_ARG_DST, {row_major(rows, out_), engine_, y}}};
    if (gated_) {
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(1) | DNNL_ARG_SRC_1,
                        memory(row_major(rows, out_), engine_, factor));
    }
    place->second.execute(stream, arguments);
  }

 private:
  dnnl::matmul::primitive_desc describe(Index rows, const memory::desc& weight) const {
    dnnl::primitive_attr attr;
    if (gated_) {
      dnnl::post_ops ops;
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_swish, 1.0F, 0.0F);
      ops.append_binary(dnnl::algorithm::binary_mul, row_major(rows, out_));
      attr.set_post_ops(ops);
    }
    return {{row_major(rows, in_), weight, row_major(rows, out_)}, attr, engine_};
  }

  memory::desc best_layout() const {
    return describe(192, {{in_, out_}, memory::data_type::f32, memory::format_tag::any})
        .weights_desc();
  }

  dnnl::engine engine_;
  Index in_, out_;
  bool gated_;
  memory::desc layout_;
  std::map<Index, dnnl::matmul> primitives_;
};

class OneDnnPeer : public ProductPeer {
 public:
  OneDnnPeer(const MoELayer<float>& layer, int threads)
      : ProductPeer(layer, threads),
        gate_(engine_, layer.d_in(), layer.experts().front().d_ff(), true),
        up_(engine_, layer.d_in(), layer.experts().front().d_ff(), false),
        down_(engine_, layer.experts().front().d_ff(), layer.d_out(), false) {
    for (Index e = 0; e < layer.num_experts(); ++e) {
      packed_.push_back({gate_.pack(params(e).gate, stream_), up_.pack(params(e).up, stream_),
                         down_.pack(params(e).down, stream_)});
    }
  }

 private:
  struct Packed {
    memory gate, up, down;
  };

  void compute_experts() override {
    const Index d_ff = layer_.experts().front().d_ff();
    rows_.resize(2 * plan_.num_rows(), d_ff);
    for (Index e = 0; e < layer_.num_experts(); ++e) {
      const Index rows = plan_.kept(e);
      if (rows == 0) {
        continue;
      }
      const Packed& packed = packed_[static_cast<std::size_t>(e)];
      const float* x = x_rows_.data() + first_row(e) * x_rows_.cols();
      float* up = rows_.data() + 2 * first_row(e) * d_ff;
      float* hidden = up + rows * d_ff;
      up_.multiply(rows, x, packed.up, nullptr, up, stream_);
      gate_.multiply(rows, x, packed.gate, up, hidden, stream_);
      down_.multiply(rows, hidden, packed.down, nullptr,
                     y_rows_.data() + first_row(e) * y_rows_.cols(), stream_);
    }
    stream_.wait();
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  Product gate_, up_, down_;
  std::vector<Packed> packed_;
  Matrix<float> rows_;  // of each expert: up, then hidden
};

[[maybe_unused]] const bool added =
    add_peer({"oneDNN", false, [](const MoELayer<float>& layer, int threads) {
                return std::make_unique<OneDnnPeer>(layer, threads);
              }});

}  // namespace
}  // namespace moe::bench
