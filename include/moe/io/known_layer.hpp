// SPDX-License-Identifier: Apache-2.0
// What readers of a family know of a decoder layer before they see its tensors, and how a layer
// that is to be saved is held against it.
#pragma once

#include <concepts>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// A config, or what the row says without one.
struct Known {
  const Family& family;
  Index layer;
  std::optional<ModelConfig> model = {};
  std::optional<LayerConfig> config = {};

  /// By the config.json of a directory, if there is one. The prefix is that of
  /// SaveOptions::layer.
  static Known of(const Family& family, const std::filesystem::path& directory,
                  std::string_view prefix) {
    std::string_view path = prefix.substr(0, prefix.size() - (prefix.ends_with('.') ? 1 : 0));
    Known known{family, split_layer(path).value_or(0)};
    const std::filesystem::path file = directory / "config.json";
    if (std::filesystem::exists(file)) {
      known.model = ModelConfig::load(file, {});
      known.expect_family();
      known.config = layer_config(family, *known.model, known.layer);
    }
    return known;
  }
  /// Throws std::invalid_argument if the config is that of another family. A row of the user's own
  /// is read whatever the config says.
  void expect_family() const {
    const Family* const read = find_family(*model);
    const bool is_own = find_family(family.name()) != &family;
    moe::detail::throw_unless(is_own || read == nullptr || read == &family, "save_layers: family ",
                              family.name(), ", expected that of config.json, ",
                              read == nullptr ? "" : read->name());
  }
  /// Nothing where a key is to say it.
  std::optional<double> value(const Setting& setting) const {
    if (model) {
      return setting.of(*model, layer);
    }
    return setting.keys.empty() ? std::optional(setting.omitted) : std::nullopt;
  }
  /// 1 or 0 of a setting that switches something on, which the family may have no name for.
  /// Likewise.
  std::optional<double> on(const Setting& setting, bool is_named = true) const {
    const std::optional<double> found = is_named ? value(setting) : 0.0;
    return found ? std::optional(moe::detail::equals(*found, 0.0) ? 0.0 : 1.0) : std::nullopt;
  }
  /// Whether there is a shared expert. Likewise.
  std::optional<double> has_shared() const {
    if (config) {
      return config->shared ? 1.0 : 0.0;
    }
    const SharedNames& shared = family.shared;
    const std::optional<double> count = on(shared.count, !shared.prefixes.empty());
    if (shared.bias_alone || !count || *count < 1.0) {
      return shared.bias_alone ? 1.0 : count;
    }
    return shared.width.keys == family.d_ff.keys ? 1.0 : on(shared.width);
  }

  /// Throws std::invalid_argument unless they will read what was found.
  void expect(const char* name, double found, std::optional<double> read) const {
    if (read && !moe::detail::equals(found, *read)) {
      fail(name, moe::detail::joined(found), moe::detail::joined(*read));
    }
  }
  /// The same of sizes and of what is there or not.
  template <std::integral Size>
  void expect(const char* name, Size found, Size read) const {
    expect(name, static_cast<double>(found), static_cast<double>(read));
  }
  /// The same of what may be none.
  void expect_or_none(const char* name, std::optional<double> found,
                      std::optional<double> read) const {
    if (found.has_value() != read.has_value() || (found && !moe::detail::equals(*found, *read))) {
      const auto text = [](std::optional<double> value) {
        return value ? moe::detail::joined(*value) : std::string("none");
      };
      fail(name, text(found), text(read));
    }
  }
  /// The same of a limit, which a setting of 0 or less switches off.
  void expect_limit(const char* name, std::optional<double> found, const Setting& setting) const {
    if (const auto limit = value(setting)) {
      expect_or_none(name, found, *limit > 0.0 ? std::optional(*limit) : std::nullopt);
    }
  }
  /// The same of kinds.
  template <class Enum>
  void expect_kind(const char* name, Enum found, Enum read) const {
    if (found != read) {
      fail(name, moe::detail::joined(static_cast<int>(found), " of its enum"),
           moe::detail::joined(static_cast<int>(read)));
    }
  }
  [[noreturn]] void fail(const std::string& name, const std::string& found,
                         const std::string& read) const {
    moe::detail::fail("save_layers: ", name, " = ", found, ", but readers of family ",
                      family.name(), " take it to be ", read);
  }
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
