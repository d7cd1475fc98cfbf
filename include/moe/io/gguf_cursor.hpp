// SPDX-License-Identifier: Apache-2.0
// The bytes of a GGUF header, one after the other: numbers, text and values of keys. What a file
// claims is held against what is left of it before a byte is taken or any memory is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "format_error.hpp"
#include "gguf_types.hpp"
#include "header.hpp"
#include "json_facts.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// Items of longer arrays, and of those of text, are checked and not kept: a vocabulary's.
inline constexpr std::uint64_t most_kept_items = 4096;

class GgufCursor {
 public:
  /// All are only referred to.
  GgufCursor(std::span<const std::byte> bytes, const std::string& file, const ReadLimits& limits)
      : bytes_(bytes),
        file_(file),
        limits_(limits),
        end_((std::min)(std::uint64_t{bytes.size()}, limits.max_header_bytes)),
        items_left_(limits.max_tensors) {}

  std::uint64_t place() const { return place_; }
  std::uint64_t left() const { return end_ - place_; }
  const ReadLimits& limits() const { return limits_; }
  std::uint64_t file_size() const { return bytes_.size(); }

  /// What messages speak of from here on: key "general.name", or a tensor.
  void speak_of_key(std::string_view key) {
    subject_ = joined("key \"", printable(key), "\": ");
    tensor_.clear();
  }
  void speak_of_tensor(std::string tensor) {
    subject_.clear();
    tensor_ = std::move(tensor);
  }
  template <class... Parts>
  [[noreturn]] void fail_at(std::uint64_t place, const Parts&... parts) const {
    throw FormatError(file_, tensor_, place, subject_ + joined(parts...));
  }

  template <class T>
  T number(const char* what) {
    T value{};
    const auto from = take(sizeof value, what);
    std::memcpy(&value, from.data(), sizeof value);
    return value;
  }
  /// Throws unless there is room for so many things of at least so many bytes.
  std::uint64_t count(const char* what, std::uint64_t least_bytes);
  std::string_view text(const char* what);
  /// Text that a message can show, not empty.
  std::string name(const char* what, std::size_t most_bytes);
  JsonFact value(GgufValue type);
  GgufValue value_type(const char* what);

 private:
  std::span<const std::byte> take(std::uint64_t size, const char* what);
  [[noreturn]] void fail_short(std::uint64_t size, const char* what) const;
  bool boolean();
  JsonFact array();
  static JsonFact whole(std::int64_t value) {
    return {
        .kind = JsonFact::Kind::integer, .integer = value, .number = static_cast<double>(value)};
  }
  static JsonFact real(double value) { return {.kind = JsonFact::Kind::number, .number = value}; }

  std::span<const std::byte> bytes_;
  const std::string& file_;
  const ReadLimits& limits_;
  std::uint64_t place_ = 0, end_;  // place_ <= end_ <= the size of the file
  std::uint64_t items_left_;       // that may still be kept
  std::string subject_, tensor_;
};

inline void GgufCursor::fail_short(std::uint64_t size, const char* what) const {
  if (end_ < bytes_.size()) {
    fail_at(place_, what, " of ", size, " bytes, expected a header of at most ", end_,
            " bytes (ReadLimits::max_header_bytes)");
  }
  fail_at(place_, what, " of ", size, " bytes, but the file ends after ", left());
}

inline std::span<const std::byte> GgufCursor::take(std::uint64_t size, const char* what) {
  if (size > left()) {
    fail_short(size, what);
  }
  // All of this lies in the file, so it fits.
  const auto size_of = [](auto number) { return static_cast<std::size_t>(number); };
  const auto from = bytes_.subspan(size_of(place_), size_of(size));
  place_ += size;
  return from;
}

inline std::uint64_t GgufCursor::count(const char* what, std::uint64_t least_bytes) {
  const std::uint64_t begin = place_;
  const auto found = number<std::uint64_t>(what);
  if (found > static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)())) {
    fail_at(begin, what, " ", static_cast<std::int64_t>(found), ", expected at least 0");
  }
  if (found > left() / least_bytes) {
    fail_at(begin, what, " ", found, ", expected at most ", left() / least_bytes, " in the ",
            left(), " bytes that follow");
  }
  return found;
}

