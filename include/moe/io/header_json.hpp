// SPDX-License-Identifier: Apache-2.0
// The JSON of a safetensors file -> Header: what the file claims, each value well-formed, no two
// values compared yet (header_check.hpp does that).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "../types.hpp"
#include "dtype.hpp"
#include "format_error.hpp"
#include "header.hpp"
#include "json_text.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Reads {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {string: string}} and
/// nothing else: an unknown or repeated field, or a value of another type, throws FormatError at
/// the byte where it stands. Only tensors of the same name are left to the caller.
class HeaderReader final : public JsonEvents {
 public:
  /// All three are only referred to and must outlive the reader.
  HeaderReader(std::string_view text, const std::string& file, const ReadLimits& limits)
      : JsonEvents(text, file, length_bytes), limits_(limits) {}

  Header read() {
    parse("the header");
    return std::move(header_);
  }

  // The events, called by the parser. All of them throw or return true.
  bool start_object(std::size_t) override;
  bool key(std::string& name) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool string(std::string& value) override;
  bool number_unsigned(std::uint64_t value) override;

 private:
  enum class Object { none, top, metadata, entry };
  // What the value that comes next has to be. The first three are the fields of an entry.
  enum class Expect { dtype, shape, offsets, root, entry, metadata, text, dimension, offset };

  void start_entry(std::string& name);
  void start_field(const std::string& name);
  HeaderEntry& entry() { return header_.tensors.back(); }
  std::string expected() const override;
  std::string tensor() const override;

  static constexpr std::array<const char*, 3> entry_fields{"dtype", "shape", "data_offsets"};

  const ReadLimits& limits_;

  Object inside_ = Object::none;
  Expect expect_ = Expect::root;
  Header header_;
  std::string metadata_key_;
  bool saw_metadata_ = false;
  std::array<bool, 3> saw_field_{};  // of the current entry
  std::size_t num_offsets_ = 0;      // of the current entry
};

inline bool HeaderReader::start_object(std::size_t) {
  switch (expect_) {
    case Expect::root:
      inside_ = Object::top;
      break;
    case Expect::entry:
      inside_ = Object::entry;
      break;
    case Expect::metadata:
      inside_ = Object::metadata;
      break;
    default:
      refuse("an object");
  }
  return next();
}

inline bool HeaderReader::key(std::string& name) {
  if (inside_ == Object::entry) {
    start_field(name);
  } else if (inside_ == Object::metadata) {
    check_name(name, limits_);
    if (header_.metadata.contains(name)) {
      fail("__metadata__ has \"", printable(name), "\" twice");
    }
    if (header_.metadata.size() == limits_.max_tensors) {
      fail("too many keys in __metadata__");
    }
    metadata_key_ = std::move(name);
    expect_ = Expect::text;
  } else if (name == "__metadata__") {
    if (std::exchange(saw_metadata_, true)) {
      fail("__metadata__ appears twice");
    }
    expect_ = Expect::metadata;
  } else {
    start_entry(name);
  }
  return next();
}

inline void HeaderReader::start_entry(std::string& name) {
  check_name(name, limits_);
  if (header_.tensors.size() == limits_.max_tensors) {
    fail("more than ", limits_.max_tensors, " tensors");
  }
  HeaderEntry& added = header_.tensors.emplace_back();
  added.name = std::move(name);
  added.place = place();
  saw_field_ = {};
  num_offsets_ = 0;
  expect_ = Expect::entry;
}

inline void HeaderReader::start_field(const std::string& name) {
  const auto known = std::find(entry_fields.begin(), entry_fields.end(), name);
  if (known == entry_fields.end()) {
    fail("unknown field \"", printable(name), "\", expected dtype, shape and data_offsets only");
  }
  const auto field = static_cast<std::size_t>(known - entry_fields.begin());
  if (std::exchange(saw_field_[field], true)) {
    fail("field \"", name, "\" appears twice");
  }
  expect_ = static_cast<Expect>(field);
}

inline bool HeaderReader::end_object() {
  if (inside_ == Object::entry) {
    for (std::size_t i = 0; i < entry_fields.size(); ++i) {
      if (!saw_field_[i]) {
        fail("field \"", entry_fields[i], "\" is missing");
      }
    }
  }
  inside_ = inside_ == Object::top ? Object::none : Object::top;
  return next();
}

inline bool HeaderReader::start_array(std::size_t) {
  if (expect_ == Expect::shape) {
    expect_ = Expect::dimension;
  } else if (expect_ == Expect::offsets) {
    expect_ = Expect::offset;
  } else {
    refuse("an array");
  }
  return next();
}

inline bool HeaderReader::end_array() {
  if (expect_ == Expect::offset && num_offsets_ != 2) {
    fail("data_offsets has ", num_offsets_, " items, expected 2");
  }
  return next();
}

inline bool HeaderReader::string(std::string& value) {
  if (expect_ == Expect::text) {
    header_.metadata.emplace(std::move(metadata_key_), std::move(value));
  } else if (expect_ == Expect::dtype) {
    const std::optional<DType> dtype = parse_dtype(value);
    if (!dtype) {
      fail("unknown dtype \"", printable(value, 40), "\"");
    }
    entry().dtype = *dtype;
  } else {
    refuse("a string");
  }
  return next();
}

inline bool HeaderReader::number_unsigned(std::uint64_t value) {
  if (expect_ == Expect::dimension) {
    if (entry().shape.size() >= limits_.max_rank) {
      fail("more than ", limits_.max_rank, " dimensions");
    }
    if (value > static_cast<std::uint64_t>((std::numeric_limits<Index>::max)())) {
      fail("dimension ", value, " is too large");
    }
    entry().shape.push_back(static_cast<Index>(value));
  } else if (expect_ == Expect::offset) {
    if (num_offsets_ == 2) {
      fail("data_offsets has more than 2 items, expected 2");
    }
    (num_offsets_++ == 0 ? entry().begin : entry().end) = value;
  } else {
    refuse(std::to_string(value));
  }
  return next_after_number();
}

inline std::string HeaderReader::expected() const {
  constexpr std::array<const char*, 9> names{"a string (dtype)",
                                             "an array (shape)",
                                             "an array (data_offsets)",
                                             "an object",
                                             "an object with dtype, shape and data_offsets",
                                             "an object (__metadata__)",
                                             "a string (__metadata__ maps strings to strings)",
                                             "an unsigned 64-bit integer (shape)",
                                             "an unsigned 64-bit integer (data_offsets)"};
  return names[static_cast<std::size_t>(expect_)];
}

inline std::string HeaderReader::tensor() const {
  const bool in_entry =
      inside_ == Object::entry || (inside_ == Object::top && expect_ == Expect::entry);
  return in_entry && !header_.tensors.empty() ? header_.tensors.back().name : std::string();
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
