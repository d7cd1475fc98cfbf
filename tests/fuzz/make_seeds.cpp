// SPDX-License-Identifier: Apache-2.0
//   make_seeds <folder of golden files> <folder>
// What the targets start from: <folder>/{safetensors,index,config,gguf}/, the golden files cut to a
// few small tensors, an index of their names, a config.json for every family, and GGUF files with a
// value and a tensor of every type.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/family_configs.hpp"
#include "io/gguf_bytes.hpp"
#include "moe/io/gguf_rows.hpp"
#include "moe/io/gguf_types.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/write_safetensors.hpp"
#include "small_shards.hpp"

namespace moe::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t most_tensors = 4, most_bytes = 256, most_text = 100;

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// The first few small tensors, and the beginning of each text.
void cut(const io::SafeTensors& golden, const fs::path& to) {
  std::vector<io::TensorToWrite> tensors;
  for (const io::TensorView& tensor : golden.tensors()) {
    if (tensor.data.size() <= most_bytes && tensors.size() < most_tensors) {
      tensors.push_back({tensor.name, tensor.dtype, tensor.shape, [&](std::span<std::byte> data) {
                           std::copy(tensor.data.begin(), tensor.data.end(), data.begin());
                         }});
    }
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : golden.metadata()) {
    if (text.size() < most_text) {
      metadata[key] = text;
    }
  }
  io::write_safetensors(to, std::move(tensors), metadata);
}

std::string index_of(const nlohmann::json& map) {
  return nlohmann::json{{"metadata", {{"total_size", 12}}}, {"weight_map", map}}.dump();
}

/// Values of all types, and a tensor of one row of a block of each type that there is.
void write_gguf(const fs::path& folder) {
  using namespace io::testing;
  GgufFile values{.keys = {{"general.architecture", gguf_text("qwen3moe")},
                           {"general.alignment", gguf_u32(32)},
                           {"split.no", gguf_u16(0)},
                           {"a", gguf_array(8, {raw_text("x"), raw_text("")})},
                           {"b", gguf_array(6, {raw(0.5f), raw(1.0f)})},
                           {"c", gguf_bool(true)},
                           {"d", typed(12, raw(0.5))}},
                  .tensors = {gguf_floats("v", {3, 2})}};
  const auto write = [&](const std::string& name, const GgufFile& file) {
    const GgufData bytes = bytes_of(file);
    write_text(folder / name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  };
  write("values", values);
  for (const io::Family& family : io::detail::gguf_families) {
    const std::string name(family.name());
    write(name, {.keys = {{"general.architecture", gguf_text(name)},
                          {name + ".embedding_length", gguf_u32(4)},
                          {name + ".expert_feed_forward_length", gguf_u32(3)},
                          {name + ".expert_shared_count", gguf_u32(1)},
                          {name + ".expert_count", gguf_u32(2)},
                          {name + ".expert_used_count", gguf_u32(1)},
                          {name + ".swiglu_clamp_exp", gguf_array(6, {raw(7.0f)})}},
                 .tensors = {gguf_floats("blk.0.ffn_gate_inp.weight", {4, 2})}});
  }
  const auto expert = [](const char* tensor, std::uint32_t type, std::size_t bytes) {
    return GgufTensor{tensor, {32, 32, 1}, type, GgufData(bytes, std::byte{0x21})};
  };
  write("model", {.keys = {{"general.architecture", gguf_text("qwen3moe")},
                           {"qwen3moe.embedding_length", gguf_u32(32)},
                           {"qwen3moe.expert_feed_forward_length", gguf_u32(32)},
                           {"qwen3moe.expert_count", gguf_u32(1)},
                           {"qwen3moe.expert_used_count", gguf_u32(1)}},
                  .tensors = {gguf_floats("blk.0.ffn_gate_inp.weight", {32, 1}),
                              expert("blk.0.ffn_gate_exps.weight", 2, 576),
                              expert("blk.0.ffn_up_exps.weight", 39, 544),
                              expert("blk.0.ffn_down_exps.weight", 2, 576)}});
  for (const auto& [number, dtype] : io::detail::gguf_elements) {
    const auto [elements, bytes] = io::block_size(dtype);
    write(std::string(name(dtype)),
          {.tensors = {{"w", {elements, 2}, number, GgufData(2 * bytes, std::byte{0x35})},
                       gguf_floats("blk.0.ffn_gate_inp.weight", {2})}});
  }
}

void make(const fs::path& from, const fs::path& to) {
  for (const char* target : {"safetensors", "index", "config", "gguf"}) {
    fs::create_directories(to / target);
  }
  write_gguf(to / "gguf");
  nlohmann::json shards;
  for (const SmallShard& shard : small_shards) {
    for (const char* tensor : shard.tensors) {
      shards[tensor] = shard.file;
    }
  }
  write_text(to / "index" / "right", index_of(shards));
  for (const io::Family& family : io::detail::families) {
    const std::string name(family.name());
    const std::string config = io::testing::config_text(name);
    write_text(to / "config" / name, config);
    write_text(to / "config" / (name + "-edited"), config + '\0' + "abx");  // a byte of the file
  }
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.path().extension() != ".safetensors") {
      continue;
    }
    const std::string name = entry.path().stem().string();
    const io::SafeTensors golden = io::SafeTensors::load(entry.path());
    cut(golden, to / "safetensors" / name);
    nlohmann::json map;
    for (std::size_t i = 0; i < most_tensors; ++i) {
      map[golden.tensors()[i].name] = small_shards[i % small_shards.size()].file;
    }
    write_text(to / "index" / name, index_of(map));
    nlohmann::json config = nlohmann::json::parse(golden.metadata().at("config"));
    config["model_type"] = golden.metadata().at("family");
    write_text(to / "config" / name, config.dump());
  }
}

}  // namespace
}  // namespace moe::fuzz

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: make_seeds <folder of golden files> <folder>\n");
    return 2;
  }
  try {
    moe::fuzz::make(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_seeds: %s\n", error.what());
    return 1;
  }
  return 0;
}
