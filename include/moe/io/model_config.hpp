// SPDX-License-Identifier: Apache-2.0
// config.json -> ModelConfig: a value by any of the names that families give it, for one layer.
// What a family's values mean is said in families.hpp.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../types.hpp"
#include "json_facts.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// The words of a list that is written with spaces between them.
inline std::vector<std::string_view> words(std::string_view list) {
  std::vector<std::string_view> all;
  while (!list.empty()) {
    const std::size_t end = (std::min)(list.find(' '), list.size());
    if (end > 0) {
      all.push_back(list.substr(0, end));
    }
    list.remove_prefix((std::min)(end + 1, list.size()));
  }
  return all;
}

}  // namespace detail

/// `keys` below: names of one fact with spaces between them, of which the first counts that is
/// there. A key that is null is as if left out. A model of text inside of another one's config
/// (text_config, ...) is looked into first. FormatError names file, key, found and expected.
class ModelConfig {
 public:
  static ModelConfig load(const std::filesystem::path& file, const ReadLimits& limits = {}) {
    return {load_json_facts(file, limits), file.string()};
  }
  static ModelConfig parse(std::string_view text, std::string file = "<config>",
                           const ReadLimits& limits = {}) {
    JsonFacts facts = parse_json_facts(text, file, limits);
    return {std::move(facts), std::move(file)};
  }

  /// Of values that were read by other means.
  static ModelConfig of(JsonFacts facts, std::string file) {
    return {std::move(facts), std::move(file)};
  }

  const std::string& file() const { return file_; }
  /// model_type of the model and of those in it, the outermost first.
  std::vector<std::string> model_types() const;

  /// The fact, or nothing. Of a list with an entry for each layer that of `layer`.
  const JsonFact* find(std::string_view keys, Index layer = 0) const;
  /// The number (true is 1), or `omitted`; throws where there is neither.
  double number(std::string_view keys, std::optional<double> omitted = std::nullopt,
                Index layer = 0) const;
  /// The same, and throws unless it is a whole number of at least 0.
  Index size(std::string_view keys, std::optional<Index> omitted = std::nullopt,
             Index layer = 0) const;
  std::string text(std::string_view keys, std::string_view omitted, Index layer = 0) const;

  [[noreturn]] void fail(std::string_view keys, std::string_view found,
                         std::string_view expected) const;

 private:
  ModelConfig(JsonFacts facts, std::string file)
      : facts_(std::move(facts)), file_(std::move(file)) {}

  template <class T>
  T or_fail(const std::optional<T>& omitted, std::string_view keys) const {
    if (!omitted) {
      fail(keys, "no such key", "a number");
    }
    return *omitted;
  }

  // Where a model of text may be, the innermost first.
  static constexpr std::array<std::string_view, 6> scopes{"thinker_config.text_config.",
                                                          "text_config.",
                                                          "llm_config.",
                                                          "language_config.",
                                                          "ffn_config.",
                                                          ""};

  JsonFacts facts_;
  std::string file_;
};

inline std::vector<std::string> ModelConfig::model_types() const {
  std::vector<std::string> types;
  for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
    const auto found = facts_.find(std::string(*scope) + "model_type");
    if (found != facts_.end() && found->second.kind == JsonFact::Kind::text) {
      types.push_back(found->second.text);
    }
  }
  return types;
}

inline const JsonFact* ModelConfig::find(std::string_view keys, Index layer) const {
  for (const std::string_view scope : scopes) {
    for (const std::string_view key : detail::words(keys)) {
      const auto found = facts_.find(std::string(scope) + std::string(key));
      if (found == facts_.end() || found->second.kind == JsonFact::Kind::null) {
        continue;
      }
      const JsonFact& fact = found->second;
      if (fact.kind != JsonFact::Kind::list) {
        return &fact;
      }
      if (layer < 0 || layer >= static_cast<Index>(fact.items.size())) {
        fail(key, detail::joined("a list of ", fact.items.size()),
             detail::joined("an entry for layer ", layer));
      }
      const JsonFact& item = fact.items[static_cast<std::size_t>(layer)];
      return item.kind == JsonFact::Kind::null ? nullptr : &item;
    }
  }
  return nullptr;
}

inline double ModelConfig::number(std::string_view keys, std::optional<double> omitted,
                                  Index layer) const {
  const JsonFact* const fact = find(keys, layer);
  if (fact == nullptr) {
    return or_fail(omitted, keys);
  }
  switch (fact->kind) {
    case JsonFact::Kind::boolean:
      return static_cast<double>(fact->integer);
    case JsonFact::Kind::integer:
    case JsonFact::Kind::number:
      return fact->number;
    default:
      fail(keys, fact->shown(), "a number");
  }
}

inline Index ModelConfig::size(std::string_view keys, std::optional<Index> omitted,
                               Index layer) const {
  const JsonFact* const fact = find(keys, layer);
  if (fact == nullptr) {
    return or_fail(omitted, keys);
  }
  if (fact->kind != JsonFact::Kind::integer || fact->integer < 0) {
    fail(keys, fact->shown(), "a whole number of at least 0");
  }
  return static_cast<Index>(fact->integer);
}

inline std::string ModelConfig::text(std::string_view keys, std::string_view omitted,
                                     Index layer) const {
  const JsonFact* const fact = find(keys, layer);
  if (fact == nullptr) {
    return std::string(omitted);
  }
  if (fact->kind != JsonFact::Kind::text) {
    fail(keys, fact->shown(), "text");
  }
  return fact->text;
}

inline void ModelConfig::fail(std::string_view keys, std::string_view found,
                              std::string_view expected) const {
  std::string alternatives;
  for (const std::string_view key : detail::words(keys)) {
    alternatives += detail::joined(alternatives.empty() ? "" : " or ", key);
  }
  throw FormatError(
      file_, "", std::nullopt,
      detail::joined("config key ", alternatives, ": ", found, ", expected ", expected));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
