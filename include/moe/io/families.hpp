// SPDX-License-Identifier: Apache-2.0
// From a model_type to its Family, a row of family_rows.hpp; and what is said of one that has none.
#pragma once

#include <string>

#include "family_rows.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

/// The row of a model_type in a table of them; null if it is in none.
template <class Row, std::size_t n>
const Row* find_row(const Row (&rows)[n], std::string_view model_type) {
  for (const Row& row : rows) {
    for (const std::string_view type : words(row.model_types)) {
      if (type == model_type) {
        return &row;
      }
    }
  }
  return nullptr;
}

}  // namespace detail

/// By a model_type; null if it is none of a family's.
inline const Family* find_family(std::string_view model_type) {
  return detail::find_row(detail::families, model_type);
}

/// Of a model. Throws FormatError that names its model_type, what that needs if it is known, and
/// the families that there are.
inline const Family& family_of(const ModelConfig& config) {
  std::string found, needs;
  for (const std::string& type : config.model_types()) {
    if (const Family* const family = find_family(type)) {
      return *family;
    }
    if (const auto* const row = detail::find_row(detail::unsupported_families, type)) {
      needs = detail::joined(", which needs ", row->needs);
    }
    found += detail::joined(found.empty() ? "\"" : " in \"", printable(type, 40), "\"");
  }
  std::string known;
  for (const Family& family : detail::families) {
    known += detail::joined(known.empty() ? "" : ", ", family.name());
  }
  config.fail("model_type", found.empty() ? "no such key" : found + needs, "one of " + known);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
