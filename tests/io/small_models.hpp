// SPDX-License-Identifier: Apache-2.0
// Small models as they are published, written by the names in their papers' code and not by those
// in the library's table: 4 experts of width 6, 8 wide.
#pragma once

#include "model_folder.hpp"
#include "moe/types.hpp"

namespace moe::io::testing {

inline constexpr Index E = 4, F = 6, D = 8;

/// Element i of tensor number n: exact in float whatever a compiler contracts, and not in 16 bits.
inline float value_of(int n, Index i) {
  return static_cast<float>((n * 7919 + i * 104729) % 4093 - 2046) / 2048.0F;
}
inline NewTensor weights(int n, std::vector<Index> shape) {
  NewTensor tensor = counted(std::move(shape));
  std::vector<float> values(tensor.data.size() / sizeof(float));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = value_of(n, static_cast<Index>(i));
  }
  tensor.data = bytes_of(values);
  return tensor;
}
inline Matrix<float> matrix(int n, Index rows, Index cols) {
  Matrix<float> made(rows, cols);
  for (Index i = 0; i < made.size(); ++i) {
    made.data()[i] = value_of(n, i);
  }
  return made;
}

constexpr std::string_view mixtral_config =
    R"({"model_type": "mixtral", "hidden_size": 8, "intermediate_size": 6,
        "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3})";

/// Router 1, gate, up and down of expert e: 10 + 3 e and the next two.
inline void add_mixtral_layer(NewTensors& tensors, int layer) {
  const std::string block = joined("model.layers.", layer, ".block_sparse_moe.");
  tensors[block + "gate.weight"] = weights(1, {E, D});
  for (int e = 0; e < E; ++e) {
    const std::string expert = joined(block, "experts.", e, ".");
    tensors[expert + "w1.weight"] = weights(10 + 3 * e, {F, D});
    tensors[expert + "w3.weight"] = weights(11 + 3 * e, {F, D});
    tensors[expert + "w2.weight"] = weights(12 + 3 * e, {D, F});
  }
}

inline NewTensors mixtral() {
  NewTensors tensors;
  tensors["model.embed_tokens.weight"] = weights(90, {5, D});
  tensors["model.layers.1.mlp.gate_proj.weight"] = weights(91, {F, D});  // a dense layer
  tensors["model.layers.0.self_attn.q_proj.weight"] = weights(92, {D, D});
  add_mixtral_layer(tensors, 0);
  add_mixtral_layer(tensors, 2);
  return tensors;
}

/// The rows of tensor a above those of tensor b, for each of E pairs (a, b) = (n + step e, + 1).
inline NewTensor stacked(int n, int step, int parts, Index rows, Index cols) {
  std::vector<float> values;
  for (int e = 0; e < E; ++e) {
    for (int part = 0; part < parts; ++part) {
      for (Index i = 0; i < rows * cols; ++i) {
        values.push_back(value_of(n + step * e + part, i));
      }
    }
  }
  return tensor_of("F32", {E, parts * rows, cols}, values);
}

/// The same numbers as transformers 5 keeps them.
inline NewTensors fused_mixtral() {
  NewTensors tensors;
  tensors["model.layers.0.mlp.gate.weight"] = weights(1, {E, D});
  tensors["model.layers.0.mlp.experts.gate_up_proj"] = stacked(10, 3, 2, F, D);
  tensors["model.layers.0.mlp.experts.down_proj"] = stacked(12, 3, 1, D, F);
  return tensors;
}

}  // namespace moe::io::testing
