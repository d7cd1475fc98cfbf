// SPDX-License-Identifier: Apache-2.0
// JSON text -> events with the byte where each stands: what every reader of JSON here shares. The
// parser is nlohmann-json's event (SAX) interface: duplicate keys are seen, numbers keep their
// type, and nesting costs no stack.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

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

/// The base of a reader of one text whose root is an object. The reader overrides the events it
/// takes, which end with next() or next_after_number(), and says what it expects instead of others.
class JsonEvents : public nlohmann::json::json_sax_t {
 public:
  bool null() override { refuse("null"); }
  bool boolean(bool value) override { refuse(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) override {
    refuse(value == 0 ? "-0" : std::to_string(value));
  }
  bool number_float(double, const std::string& digits) override { refuse(printable(digits, 40)); }
  bool binary(nlohmann::json::binary_t&) override { refuse("binary"); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override;

 protected:
  /// Text and file are only referred to. The text begins at first_byte of the file.
  JsonEvents(std::string_view text, const std::string& file, std::uint64_t first_byte)
      : text_(text), file_(file), first_byte_(first_byte) {}

  /// `what` is the text's name in messages.
  void parse(const char* what);

  /// What the value that comes next has to be.
  virtual std::string expected() const = 0;
  /// The tensor that the text speaks of, for messages.
  virtual std::string tensor() const { return {}; }

  [[noreturn]] void refuse(const std::string& found) const {
    fail("found ", found, ", expected ", expected());
  }
  [[noreturn]] void fail_at(std::uint64_t offset, const std::string& fault) const {
    throw FormatError(file_, tensor(), offset, fault);
  }
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    fail_at(place(), joined(parts...));
  }
  /// Throws unless it is a name that a message can show.
  void check_name(const std::string& name, const ReadLimits& limits) const;

  /// The byte of the token just reported: it follows the previous one, and what may stand between.
  std::uint64_t place() const {
    const std::size_t start = text_.find_first_not_of(" \t\r\n,:", token_);
    return first_byte_ + (start == std::string_view::npos ? text_.size() : start);
  }
  /// What comes next begins where the parser now stands.
  bool next() {
    token_ = num_read_;
    return true;
  }
  bool next_after_number() {
    token_ = num_read_ - 1;  // only the character behind a number tells the parser that it is over
    return true;
  }

 private:
  void check_text(const char* what) const;

  std::string_view text_;
  const std::string& file_;
  std::uint64_t first_byte_;
  std::size_t num_read_ = 0;  // bytes the parser has taken
  std::size_t token_ = 0;     // where it stood after the previous event
};

inline void JsonEvents::parse(const char* what) {
  check_text(what);
  const char* const begin = text_.data();
  nlohmann::json::sax_parse(CountingIterator(begin, &num_read_),
                            CountingIterator(begin + text_.size(), &num_read_), this);
}

// What the parser would let pass: it skips a byte order mark, and a NUL ends its input.
inline void JsonEvents::check_text(const char* what) const {
  const std::size_t first = text_.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) {
    fail_at(first_byte_ + text_.size(), joined(what, " is empty, expected a JSON object"));
  }
  if (text_[first] != '{') {
    fail_at(first_byte_ + first, joined(what, " does not begin with '{'"));
  }
  const std::size_t nul = text_.find('\0');
  if (nul != std::string_view::npos) {
    fail_at(first_byte_ + nul, "invalid JSON: a NUL byte");
  }
}

inline bool JsonEvents::parse_error(std::size_t position, const std::string&,
                                    const nlohmann::detail::exception& error) {
  // "[json...] parse error at line 1, column 5: syntax error while parsing ...; last read: '...'":
  // what was last read may be a megabyte of anything.
  std::string_view text = error.what();
  const std::size_t start = text.find("syntax error");
  if (start != std::string_view::npos) {
    text.remove_prefix(start);
  }
  text = text.substr(0, text.find("; last read"));
  fail_at(first_byte_ + std::max<std::size_t>(position, 1) - 1,
          joined("invalid JSON: ", printable(text)));
}

inline void JsonEvents::check_name(const std::string& name, const ReadLimits& limits) const {
  if (name.empty()) {
    fail("an empty name");
  }
  if (name.size() > limits.max_name_bytes) {
    fail("the name \"", printable(name, 40), "\" has ", name.size(), " bytes, expected at most ",
         limits.max_name_bytes);
  }
  if (printable(name, name.size()) != name) {
    fail("the name \"", printable(name), "\" contains control characters");
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
