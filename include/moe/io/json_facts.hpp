// SPDX-License-Identifier: Apache-2.0
// A JSON object of any content -> JsonFacts, a flat list of its values by path: what config.json
// and the index of a sharded model are read into. Strict as header_json.hpp: no key twice, names
// that can be shown, limits on size, number and depth.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_source.hpp"
#include "json_text.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// One value of a JSON text.
struct JsonFact {
  /// `number` has a fraction, an exponent, or is beyond 63 bits.
  enum class Kind { null, boolean, integer, number, text, list, object };

  Kind kind = Kind::null;
  std::int64_t integer = 0;  ///< boolean: 0 or 1
  double number = 0.0;       ///< integer: rounded
  std::string text = {};
  std::vector<JsonFact> items = {};  ///< of a list; lists and objects in it are empty

  /// As it would stand in a message: 8, "silu", true, a list.
  std::string shown() const;
};

/// The values by path: {"a": {"b": 1}} is "a" (an object) and "a.b". What objects in lists hold is
/// left out.
using JsonFacts = std::map<std::string, JsonFact, std::less<>>;

/// Throws FormatError, naming file and byte, unless text is one JSON object within the limits:
/// max_header_bytes of text, max_tensors values, max_name_bytes a key, max_rank deep.
JsonFacts parse_json_facts(std::string_view text, const std::string& file,
                           const ReadLimits& limits = {});
/// Of a whole file.
JsonFacts load_json_facts(const std::filesystem::path& path, const ReadLimits& limits = {});

inline std::string JsonFact::shown() const {
  switch (kind) {
    case Kind::null:
      return "null";
    case Kind::boolean:
      return integer != 0 ? "true" : "false";
    case Kind::integer:
      return std::to_string(integer);
    case Kind::number:
      return detail::joined(number);
    case Kind::text:
      return detail::joined("\"", printable(text, 80), "\"");
    case Kind::list:
      return "a list";
    default:
      return "an object";
  }
}

namespace detail {

class FactsReader final : public JsonEvents {
 public:
  FactsReader(std::string_view text, const std::string& file, const ReadLimits& limits)
      : JsonEvents(text, file, 0), limits_(limits), path_bytes_left_(16 * text.size()) {}

  JsonFacts read() {
    parse("the file");
    return std::move(facts_);
  }

  bool start_object(std::size_t) override { return enter(JsonFact::Kind::object); }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t) override { return enter(JsonFact::Kind::list); }
  bool end_array() override { return leave(); }
  bool key(std::string& name) override;
  bool null() override { return add({}); }
  bool boolean(bool value) override {
    return add({.kind = JsonFact::Kind::boolean, .integer = value ? 1 : 0});
  }
  bool string(std::string& value) override {
    return add({.kind = JsonFact::Kind::text, .text = std::move(value)});
  }
  bool number_integer(std::int64_t value) override { return add_number(whole(value)); }
  bool number_unsigned(std::uint64_t value) override {
    constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)());
    return add_number(value <= most ? whole(static_cast<std::int64_t>(value))
                                    : real(static_cast<double>(value)));
  }
  bool number_float(double value, const std::string&) override { return add_number(real(value)); }

 private:
  struct Level {
    std::size_t path_size;        // of the path to it
    std::vector<JsonFact>* list;  // whose items stand here; none: an object
    bool kept;                    // or inside a list, where nothing is
  };

  static JsonFact whole(std::int64_t value) {
    return {
        .kind = JsonFact::Kind::integer, .integer = value, .number = static_cast<double>(value)};
  }
  static JsonFact real(double value) { return {.kind = JsonFact::Kind::number, .number = value}; }

  std::string expected() const override { return "text, a number, a list or an object"; }
  bool add_number(JsonFact fact) {
    put(std::move(fact));
    return next_after_number();
  }
  bool add(JsonFact fact) {
    put(std::move(fact));
    return next();
  }
  JsonFact* put(JsonFact fact);
  bool enter(JsonFact::Kind kind);
  bool leave();

  const ReadLimits& limits_;
  std::size_t
      path_bytes_left_;  // paths repeat their beginnings: a few bytes of text, kilobytes each
  std::string path_;
  std::vector<Level> levels_;
  std::size_t num_values_ = 0;
  JsonFacts facts_;
};

inline bool FactsReader::key(std::string& name) {
  if (!name.empty()) {  // some vocabularies have it
    check_name(name, limits_);
  }
  path_.resize(levels_.back().path_size);
  if (!path_.empty()) {
    path_ += '.';
  }
  path_ += name;
  if (path_.size() > path_bytes_left_) {
    fail("long names of objects in each other, expected less than 16 times the text in all paths");
  }
  path_bytes_left_ -= path_.size();
  if (levels_.back().kept && facts_.contains(path_)) {
    fail("\"", printable(path_), "\" appears twice");
  }
  return next();
}

/// Null where the value is not kept.
inline JsonFact* FactsReader::put(JsonFact fact) {
  if (++num_values_ > limits_.max_tensors) {
    fail("more than ", limits_.max_tensors, " values");
  }
  const Level& level = levels_.back();
  if (level.list != nullptr) {
    level.list->push_back(std::move(fact));
    return &level.list->back();
  }
  return level.kept ? &facts_.emplace(path_, std::move(fact)).first->second : nullptr;
}

inline bool FactsReader::enter(JsonFact::Kind kind) {
  if (levels_.size() == limits_.max_rank) {
    fail("more than ", limits_.max_rank, " objects or lists in each other");
  }
  if (levels_.empty()) {
    levels_.push_back({0, nullptr, true});
    return next();
  }
  const bool in_list = levels_.back().list != nullptr || !levels_.back().kept;
  JsonFact* const fact = put({.kind = kind});
  const bool fills = kind == JsonFact::Kind::list && !in_list;
  levels_.push_back({path_.size(), fills ? &fact->items : nullptr, fills || !in_list});
  return next();
}

inline bool FactsReader::leave() {
  path_.resize(levels_.back().path_size);
  levels_.pop_back();
  return next();
}

}  // namespace detail

inline JsonFacts parse_json_facts(std::string_view text, const std::string& file,
                                  const ReadLimits& limits) {
  return detail::FactsReader(text, file, limits).read();
}

inline JsonFacts load_json_facts(const std::filesystem::path& path, const ReadLimits& limits) {
  const detail::InputFile input(path);
  if (input.size() > limits.max_header_bytes) {
    throw FormatError(input.name(), "", std::nullopt,
                      detail::joined("the file has ", input.size(), " bytes, expected at most ",
                                     limits.max_header_bytes, " (ReadLimits::max_header_bytes)"));
  }
  const detail::Bytes bytes = input.load();
  return parse_json_facts({reinterpret_cast<const char*>(bytes.view.data()), bytes.view.size()},
                          input.name(), limits);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
