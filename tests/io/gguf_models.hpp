// SPDX-License-Identifier: Apache-2.0
// GGUF files of one small layer of any architecture, written to a folder of the test.
#pragma once

#include "gguf_bytes.hpp"
#include "model_folder.hpp"
#include "moe/io/gguf_rows.hpp"
#include "moe/io/load_layer.hpp"

namespace moe::io::testing::gguf {

inline constexpr Index D = 64, F = 32, E = 4, K = 2;

/// Random numbers of a tensor: any block, with scales that are halves in the order of 1/100.
inline GgufData random_data(DType dtype, Index elements, unsigned seed) {
  std::mt19937 random(seed);
  const auto [block, bytes] = block_size(dtype);
  GgufData data;
  if (dtype == DType::F32) {
    std::normal_distribution<float> draw(0.0F, 0.2F);
    for (Index i = 0; i < elements; ++i) {
      append(data, raw(draw(random)));
    }
    return data;
  }
  for (Index i = 0; i < elements / static_cast<Index>(block) * static_cast<Index>(bytes); ++i) {
    data.push_back(static_cast<std::byte>(random()));
  }
  for (std::size_t at = 0; at < data.size(); at += bytes) {
    if (dtype == DType::MXFP4) {
      data[at] = static_cast<std::byte>(123 + random() % 3);
    } else {
      data[at + 1] = static_cast<std::byte>(0x20 + random() % 4);
    }
  }
  return data;
}

/// A tensor, row-major as all of moe has it: its dimensions are the other way round in the file.
inline GgufTensor tensor(const std::string& name, std::vector<std::uint64_t> shape, unsigned seed,
                         std::uint32_t type = 0) {
  Index elements = 1;
  for (const std::uint64_t size : shape) {
    elements *= static_cast<Index>(size);
  }
  return {name,
          {shape.rbegin(), shape.rend()},
          type,
          random_data(*io::detail::dtype_of_gguf(type), elements, seed)};
}

/// Of one layer: types of gate, up and down.
inline std::vector<GgufTensor> experts(const std::string& layer,
                                       std::array<std::uint32_t, 3> types = {}) {
  return {tensor(layer + "ffn_gate_inp.weight", {E, D}, 1),
          tensor(layer + "ffn_gate_exps.weight", {E, F, D}, 2, types[0]),
          tensor(layer + "ffn_up_exps.weight", {E, F, D}, 3, types[1]),
          tensor(layer + "ffn_down_exps.weight", {E, D, F}, 4, types[2]),
          gguf_floats(layer + "ffn_norm.weight", {D}),
          gguf_floats(layer + "attn_q.weight", {D})};
}

inline GgufFile model(const std::string& architecture, std::vector<GgufTensor> tensors) {
  const auto key = [&](const char* name) { return architecture + "." + name; };
  return {.keys = {{"general.architecture", gguf_text(architecture)},
                   {key("block_count"), gguf_u32(2)},
                   {key("embedding_length"), gguf_u32(D)},
                   {key("feed_forward_length"), gguf_u32(F)},
                   {key("expert_feed_forward_length"), gguf_u32(F)},
                   {key("expert_count"), gguf_u32(E)},
                   {key("expert_used_count"), gguf_u32(K)}},
          .tensors = std::move(tensors)};
}

/// Elements [first, first + rows * cols) of a tensor of the file.
inline Matrix<float> values(const GgufTensor& from, Index first, Index rows, Index cols) {
  const DType dtype = *io::detail::dtype_of_gguf(from.type);
  const auto [elements, bytes] = block_size(dtype);
  const std::size_t blocks = from.data.size() / bytes;
  std::vector<float> all(blocks * elements);
  if (!decode_blocks(dtype, from.data.data(), blocks, all.data())) {
    std::memcpy(all.data(), from.data.data(), from.data.size());
  }
  return Eigen::Map<const Matrix<float>>(all.data() + first, rows, cols);
}

template <class Layer>
void expect_experts(const Layer& layer, const std::vector<GgufTensor>& from) {
  EXPECT_EQ(layer.router().params().weight, values(from[0], 0, E, D));
  for (Index e = 0; e < E; ++e) {
    const auto& expert = layer.experts()[static_cast<std::size_t>(e)].params();
    EXPECT_EQ(expert.gate, values(from[1], e * F * D, F, D));
    EXPECT_EQ(expert.up, values(from[2], e * F * D, F, D));
    EXPECT_EQ(expert.down, values(from[3], e * D * F, D, F));
  }
}

class GgufModels : public ModelFolder {
 protected:
  fs::path write(const GgufFile& file, const std::string& name = "m.gguf") const {
    return ModelFolder::write(name, bytes_of(file));
  }
  LayerConfig config_of(const GgufFile& file) const {
    return Checkpoint(write(file)).layer_config(0);
  }
  void expect_bad(const GgufFile& file, std::string_view tensor,
                  std::initializer_list<std::string_view> facts) const {
    const fs::path path = write(file);
    expect_fault([&] { load_layer<float>(path, 0); }, path, tensor, facts);
  }
};

}  // namespace moe::io::testing::gguf
