// SPDX-License-Identifier: Apache-2.0
// What the metadata of a golden file say of its layer.
#pragma once

#include <moe/io/families.hpp>
#include <moe/io/family_config.hpp>
#include <moe/io/layer_names.hpp>
#include <moe/io/place.hpp>

#include <stdexcept>
#include <string>
#include <vector>

namespace moe::golden {

/// Of what a file calls its family: a model_type, or a name of the record's own; null if unknown.
inline const io::Family* family_of_case(const std::string& name) {
  // The same family, recorded once more to tell two ways to mask its groups apart.
  return io::find_family(name == "deepseek_v3_minf" ? "deepseek_v3"
                         : name == "minimax_m3"     ? "minimax_m3_vl"
                                                    : name);
}

/// What a file's metadata say: our config, and where each of our parameters is in its weights.
class Facts {
 public:
  explicit Facts(const io::SafeTensors& file)
      : config_(io::layer_config(facts_of(file),
                                 io::ModelConfig::parse(meta(file, "config"), file.file()), 0)),
        names_(facts_of(file), "weights.", config_.counts(),
               [&](const std::string& name) { return file.contains(name); }),
        unordered_(meta(file, "semantics").find("sorted=False") != std::string::npos) {
    const auto shape = io::ModelConfig::parse(meta(file, "shape"), file.file());
    sequence_ = shape.size("seq");
    tokens_ = shape.size("tokens");
  }

  const io::LayerConfig& config() const { return config_; }
  Index tokens() const { return tokens_; }
  Index sequence() const { return sequence_; }
  bool drops() const { return config_.capacity.limited(); }
  /// Whether the choices of a token are recorded in no order.
  bool unordered() const { return unordered_; }

  /// By which the router selects, if it does by a table.
  ExpertTable table(const io::SafeTensors& file) const {
    const Index vocabulary = config_.router.selection.vocabulary;
    return vocabulary == 0 ? ExpertTable()
                           : io::read_expert_table({file.at(names_.table()), file.file()},
                                                   vocabulary, config_.num_experts, config_.top_k);
  }

  /// Of a parameter's weights; under `prefix` of its gradients, which lie in the same way.
  template <class M>
  std::vector<io::PartPlace> parts(const std::string& name, const M& parameter,
                                   const std::string& prefix = "weights") const {
    auto all = names_.parts(name, {parameter.rows(), parameter.cols()});
    for (io::PartPlace& part : all) {
      part.place.tensor.replace(0, std::string("weights").size(), prefix);
    }
    return all;
  }

 private:
  static const std::string& meta(const io::SafeTensors& file, const std::string& key) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) {
      throw std::invalid_argument(file.file() + ": no " + key + " in its metadata");
    }
    return found->second;
  }
  static const io::Family& facts_of(const io::SafeTensors& file) {
    const io::Family* const family = family_of_case(meta(file, "family"));
    if (family == nullptr) {
      throw std::invalid_argument(file.file() + ": family \"" + meta(file, "family") +
                                  "\" is unknown");
    }
    return *family;
  }

  io::LayerConfig config_;
  io::LayerNames names_;
  bool unordered_;
  Index tokens_ = 0, sequence_ = 0;
};

}  // namespace moe::golden
