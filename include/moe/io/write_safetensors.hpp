// SPDX-License-Identifier: Apache-2.0
// Tensors -> a *.safetensors that every reader of the format takes: sorted by width and name, so
// that each is aligned to its elements, without holes. One tensor at a time is in memory.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "../detail/check.hpp"
#include "header_check.hpp"
#include "output_file.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// A tensor to be written.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::F32;
  std::vector<Index> shape;
  /// Writes all of its data, row-major.
  std::function<void(std::span<std::byte>)> fill;

  void validate() const { moe::detail::check_enum(dtype, DType::U64, "TensorToWrite: dtype"); }
  /// Throws std::invalid_argument if they do not fit.
  std::uint64_t bytes() const {
    validate();
    const detail::ByteSize size = detail::byte_size(dtype, shape);
    moe::detail::throw_unless(size.fault == nullptr, "tensor ", name, ": ",
                              size.fault == nullptr ? "" : size.fault);
    return size.bytes;
  }
};

namespace detail {

/// The data begin at a multiple of this, so of every dtype's width and of a line of the cache.
inline constexpr std::uint64_t data_alignment = 64;

inline std::string header_text(const std::vector<TensorToWrite>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  const auto quoted = [](const std::string& text) { return nlohmann::json(text).dump(); };
  std::string text = "{\"__metadata__\":" + nlohmann::json(metadata).dump();
  std::uint64_t end = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::uint64_t begin = end;
    end += tensor.bytes();
    std::string shape;
    for (const Index size : tensor.shape) {
      shape += joined(shape.empty() ? "" : ",", size);
    }
    text += joined(",", quoted(tensor.name), ":{\"dtype\":\"", name(tensor.dtype), "\",\"shape\":[",
                   shape, "],\"data_offsets\":[", begin, ",", end, "]}");
  }
  text += '}';
  while ((length_bytes + text.size()) % data_alignment != 0) {
    text += ' ';
  }
  return text;
}

/// Throws FormatError unless the reader takes the header: for names that are none, or twice there.
inline std::string checked_header(const std::vector<TensorToWrite>& tensors,
                                  const std::map<std::string, std::string>& metadata,
                                  const std::string& file) {
  try {
    std::string text = header_text(tensors, metadata);
    check_unique_names(HeaderReader(text, file, {}).read(), file);
    return text;
  } catch (const nlohmann::json::exception&) {
    throw FormatError(file, "", std::nullopt, "a name or text that is not UTF-8, expected UTF-8");
  }
}

}  // namespace detail

/// Throws std::invalid_argument if a tensor is none that can be, FormatError where the file cannot
/// be written, or could not be read; what stood at the path is then as before.
inline void write_safetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {
                                  {"format", "pt"}}) {
  for (const TensorToWrite& tensor : tensors) {
    tensor.validate();
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    return bits(a.dtype) != bits(b.dtype) ? bits(a.dtype) > bits(b.dtype) : a.name < b.name;
  });
  const std::string header = detail::checked_header(tensors, metadata, path.string());
  const std::uint64_t length = header.size();
  detail::OutputFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(header)));
  std::vector<std::byte> data;
  for (const TensorToWrite& tensor : tensors) {
    data.resize(tensor.bytes());
    tensor.fill(data);
    file.write(data);
  }
  file.finish();
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
