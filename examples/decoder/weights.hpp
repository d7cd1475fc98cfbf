// SPDX-License-Identifier: Apache-2.0
// The tensors of a checkpoint beside its MoE blocks, by name, in whatever floats they are kept.
#pragma once

#include <algorithm>
#include <moe/io/checkpoint.hpp>
#include <moe/io/place.hpp>
#include <set>
#include <string>
#include <vector>

#include "linear.hpp"
#include "rms_norm.hpp"

namespace decoder {

namespace io = moe::io;

/// Each function throws io::FormatError unless there is such a tensor, of this shape, of floats.
class Weights {
 public:
  explicit Weights(io::Checkpoint& model) : model_(&model) {}

  Rows matrix(const std::string& name, Index rows, Index cols) {
    const io::FileTensor tensor = model_->files().at(name);
    const io::Place place{name, {rows, cols}, 0, cols, 1};
    io::check_place(tensor, place);
    Rows made(rows, cols);
    io::read_place<float>(tensor, place, made);
    taken_.insert(name);
    return made;
  }
  /// "q_proj": q_proj.weight and, if it has one, q_proj.bias.
  Linear linear(const std::string& name, Index out, Index in, bool bias = false) {
    return {matrix(name + ".weight", out, in), bias ? matrix(name + ".bias", 1, out) : Rows()};
  }
  RmsNorm norm(const std::string& name, Index width, double epsilon) {
    return {matrix(name + ".weight", 1, width), epsilon};
  }
  /// Of a tensor that another one stands for.
  void leave(const std::string& name) { taken_.insert(name); }

  /// Throws if there is a tensor that nobody took, MoE blocks aside, of which their reader has seen
  /// to that: the model would not be what its files say.
  void check_all_taken() const;

 private:
  io::Checkpoint* model_;
  std::set<std::string> taken_;
};

inline void Weights::check_all_taken() const {
  std::vector<std::string> blocks;
  for (const Index layer : model_->layers()) {
    blocks.push_back(model_->layer_prefix(layer) + model_->block_of(layer));
  }
  for (const std::string& name : model_->files().names()) {
    const auto holds = [&](const std::string& block) { return name.starts_with(block); };
    if (!taken_.contains(name) && !name.ends_with("rotary_emb.inv_freq") &&
        std::none_of(blocks.begin(), blocks.end(), holds)) {
      throw io::FormatError(model_->files().file(), name, std::nullopt,
                            "no parameter of such a model with this config.json");
    }
  }
}

}  // namespace decoder
