// SPDX-License-Identifier: Apache-2.0
// The JSON of a safetensors file -> Header: what the file claims, each value well-formed, no two
// values compared yet (header_check.hpp does that). The parser is nlohmann-json's event (SAX)
// interface: duplicate keys are seen, numbers keep their type, and nesting costs no stack.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "../types.hpp"
#include "dtype.hpp"
#include "format_error.hpp"
#include "header.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Feeds the parser and leaves behind how far it has read: the events themselves carry no position.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, std::size_t* num_read) : at_(at), num_read_(num_read) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    ++*num_read_;
    return *this;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  std::size_t* num_read_;
};

/// Reads {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {string: string}} and
/// nothing else: an unknown or repeated field, or a value of another type, throws FormatError at
/// the byte where it stands. Only tensors of the same name are left to the caller.
class HeaderReader final : public nlohmann::json::json_sax_t {
 public:
  /// All three are only referred to and must outlive the reader.
  HeaderReader(std::string_view text, const std::string& file, const ReadLimits& limits)
      : text_(text), file_(file), limits_(limits) {}

  Header read();

  // The events, called by the parser. All of them throw or return true.
  bool start_object(std::size_t) override;
  bool key(std::string& name) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool string(std::string& value) override;
  bool number_unsigned(std::uint64_t value) override;
  bool null() override { refuse("null"); }
  bool boolean(bool value) override { refuse(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) override {
    refuse(value == 0 ? "-0" : std::to_string(value));
  }
  bool number_float(double, const std::string& digits) override { refuse(printable(digits, 40)); }
  bool binary(nlohmann::json::binary_t&) override { refuse("binary"); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override;

 private:
  enum class Object { none, top, metadata, entry };
  // What the value that comes next has to be. The first three are the fields of an entry.
  enum class Expect { dtype, shape, offsets, root, entry, metadata, text, dimension, offset };

  void check_text() const;
  void check_name(const std::string& name) const;
  void start_entry(std::string& name);
  void start_field(const std::string& name);
  HeaderEntry& entry() { return header_.tensors.back(); }
  std::uint64_t place() const;
  [[noreturn]] void refuse(const std::string& found) const;
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    fail_at(place(), joined(parts...));
  }
  [[noreturn]] void fail_at(std::uint64_t offset, const std::string& fault) const;
  // Ends every event: what comes next begins where the parser now stands.
  bool next() {
    token_ = num_read_;
    return true;
  }

  static constexpr std::array<const char*, 3> entry_fields{"dtype", "shape", "data_offsets"};

  std::string_view text_;
  const std::string& file_;
  const ReadLimits& limits_;

  std::size_t num_read_ = 0;  // bytes the parser has taken
  std::size_t token_ = 0;     // where it stood after the previous event
  Object inside_ = Object::none;
  Expect expect_ = Expect::root;
  Header header_;
  std::string metadata_key_;
  bool saw_metadata_ = false;
  std::array<bool, 3> saw_field_{};  // of the current entry
  std::size_t num_offsets_ = 0;      // of the current entry
};

inline Header HeaderReader::read() {
  check_text();
  const char* const begin = text_.data();
  nlohmann::json::sax_parse(CountingIterator(begin, &num_read_),
                            CountingIterator(begin + text_.size(), &num_read_), this);
  return std::move(header_);
}

// What the parser would let pass: it skips a byte order mark, and a NUL ends its input.
inline void HeaderReader::check_text() const {
  const std::size_t first = text_.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) {
    fail_at(length_bytes + text_.size(), "the header is empty, expected a JSON object");
  }
  if (text_[first] != '{') {
    fail_at(length_bytes + first, "the header does not begin with '{'");
  }
  const std::size_t nul = text_.find('\0');
  if (nul != std::string_view::npos) {
    fail_at(length_bytes + nul, "invalid JSON: a NUL byte");
  }
}

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
    check_name(name);
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
  check_name(name);
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
  token_ = num_read_ - 1;  // only the character behind a number tells the parser that it is over
  return true;
}

inline bool HeaderReader::parse_error(std::size_t position, const std::string&,
                                      const nlohmann::detail::exception& error) {
  // "[json...] parse error at line 1, column 5: syntax error while parsing ...; last read: '...'":
  // what was last read may be a megabyte of anything.
  std::string_view text = error.what();
  const std::size_t start = text.find("syntax error");
  if (start != std::string_view::npos) {
    text.remove_prefix(start);
  }
  text = text.substr(0, text.find("; last read"));
  fail_at(length_bytes + std::max<std::size_t>(position, 1) - 1,
          joined("invalid JSON: ", printable(text)));
}

inline void HeaderReader::check_name(const std::string& name) const {
  if (name.empty()) {
    fail("an empty name");
  }
  if (name.size() > limits_.max_name_bytes) {
    fail("the name \"", printable(name, 40), "\" has ", name.size(), " bytes, expected at most ",
         limits_.max_name_bytes);
  }
  if (printable(name, name.size()) != name) {
    fail("the name \"", printable(name), "\" contains control characters");
  }
}

// The place of the token just reported: it follows the previous one, and what may stand between the
// two.
inline std::uint64_t HeaderReader::place() const {
  const std::size_t start = text_.find_first_not_of(" \t\r\n,:", token_);
  return length_bytes + (start == std::string_view::npos ? text_.size() : start);
}

inline void HeaderReader::refuse(const std::string& found) const {
  constexpr std::array<const char*, 9> expected{"a string (dtype)",
                                                "an array (shape)",
                                                "an array (data_offsets)",
                                                "an object",
                                                "an object with dtype, shape and data_offsets",
                                                "an object (__metadata__)",
                                                "a string (__metadata__ maps strings to strings)",
                                                "an unsigned 64-bit integer (shape)",
                                                "an unsigned 64-bit integer (data_offsets)"};
  fail("found ", found, ", expected ", expected[static_cast<std::size_t>(expect_)]);
}

inline void HeaderReader::fail_at(std::uint64_t offset, const std::string& fault) const {
  const bool in_entry =
      inside_ == Object::entry || (inside_ == Object::top && expect_ == Expect::entry);
  const bool named = in_entry && !header_.tensors.empty();
  throw FormatError(file_, named ? header_.tensors.back().name : std::string(), offset, fault);
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
