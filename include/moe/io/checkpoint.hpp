// SPDX-License-Identifier: Apache-2.0
// A Hugging Face directory or a GGUF file -> Checkpoint: its config, its family, its files, and
// which decoder layers are MoE. Those are found by their router tensors, wherever a model keeps its
// layers.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "families.hpp"
#include "family_config.hpp"
#include "gguf_config.hpp"
#include "layer_names.hpp"
#include "tensor_files.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

struct OpenModel {
  ModelConfig config;
  TensorFiles files;
};

inline OpenModel open_model(const std::filesystem::path& path, const ReadLimits& limits) {
  if (is_gguf(path)) {
    TensorFiles files = TensorFiles::open(path, limits);
    ModelConfig config = gguf_config(files);
    return {std::move(config), std::move(files)};
  }
  std::error_code unknown;
  if (std::filesystem::is_regular_file(path, unknown)) {
    throw FormatError(path.string(), "", std::nullopt,
                      "a file, expected a directory with config.json, or a *.gguf");
  }
  return {ModelConfig::load(path / "config.json", limits), TensorFiles::open(path, limits)};
}

}  // namespace detail

/// Decoder layers under one prefix.
struct LayerStack {
  std::string prefix;                   ///< "model.layers."
  std::map<Index, std::string> blocks;  ///< of the layers that are MoE, behind their number: "mlp."
};

struct CheckpointOptions {
  /// The prefix of the layers, for models with several stacks of them: "encoder.block.".
  std::string stack = {};
  ReadLimits limits = {};
  /// A row of the user's own, whatever config.json says it is; null: that of its model_type.
  const Family* family = nullptr;
};

