// SPDX-License-Identifier: Apache-2.0
// The second half of a decoder layer, which is the library's: a packed MoE layer or, in a layer
// without a router, one packed feed-forward that every token takes.
#pragma once

#include <algorithm>
#include <moe/io/load_layer.hpp>
#include <moe/moe.hpp>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "config.hpp"
#include "weights.hpp"

namespace decoder {

template <moe::Storage S>
class FeedForward {
 public:
  using Moe = moe::PackedLayer<S>;
  using Dense = moe::PackedFfn<S>;

  /// Memory of a call; the layers of a model share one.
  struct Scratch {
    typename Moe::Scratch moe;
    typename Dense::Scratch dense;
  };

  static FeedForward load(io::Checkpoint& model, const Config& config, Weights& weights,
                          Index layer) {
    const std::vector<Index> sparse = model.layers();
    if (std::binary_search(sparse.begin(), sparse.end(), layer)) {
      return FeedForward(io::load_packed<S>(model, layer));
    }
    if (sparse.empty()) {
      throw io::FormatError(model.files().file(), "", std::nullopt,
                            "no MoE layer among those that config.json counts, expected one");
    }
    const std::string prefix = model.layer_prefix(layer) + "mlp.";
    const Index width = config.dense_width(), d_model = config.d_model();
    moe::ExpertParams<float> params;
    params.gate = weights.matrix(prefix + "gate_proj.weight", width, d_model);
    params.up = weights.matrix(prefix + "up_proj.weight", width, d_model);
    params.down = weights.matrix(prefix + "down_proj.weight", d_model, width);
    // The activation is the experts'.
    const moe::ExpertConfig expert = model.layer_config(sparse.front()).expert;
    std::vector<moe::PackedExpert<S>> one;
    one.emplace_back(moe::Expert<float>(std::move(params), expert));
    return FeedForward(Dense(moe::PackedExperts<S>(std::move(one))));
  }

  /// y (N, D) = of x (N, D).
  void forward(const Rows& x, Rows& y, Scratch& scratch) const {
    y.resize(x.rows(), x.cols());
    if (is_sparse()) {
      std::get<Moe>(layer_).forward(x, y, scratch.moe);
    } else {
      std::get<Dense>(layer_).forward(x, y, scratch.dense);
    }
  }
  bool is_sparse() const { return std::holds_alternative<Moe>(layer_); }

 private:
  explicit FeedForward(std::variant<Moe, Dense> layer) : layer_(std::move(layer)) {}

  std::variant<Moe, Dense> layer_;
};

}  // namespace decoder
