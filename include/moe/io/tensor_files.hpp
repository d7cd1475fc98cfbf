// SPDX-License-Identifier: Apache-2.0
// A model's safetensors, one file or shards with an index, or its GGUF, one file or parts ->
// TensorFiles, a tensor by its name wherever it lies. Shards are mapped when a tensor of theirs is
// asked for.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.hpp"
#include "json_facts.hpp"
#include "safetensors.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// A tensor and the file it is of, for messages. Valid as long as its TensorFiles.
struct FileTensor {
  const TensorView& view;
  const std::string& file;
};

/// FormatError where files, index and shards do not agree. Not for two threads at once.
class TensorFiles {
 public:
  /// A *.gguf or the first of its parts, a *.safetensors, or a directory with model.safetensors or
  /// model.safetensors.index.json.
  static TensorFiles open(const std::filesystem::path& path, const ReadLimits& limits = {});
  explicit TensorFiles(SafeTensors file);
  /// All the parts of one model.
  explicit TensorFiles(std::vector<Gguf> parts);
  TensorFiles(TensorFiles&&) noexcept = default;
  TensorFiles& operator=(TensorFiles&&) noexcept = default;
  TensorFiles(const TensorFiles&) = delete;
  TensorFiles& operator=(const TensorFiles&) = delete;
  ~TensorFiles() = default;

  /// The file, the first part, or the index.
  const std::string& file() const { return file_; }
  /// Of all tensors, sorted. Maps nothing.
  const std::vector<std::string>& names() const { return names_; }
  /// The keys of a GGUF file; nothing of others.
  const JsonFacts& facts() const { return facts_; }
  bool contains(std::string_view name) const { return shard_of_.contains(name); }
  /// Maps the shard at its first tensor, and throws unless it has just what the index says.
  FileTensor at(std::string_view name);
  /// Of all shards: see OpenTensors::release_pages().
  void release_pages() const;

 private:
  struct Shard {
    std::filesystem::path path;
    std::optional<OpenTensors> file = std::nullopt;
  };

  TensorFiles(const std::filesystem::path& directory, const std::filesystem::path& index,
              const ReadLimits& limits);
  void add(const std::string& name, const JsonFact& fact, const std::filesystem::path& directory,
           std::map<std::string, std::size_t>& known);
  void add_open(OpenTensors file);
  void check_shard(std::size_t number) const;
  [[noreturn]] void fail(const std::string& tensor, const std::string& fault) const {
    throw FormatError(file_, tensor, std::nullopt, fault);
  }

  std::string file_;
  ReadLimits limits_;
  std::vector<Shard> shards_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
  std::vector<std::string> names_;
  JsonFacts facts_;
};

inline TensorFiles TensorFiles::open(const std::filesystem::path& path, const ReadLimits& limits) {
  namespace fs = std::filesystem;
  std::error_code unknown;
  if (!fs::is_directory(path, unknown)) {
    return is_gguf(path) ? TensorFiles(map_gguf_parts(path, limits))
                         : TensorFiles(SafeTensors::map(path, limits));
  }
  const fs::path single = path / "model.safetensors";
  const fs::path index = path / "model.safetensors.index.json";
  if (fs::exists(single, unknown)) {
    return TensorFiles(SafeTensors::map(single, limits));
  }
  if (!fs::exists(index, unknown)) {
    throw FormatError(path.string(), "", std::nullopt,
                      "no model.safetensors and no model.safetensors.index.json, expected one");
  }
  return TensorFiles(path, index, limits);
}

inline TensorFiles::TensorFiles(SafeTensors file) : file_(file.file()) {
  add_open(std::move(file));
}

inline TensorFiles::TensorFiles(std::vector<Gguf> parts)
    : file_(parts.front().file()), facts_(parts.front().facts()) {
  for (Gguf& part : parts) {
    add_open(std::move(part));
  }
}

/// Of a file that is open, and stays so.
inline void TensorFiles::add_open(OpenTensors file) {
  for (const TensorView& tensor : file.tensors()) {
    shard_of_.emplace(tensor.name, shards_.size());
  }
  names_.clear();
  for (const auto& [name, shard] : shard_of_) {
    names_.push_back(name);
  }
  shards_.push_back({file.file(), std::move(file)});
}

inline TensorFiles::TensorFiles(const std::filesystem::path& directory,
                                const std::filesystem::path& index, const ReadLimits& limits)
    : file_(index.string()), limits_(limits) {
  const JsonFacts facts = load_json_facts(index, limits);
  const auto map = facts.find("weight_map");
  if (map == facts.end() || map->second.kind != JsonFact::Kind::object) {
    fail("",
         detail::joined("weight_map: ", map == facts.end() ? "no such key" : map->second.shown(),
                        ", expected an object"));
  }
  const std::string_view begin = "weight_map.";
  std::map<std::string, std::size_t> known;
  for (auto entry = facts.lower_bound(begin);
       entry != facts.end() && entry->first.starts_with(begin); ++entry) {
    add(entry->first.substr(begin.size()), entry->second, directory, known);
  }
  if (names_.empty()) {
    fail("", "weight_map has no tensor, expected at least 1");
  }
}

inline void TensorFiles::add(const std::string& name, const JsonFact& fact,
                             const std::filesystem::path& directory,
                             std::map<std::string, std::size_t>& known) {
  if (fact.kind != JsonFact::Kind::text) {
    fail(name, detail::joined("weight_map: ", fact.shown(), ", expected the name of a file"));
  }
  // A plain name: it may be a link that leads elsewhere, which is how the hub's own cache keeps its
  // files, but the index may name no other folder, stream or drive.
  if (fact.text.empty() || fact.text == "." || fact.text == ".." ||
      fact.text.find_first_of("/\\:") != std::string::npos ||
      printable(fact.text, fact.text.size()) != fact.text) {
    fail(name, detail::joined("weight_map: ", fact.shown(),
                              ", expected the name of a file in the folder of the index"));
  }
  const auto [shard, is_new] = known.emplace(fact.text, shards_.size());
  if (is_new) {
    shards_.push_back({directory / fact.text});
  }
  shard_of_.emplace(name, shard->second);
  names_.push_back(name);
}

inline FileTensor TensorFiles::at(std::string_view name) {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) {
    fail(std::string(name), "no tensor of this name");
  }
  Shard& shard = shards_[found->second];
  if (!shard.file) {
    shard.file = SafeTensors::map(shard.path, limits_);
    try {
      check_shard(found->second);
    } catch (...) {
      shard.file.reset();
      throw;
    }
  }
  return {shard.file->at(name), shard.file->file()};
}

inline void TensorFiles::release_pages() const {
  for (const Shard& shard : shards_) {
    if (shard.file) {
      shard.file->release_pages();
    }
  }
}

inline void TensorFiles::check_shard(std::size_t number) const {
  const OpenTensors& shard = *shards_[number].file;
  for (const auto& [name, its_shard] : shard_of_) {
    if (its_shard == number && !shard.contains(name)) {
      throw FormatError(shard.file(), name, std::nullopt,
                        detail::joined("no tensor of this name, expected by ", file_));
    }
  }
  for (const TensorView& tensor : shard.tensors()) {
    const auto found = shard_of_.find(tensor.name);
    if (found == shard_of_.end()) {
      throw FormatError(shard.file(), tensor.name, std::nullopt,
                        detail::joined("a tensor that ", file_, " does not have"));
    }
    if (found->second != number) {
      throw FormatError(shard.file(), tensor.name, std::nullopt,
                        detail::joined("also in ", shards_[found->second].path.string(),
                                       " by the index, expected in one shard"));
    }
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
