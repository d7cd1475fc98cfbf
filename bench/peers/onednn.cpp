// SPDX-License-Identifier: Apache-2.0
// oneDNN: a loop over the experts, each three products on all threads. The activation is fused into
// the product of the gate. A primitive is made for each number of rows and kept. Twice: of weights
// as they are, row-major, and of weights packed once as oneDNN likes them best.
#include <dnnl.hpp>
#include <map>

#include "peer.hpp"

namespace moe::bench {
namespace {

using dnnl::memory;

using Tag = memory::format_tag;

memory::desc describe(Index rows, Index cols, Tag tag = Tag::ab) {
  return {{rows, cols}, memory::data_type::f32, tag};
}

/// x (rows, in) * w^T, for all weights w (out, in) of one shape; gated: silu of it, times another
/// matrix (rows, out).
class Product {
 public:
  struct Kind {
    bool gated, packed;
  };

  Product(const dnnl::engine& engine, Index in, Index out, Kind kind)
      : engine_(engine),
        in_(in),
        out_(out),
        gated_(kind.gated),
        layout_(kind.packed ? best_layout() : describe(in, out, Tag::ba)) {}

  /// The weight (out, in) itself, or packed.
  memory lay_out(const Matrix<float>& weight, dnnl::stream& stream) const {
    memory plain(describe(in_, out_, Tag::ba), engine_, const_cast<float*>(weight.data()));
    if (plain.get_desc() == layout_) {
      return plain;
    }
    memory packed(layout_, engine_);
    dnnl::reorder(plain, packed).execute(stream, plain, packed);
    stream.wait();
    return packed;
  }

  void multiply(Index rows, const float* x, const memory& weight, float* factor, float* y,
                dnnl::stream& stream) {
    auto [place, missing] = primitives_.try_emplace(rows);
    if (missing) {
      place->second = dnnl::matmul(primitive(rows, layout_));
    }
    std::unordered_map<int, memory> arguments{
        {DNNL_ARG_SRC, {describe(rows, in_), engine_, const_cast<float*>(x)}},
        {DNNL_ARG_WEIGHTS, weight},
        {DNNL_ARG_DST, {describe(rows, out_), engine_, y}}};
    if (gated_) {
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(1) | DNNL_ARG_SRC_1,
                        memory(describe(rows, out_), engine_, factor));
    }
    place->second.execute(stream, arguments);
  }

 private:
  dnnl::matmul::primitive_desc primitive(Index rows, const memory::desc& weight) const {
    dnnl::primitive_attr attr;
    if (gated_) {
      dnnl::post_ops ops;
      ops.append_eltwise(1.0F, dnnl::algorithm::eltwise_swish, 1.0F, 0.0F);
      ops.append_binary(dnnl::algorithm::binary_mul, describe(rows, out_));
      attr.set_post_ops(ops);
    }
    return {{describe(rows, in_), weight, describe(rows, out_)}, attr, engine_};
  }

  memory::desc best_layout() const {
    return primitive(192, describe(in_, out_, Tag::any)).weights_desc();
  }

  dnnl::engine engine_;
  Index in_, out_;
  bool gated_;
  memory::desc layout_;
  std::map<Index, dnnl::matmul> primitives_;
};

class OneDnnPeer : public ProductPeer {
 public:
  OneDnnPeer(const MoELayer<float>& layer, int threads, bool packed)
      : ProductPeer(layer, threads),
        gate_(engine_, layer.d_in(), layer.experts()[0].d_ff(), {true, packed}),
        up_(engine_, layer.d_in(), layer.experts()[0].d_ff(), {false, packed}),
        down_(engine_, layer.experts()[0].d_ff(), layer.d_out(), {false, packed}) {
    for (Index e = 0; e < layer.num_experts(); ++e) {
      weights_.push_back({gate_.lay_out(params(e).gate, stream_),
                          up_.lay_out(params(e).up, stream_),
                          down_.lay_out(params(e).down, stream_)});
    }
  }

 private:
  struct Weights {
    memory gate, up, down;
  };

  void compute_experts() override {
    const Index d_ff = layer_.experts()[0].d_ff();
    rows_.resize(2 * plan().num_rows(), d_ff);
    for (Index e = 0; e < layer_.num_experts(); ++e) {
      const Index rows = plan().kept(e);
      if (rows == 0) {
        continue;
      }
      const Weights& weights = weights_[static_cast<std::size_t>(e)];
      const float* x = x_rows_.data() + first_row(e) * x_rows_.cols();
      float* up = rows_.data() + 2 * first_row(e) * d_ff;
      float* hidden = up + rows * d_ff;
      up_.multiply(rows, x, weights.up, nullptr, up, stream_);
      gate_.multiply(rows, x, weights.gate, up, hidden, stream_);
      down_.multiply(rows, hidden, weights.down, nullptr,
                     y_rows_.data() + first_row(e) * y_rows_.cols(), stream_);
    }
    stream_.wait();
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  Product gate_, up_, down_;
  std::vector<Weights> weights_;
  Matrix<float> rows_;  // of each expert: up, then hidden
};

bool add(const char* name, bool packed) {
  return add_peer({name, Type::f32, false, [packed](const MoELayer<float>& layer, int threads) {
                     return std::make_unique<OneDnnPeer>(layer, threads, packed);
                   }});
}
[[maybe_unused]] const bool added = add("oneDNN", false) && add("oneDNN-packed", true);

}  // namespace
}  // namespace moe::bench
