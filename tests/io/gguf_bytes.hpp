// SPDX-License-Identifier: Apache-2.0
// Makes GGUF files, good and bad, byte by byte. Takes no test framework: the fuzz targets' first
// files are made with it, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe::io::testing {

using GgufData = std::vector<std::byte>;

inline void append(GgufData& to, const GgufData& more) {
  for (const std::byte byte : more) {  // in insert() GCC 12 sees an overflow that there is not
    to.push_back(byte);
  }
}

template <class T>
GgufData raw(T value) {
  GgufData bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

/// With its length, which is the truth unless told otherwise.
inline GgufData raw_text(std::string_view text,
                         std::optional<std::uint64_t> length = std::nullopt) {
  GgufData bytes = raw<std::uint64_t>(length.value_or(text.size()));
  for (const char letter : text) {
    bytes.push_back(static_cast<std::byte>(letter));
  }
  return bytes;
}

/// A value behind a key: the number of its type, and its bytes.
inline GgufData typed(std::uint32_t type, const GgufData& value) {
  GgufData bytes = raw(type);
  append(bytes, value);
  return bytes;
}
inline GgufData gguf_u32(std::uint32_t value) { return typed(4, raw(value)); }
inline GgufData gguf_u16(std::uint16_t value) { return typed(2, raw(value)); }
inline GgufData gguf_f32(float value) { return typed(6, raw(value)); }
inline GgufData gguf_bool(bool value) { return typed(7, raw<std::uint8_t>(value ? 1 : 0)); }
inline GgufData gguf_text(std::string_view text) { return typed(8, raw_text(text)); }
inline GgufData gguf_array(std::uint32_t type, const std::vector<GgufData>& items,
                           std::optional<std::uint64_t> count = std::nullopt) {
  GgufData bytes = raw(type);
  append(bytes, raw<std::uint64_t>(count.value_or(items.size())));
  for (const GgufData& item : items) {
    append(bytes, item);
  }
  return typed(9, bytes);
}

struct GgufTensor {
  std::string name;
  std::vector<std::uint64_t> dims;  ///< as in the file: of a row first
  std::uint32_t type = 0;
  GgufData data;
  std::optional<std::uint64_t> offset = std::nullopt;  ///< else the right one
};

/// What is to stand in a file. Counts are the truth unless told otherwise.
struct GgufFile {
  std::vector<std::pair<std::string, GgufData>> keys = {};
  std::vector<GgufTensor> tensors = {};
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::optional<std::uint64_t> num_tensors = std::nullopt, num_keys = std::nullopt;
  bool pads_end = true;
};

inline void pad(GgufData& bytes, std::size_t begin, std::uint64_t alignment) {
  while ((bytes.size() - begin) % alignment != 0) {
    bytes.push_back({});
  }
}

inline GgufData header_of(const GgufFile& file) {
  GgufData bytes;
  for (const char c : std::string_view("GGUF")) {
    bytes.push_back(static_cast<std::byte>(c));
  }
  append(bytes, raw(file.version));
  append(bytes, raw<std::uint64_t>(file.num_tensors.value_or(file.tensors.size())));
  append(bytes, raw<std::uint64_t>(file.num_keys.value_or(file.keys.size())));
  for (const auto& [key, value] : file.keys) {
    append(bytes, raw_text(key));
    append(bytes, value);
  }
  std::uint64_t offset = 0;
  for (const GgufTensor& tensor : file.tensors) {
    append(bytes, raw_text(tensor.name));
    append(bytes, raw(static_cast<std::uint32_t>(tensor.dims.size())));
    for (const std::uint64_t size : tensor.dims) {
      append(bytes, raw(size));
    }
    append(bytes, raw(tensor.type));
    append(bytes, raw(tensor.offset.value_or(offset)));
    offset = (offset + tensor.data.size() + file.alignment - 1) / file.alignment * file.alignment;
  }
  return bytes;
}

inline GgufData bytes_of(const GgufFile& file) {
  GgufData bytes = header_of(file);
  if (!file.tensors.empty()) {
    pad(bytes, 0, file.alignment);
  }
  for (std::size_t i = 0; i < file.tensors.size(); ++i) {
    append(bytes, file.tensors[i].data);
    if (file.pads_end || i + 1 < file.tensors.size()) {
      pad(bytes, 0, file.alignment);
    }
  }
  return bytes;
}

/// F32, counted from `first`.
inline GgufTensor gguf_floats(std::string name, std::vector<std::uint64_t> dims, float first = 0) {
  std::uint64_t size = 1;
  for (const std::uint64_t each : dims) {
    size *= each;
  }
  GgufTensor tensor{std::move(name), std::move(dims), 0, {}};
  for (std::uint64_t i = 0; i < size; ++i) {
    append(tensor.data, raw(first + static_cast<float>(i)));
  }
  return tensor;
}

}  // namespace moe::io::testing
