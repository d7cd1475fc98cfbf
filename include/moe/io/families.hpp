// SPDX-License-Identifier: Apache-2.0
// From a model_type, or the architecture of a GGUF file, to its Family, a row of family_rows.hpp or
// gguf_rows.hpp; and what is said of one that has none.
#pragma once

#include <string>

#include "family_rows.hpp"
#include "gguf_rows.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// The row of a model_type in a table of them; null if it is in none.
template <std::size_t n>
const Family* find_row(const Family (&rows)[n], std::string_view model_type) {
  for (const Family& row : rows) {
    for (const std::string_view type : words(row.model_types)) {
      if (type == model_type) {
        return &row;
      }
    }
  }
  return nullptr;
}

/// The names of families, for messages; or all of the types that they have.
template <std::size_t n>
std::string all_types(const Family (&rows)[n], bool all) {
  std::string known;
  for (const Family& family : rows) {
    for (const std::string_view type : words(all ? family.model_types : family.name())) {
      known += joined(known.empty() ? "" : ", ", type);
    }
  }
  return known;
}

}  // namespace detail

/// By a model_type; null if it is none of a family's.
inline const Family* find_family(std::string_view model_type) {
  return detail::find_row(detail::families, model_type);
}

/// Of a model, by the outermost model_type that is a family's; null if none is.
inline const Family* find_family(const ModelConfig& config) {
  for (const std::string& type : config.model_types()) {
    if (const Family* const family = find_family(type)) {
      return family;
    }
  }
  return nullptr;
}

/// The same. Throws FormatError that names its model_type and the families that there are.
inline const Family& family_of(const ModelConfig& config) {
  if (const Family* const family = find_family(config)) {
    return *family;
  }
  std::string found;
  for (const std::string& type : config.model_types()) {
    found += detail::joined(found.empty() ? "\"" : " in \"", printable(type, 40), "\"");
  }
  config.fail("model_type", found.empty() ? "no such key" : found,
              "one of " + detail::all_types(detail::families, false));
}

/// By the architecture of a GGUF file; null if there is no such row.
inline const Family* find_gguf_family(std::string_view architecture) {
  return detail::find_row(detail::gguf_families, architecture);
}

/// Of the config that gguf_config() makes. Throws likewise.
inline const Family& family_of_gguf(const ModelConfig& config) {
  const std::string architecture = config.text("model_type", "");
  if (const Family* const family = find_gguf_family(architecture)) {
    return *family;
  }
  config.fail("general.architecture", detail::joined("\"", printable(architecture, 40), "\""),
              "one of " + detail::all_types(detail::gguf_families, true));
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
