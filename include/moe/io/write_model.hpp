// SPDX-License-Identifier: Apache-2.0
// Tensors -> the files of a model, one or shards and their index: what TensorFiles opens. Readers
// see the model of before or the new one, never some shards of each.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "json_facts.hpp"
#include "output_file.hpp"
#include "write_safetensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// In their order, as many a shard as fit.
inline std::vector<std::vector<TensorToWrite>> cut_shards(std::vector<TensorToWrite> tensors,
                                                          std::uint64_t shard_bytes) {
  std::vector<std::vector<TensorToWrite>> shards(1);
  std::uint64_t size = 0;
  for (TensorToWrite& tensor : tensors) {
    const std::uint64_t bytes = tensor.bytes();
    if (!shards.back().empty() && size + bytes > shard_bytes) {
      shards.emplace_back();
      size = 0;
    }
    size += bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

/// "model-00001-of-00003.safetensors", or of a later writer "model-00001-of-00003-2.safetensors".
inline std::string shard_name(std::size_t number, std::size_t count, int writer) {
  const auto five = [](std::size_t value) {
    const std::string digits = std::to_string(value);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return joined("model-", five(number + 1), "-of-", five(count),
                writer == 1 ? "" : joined("-", writer), ".safetensors");
}

/// Names that no file has: written over one by one, the shards of a model would be of two.
inline std::vector<std::string> free_shard_names(std::size_t count,
                                                 const std::filesystem::path& directory) {
  std::vector<std::string> names(count);
  for (int writer = 1;; ++writer) {
    bool taken = false;
    for (std::size_t i = 0; i < count; ++i) {
      names[i] = shard_name(i, count, writer);
      taken = taken || std::filesystem::exists(directory / names[i]);
    }
    if (!taken) {
      return names;
    }
  }
}

/// What an index names as shards are named; nothing where it is missing or bad.
inline std::set<std::string> shards_of(const std::filesystem::path& index) {
  std::set<std::string> shards;
  try {
    for (const auto& [path, fact] : load_json_facts(index)) {
      if (path.starts_with("weight_map.") && fact.text.starts_with("model-") &&
          fact.text.ends_with(".safetensors") &&
          fact.text.find_first_of("/\\:") == std::string::npos) {
        shards.insert(fact.text);
      }
    }
  } catch (const FormatError&) {
    shards.clear();
  }
  return shards;
}

/// Files that are removed when it is.
struct Unwanted {
  Unwanted(std::filesystem::path in, std::set<std::string> named)
      : folder(std::move(in)), files(std::move(named)) {}
  Unwanted(const Unwanted&) = delete;
  Unwanted& operator=(const Unwanted&) = delete;
  ~Unwanted() {
    for (const std::string& file : files) {
      std::error_code unknown;
      std::filesystem::remove(folder / file, unknown);
    }
  }

  std::filesystem::path folder;
  std::set<std::string> files;
};

/// The index makes the shards the model, at once; then those of the one before go.
inline void write_shards(std::vector<std::vector<TensorToWrite>> shards,
                         const std::filesystem::path& directory) {
  const std::vector<std::string> names = free_shard_names(shards.size(), directory);
  Unwanted unwanted(directory, {names.begin(), names.end()});
  nlohmann::json index;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const TensorToWrite& tensor : shards[i]) {
      index["weight_map"][tensor.name] = names[i];
      total += tensor.bytes();
    }
    write_safetensors(directory / names[i], std::move(shards[i]));
  }
  index["metadata"]["total_size"] = total;
  const std::string text = index.dump(2) + '\n';
  const std::filesystem::path path = directory / "model.safetensors.index.json";
  std::set<std::string> before = shards_of(path);
  for (const std::string& name : names) {
    before.erase(name);
  }
  OutputFile file(path);
  file.write(std::as_bytes(std::span(text)));
  unwanted.files.clear();  // it may fail with the index in place
  file.finish();
  unwanted.files = std::move(before);
}

/// One file, or shards and then their index. Throws FormatError where a file cannot be written, or
/// would not be read: shards beside a model.safetensors of before.
inline void write_model(std::vector<std::vector<TensorToWrite>> shards,
                        const std::filesystem::path& directory) {
  const std::filesystem::path single = directory / "model.safetensors";
  if (shards.size() == 1) {
    return write_safetensors(single, std::move(shards.front()));
  }
  if (std::filesystem::exists(single)) {
    throw FormatError(single.string(), "", std::nullopt,
                      "is there, expected a folder without it: readers would take it for the "
                      "model, and not the shards");
  }
  write_shards(std::move(shards), directory);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