inline std::string_view GgufCursor::text(const char* what) {
  const auto size = number<std::uint64_t>(what);
  const auto from = take(size, what);
  return {reinterpret_cast<const char*>(from.data()), from.size()};
}

inline std::string GgufCursor::name(const char* what, std::size_t most_bytes) {
  const std::uint64_t begin = place_;
  const std::string_view found = text(what);
  if (found.empty()) {
    fail_at(begin, what, " is empty");
  }
  if (found.size() > most_bytes) {
    fail_at(begin, what, " \"", printable(found, 40), "\" has ", found.size(),
            " bytes, expected at most ", most_bytes);
  }
  if (std::any_of(found.begin(), found.end(), [](char c) { return c < ' ' || c > '~'; })) {
    fail_at(begin, what, " \"", printable(found, 80), "\", expected printable ASCII");
  }
  return std::string(found);
}

inline GgufValue GgufCursor::value_type(const char* what) {
  const std::uint64_t begin = place_;
  const auto found = number<std::uint32_t>(what);
  if (found >= gguf_value_facts.size()) {
    fail_at(begin, what, " ", found, ", expected at most ", gguf_value_facts.size() - 1);
  }
  return static_cast<GgufValue>(found);
}

inline bool GgufCursor::boolean() {
  const auto found = number<std::uint8_t>("a BOOL");
  if (found > 1) {
    fail_at(place_ - 1, "BOOL of ", static_cast<int>(found), ", expected 0 or 1");
  }
  return found == 1;
}

inline JsonFact GgufCursor::value(GgufValue type) {
  switch (type) {
    case GgufValue::U8:
      return whole(number<std::uint8_t>("an U8"));
    case GgufValue::I8:
      return whole(number<std::int8_t>("an I8"));
    case GgufValue::U16:
      return whole(number<std::uint16_t>("an U16"));
    case GgufValue::I16:
      return whole(number<std::int16_t>("an I16"));
    case GgufValue::U32:
      return whole(number<std::uint32_t>("an U32"));
    case GgufValue::I32:
      return whole(number<std::int32_t>("an I32"));
    case GgufValue::I64:
      return whole(number<std::int64_t>("an I64"));
    case GgufValue::U64: {
      const auto found = number<std::uint64_t>("an U64");
      return std::in_range<std::int64_t>(found) ? whole(static_cast<std::int64_t>(found))
                                                : real(static_cast<double>(found));
    }
    case GgufValue::F32:
      return real(static_cast<double>(number<float>("an F32")));
    case GgufValue::F64:
      return real(number<double>("an F64"));
    case GgufValue::BOOL:
      return {.kind = JsonFact::Kind::boolean, .integer = boolean() ? 1 : 0};
    case GgufValue::TEXT:
      return {.kind = JsonFact::Kind::text, .text = std::string(text("text"))};
    default:
      return array();
  }
}

/// `integer` of it is the number of items, which are left out where they are not kept.
inline JsonFact GgufCursor::array() {
  const std::uint64_t begin = place_;
  const GgufValue type = value_type("type of items");
  if (type == GgufValue::ARRAY) {
    fail_at(begin, "an array of arrays, expected one of numbers, BOOL or text");
  }
  const unsigned least = gguf_value_facts[static_cast<std::size_t>(type)].least_bytes;
  const std::uint64_t items = count("number of items", least);
  JsonFact made{.kind = JsonFact::Kind::list, .integer = static_cast<std::int64_t>(items)};
  const bool keeps = items <= most_kept_items && type != GgufValue::TEXT;
  if (keeps && items > items_left_) {
    fail_at(begin, "more than ", limits_.max_tensors,
            " items of lists, expected at most so many (ReadLimits::max_tensors)");
  }
  items_left_ -= keeps ? items : 0;
  for (std::uint64_t i = 0; i < items; ++i) {
    if (type == GgufValue::TEXT) {
      text("text");
    } else if (keeps) {
      made.items.push_back(value(type));
    } else if (type == GgufValue::BOOL) {
      boolean();
    } else {
      take(least, "an item");
    }
  }
  return made;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
