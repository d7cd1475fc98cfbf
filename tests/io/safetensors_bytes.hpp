// SPDX-License-Identifier: Apache-2.0
// Makes safetensors files, good and bad, byte by byte, and states how they must be refused.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe/io/safetensors.hpp"

namespace moe::io::testing {

using io::detail::joined;

using FileBytes = std::vector<std::byte>;

template <class T>
FileBytes bytes_of(const std::vector<T>& values) {
  FileBytes bytes(values.size() * sizeof(T));
  if (!values.empty()) {
    std::memcpy(bytes.data(), static_cast<const void*>(values.data()), bytes.size());
  }
  return bytes;
}

inline FileBytes zeros(std::size_t size) { return FileBytes(size); }

/// length: what the file says of its JSON, the truth unless told otherwise.
inline FileBytes file_of(std::string_view json, const FileBytes& data = {},
                         std::optional<std::uint64_t> length = std::nullopt) {
  FileBytes file = bytes_of(std::vector<std::uint64_t>{length.value_or(json.size())});
  const auto* const text = reinterpret_cast<const std::byte*>(json.data());
  file.insert(file.end(), text, text + json.size());
  file.insert(file.end(), data.begin(), data.end());
  return file;
}

/// A header of one tensor "w", the three values as JSON text.
inline std::string header_of(std::string_view dtype, std::string_view shape,
                             std::string_view offsets) {
  return joined(R"({"w":{"dtype":)", dtype, R"(,"shape":)", shape, R"(,"data_offsets":)", offsets,
                "}}");
}

/// One entry of a header, for an U8 vector.
inline std::string u8_entry(std::string_view name, std::uint64_t begin, std::uint64_t end) {
  return joined("\"", name, R"(":{"dtype":"U8","shape":[)", end - begin, R"(],"data_offsets":[)",
                begin, ",", end, "]}");
}

inline SafeTensors parse(FileBytes file, const ReadLimits& limits = {}) {
  return SafeTensors::from_bytes(std::move(file), "bad.safetensors", limits);
}

/// The message must begin with the file's name and contain every fact.
inline void expect_message(const FormatError& error, std::string_view file,
                           std::initializer_list<std::string_view> facts) {
  const std::string message = error.what();
  EXPECT_EQ(message.rfind(std::string(file) + ": ", 0), 0U) << message;
  EXPECT_EQ(error.file(), file);
  EXPECT_LT(message.size(), 1000U);
  for (const std::string_view fact : facts) {
    EXPECT_NE(message.find(fact), std::string::npos) << "no <" << fact << "> in: " << message;
  }
  for (const char c : message) {
    EXPECT_FALSE(c >= 0 && c < ' ') << message;
  }
}

/// Tells the byte that is blamed, for tests that want to know.
inline std::optional<std::uint64_t> expect_refused(FileBytes file,
                                                   std::initializer_list<std::string_view> facts,
                                                   const ReadLimits& limits = {}) {
  try {
    parse(std::move(file), limits);
  } catch (const FormatError& error) {
    expect_message(error, "bad.safetensors", facts);
    return error.offset();
  }
  ADD_FAILURE() << "accepted, expected: " << *facts.begin();
  return std::nullopt;
}

}  // namespace moe::io::testing