/// Throws FormatError where config.json (of a GGUF file its keys) or the files are not what the
/// family says. Not for two threads at once.
class Checkpoint {
 public:
  /// Of a directory with config.json, or of a *.gguf, which has its config in it: one file, or the
  /// first of its parts.
  explicit Checkpoint(const std::filesystem::path& path, const CheckpointOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const Family& family() const { return *family_; }
  TensorFiles& files() { return files_; }

  /// Numbers of the decoder layers with an MoE block, those of multi-token prediction left out.
  std::vector<Index> layers() const;
  /// Prefixes of what looks like such layers, but only predicts further tokens.
  const std::vector<std::string>& multi_token_prediction() const { return prediction_; }

  /// These throw unless it is one of layers().
  LayerConfig layer_config(Index layer) const {
    block_of(layer);
    return io::layer_config(*family_, config_, layer);
  }
  /// "model.layers.3."
  std::string layer_prefix(Index layer) const { return detail::joined(stack_.prefix, layer, "."); }
  /// What follows the prefix of a layer: "mlp.".
  const std::string& block_of(Index layer) const;

 private:
  Checkpoint(detail::OpenModel model, const CheckpointOptions& options, bool gguf);
  void find_stacks(std::map<std::string, LayerStack>& stacks);
  void choose_stack(const std::map<std::string, LayerStack>& stacks, const std::string& wanted);
  void set_apart_prediction();

  ModelConfig config_;
  const Family* family_;
  TensorFiles files_;
  LayerStack stack_;
  std::vector<std::string> prediction_;
};

namespace detail {

/// "model.layers.3" -> "model.layers." and 3; nothing where the last word is no number.
inline std::optional<Index> split_layer(std::string_view& path) {
  const std::size_t begin = path.rfind('.') + 1;  // 0 without a point
  const std::string_view digits = path.substr(begin);
  if (digits.empty() || digits.size() > 6 ||
      digits.find_first_not_of("0123456789") != std::string_view::npos) {
    return std::nullopt;
  }
  path = path.substr(0, begin);
  return std::stoll(std::string(digits));
}

}  // namespace detail

inline Checkpoint::Checkpoint(const std::filesystem::path& path, const CheckpointOptions& options)
    : Checkpoint(detail::open_model(path, options.limits), options, is_gguf(path)) {}

inline Checkpoint::Checkpoint(detail::OpenModel model, const CheckpointOptions& options, bool gguf)
    : config_(std::move(model.config)),
      family_(options.family != nullptr ? options.family
              : gguf                    ? &family_of_gguf(config_)
                                        : &family_of(config_)),
      files_(std::move(model.files)) {
  std::map<std::string, LayerStack> stacks;
  find_stacks(stacks);
  choose_stack(stacks, options.stack);
  set_apart_prediction();
}

inline void Checkpoint::find_stacks(std::map<std::string, LayerStack>& stacks) {
  std::vector<std::string> blocks;
  for (const std::string_view block : detail::words(family_->blocks)) {
    blocks.push_back(std::string(block) + '.');
  }
  if (blocks.empty()) {
    blocks.emplace_back();
  }
  for (const std::string& block : blocks) {
    for (const std::string_view router : detail::words(family_->router.weight)) {
      const std::string end = '.' + block + std::string(router);
      for (const std::string& name : files_.names()) {
        if (!name.ends_with(end)) {
          continue;
        }
        std::string_view path(name.data(), name.size() - end.size());
        if (path.starts_with("mtp.") || path.find(".mtp.") != std::string_view::npos) {
          prediction_.emplace_back(path);
        } else if (const std::optional<Index> layer = detail::split_layer(path)) {
          LayerStack& stack = stacks[std::string(path)];
          stack.prefix = path;
          stack.blocks.emplace(*layer, block);
        }
      }
    }
  }
}

inline void Checkpoint::choose_stack(const std::map<std::string, LayerStack>& stacks,
                                     const std::string& wanted) {
  std::string known;
  for (const auto& [prefix, stack] : stacks) {
    known += detail::joined(known.empty() ? "" : ", ", "\"", printable(prefix), "\"");
  }
  const auto found = stacks.size() == 1 && wanted.empty() ? stacks.begin() : stacks.find(wanted);
  if (found != stacks.end()) {
    stack_ = found->second;
    return;
  }
  throw FormatError(
      files_.file(), "", std::nullopt,
      stacks.empty()
          ? detail::joined("no layer with a router of family ", family_->name(), ", expected \"",
                           detail::words(family_->router.weight).front(), "\"",
                           family_->blocks.empty() ? "" : " in \"", family_->blocks,
                           family_->blocks.empty() ? "" : "\"")
          : detail::joined("layers under ", known, ", expected one of them as the stack, not \"",
                           printable(wanted), "\""));
}

/// The layers behind the last that config.json counts.
inline void Checkpoint::set_apart_prediction() {
  const Index count = config_.size("num_hidden_layers n_layers num_layers", Index{-1});
  for (auto layer = stack_.blocks.begin(); count >= 0 && layer != stack_.blocks.end();) {
    if (layer->first >= count) {
      prediction_.push_back(detail::joined(stack_.prefix, layer->first));
      layer = stack_.blocks.erase(layer);
    } else {
      ++layer;
    }
  }
}

inline std::vector<Index> Checkpoint::layers() const {
  std::vector<Index> all;
  for (const auto& [layer, block] : stack_.blocks) {
    all.push_back(layer);
  }
  return all;
}

inline const std::string& Checkpoint::block_of(Index layer) const {
  const auto found = stack_.blocks.find(layer);
  if (found == stack_.blocks.end()) {
    std::string known;
    for (const Index each : layers()) {
      known += detail::joined(known.empty() ? ", expected one of " : ", ", each);
    }
    const bool predicts = std::find(prediction_.begin(), prediction_.end(),
                                    detail::joined(stack_.prefix, layer)) != prediction_.end();
    throw FormatError(
        files_.file(), "", std::nullopt,
        detail::joined("layer ", layer,
                       predicts ? " lies behind the layers that the config counts (multi-token "
                                  "prediction)"
                                : " is no MoE layer",
                       known.empty() ? ", and none is one" : known));
  }
  return found->second;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
