// SPDX-License-Identifier: Apache-2.0
// The header of a GGUF file, of version 2 or 3, held against itself and against the size of the
// file: after read_gguf_header() every tensor has whole blocks in all of its rows and lies where
// the one before it ends, and nothing is behind the last. No sum or product is formed before it is
// known to fit, and nothing is allocated by a number that the file merely claims.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf_cursor.hpp"
#include "header_check.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// As a header of safetensors, with the values of its keys. Tensors have their shapes row-major:
/// the last dimension is that of a row.
struct GgufHeader : Header {
  JsonFacts facts;
  std::uint64_t alignment = 32;
};

/// Least bytes of a key with its value, and of what is said of a tensor.
inline constexpr std::uint64_t least_bytes_of_key = 8 + 1 + 4 + 1,
                               least_bytes_of_tensor = 8 + 1 + 4 + 8 + 4 + 8;
inline constexpr std::size_t most_bytes_of_tensor_name = 63;  // ggml keeps them in 64

/// Throws unless it begins as a GGUF file that can be read. The place is then behind the version.
inline void check_gguf_version(GgufCursor& cursor) {
  constexpr std::string_view magic = "GGUF";
  for (std::size_t i = 0; i < magic.size(); ++i) {
    if (cursor.left() == 0 || cursor.number<char>("magic") != magic[i]) {
      cursor.fail_at(0, "not a GGUF file, expected it to begin with \"GGUF\"");
    }
  }
  const auto version = cursor.number<std::uint32_t>("version");
  if (version != 0 && (version & 0xffffU) == 0) {
    cursor.fail_at(4, "version ", version, ", of a big-endian file, expected a little-endian one");
  }
  if (version != 2 && version != 3) {
    cursor.fail_at(4, "version ", version, ", expected 2 or 3");
  }
}

/// offset at or behind this one that is a multiple of the alignment, which is below 2^32.
inline std::uint64_t aligned(std::uint64_t offset, std::uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

class GgufReader {
 public:
  GgufReader(std::span<const std::byte> bytes, const std::string& file, const ReadLimits& limits)
      : file_(file), cursor_(bytes, file_, limits) {}

  GgufHeader read() {
    read_tensors();
    check_unique_names(header_, file_);
    check_end();
    return std::move(header_);
  }
  /// All of the header, and where a file of it ends.
  std::uint64_t read_tensors();

 private:
  void read_key();
  void read_tensor();
  std::vector<Index> read_shape();
  DType read_dtype();
  std::uint64_t checked_bytes(DType dtype, const std::vector<Index>& shape,
                              std::uint64_t place) const;
  void check_end();
  std::uint64_t count_of(const char* what, std::uint64_t least_bytes) {
    const std::uint64_t begin = cursor_.place();
    const std::uint64_t found = cursor_.count(what, least_bytes);
    if (found > cursor_.limits().max_tensors) {
      cursor_.fail_at(begin, what, " ", found, ", expected at most ", cursor_.limits().max_tensors,
                      " (ReadLimits::max_tensors)");
    }
    return found;
  }

  const std::string& file_;
  GgufCursor cursor_;
  GgufHeader header_;
  std::uint64_t end_ = 0;  // of the tensors so far, from the first byte of the data
};

inline std::uint64_t GgufReader::read_tensors() {
  check_gguf_version(cursor_);
  const std::uint64_t tensors = count_of("number of tensors", least_bytes_of_tensor);
  const std::uint64_t keys = count_of("number of keys", least_bytes_of_key);
  for (std::uint64_t i = 0; i < keys; ++i) {
    read_key();
  }
  for (std::uint64_t i = 0; i < tensors; ++i) {
    read_tensor();
  }
  return aligned(cursor_.place(), header_.alignment) + end_;
}

inline void GgufReader::read_key() {
  const std::uint64_t begin = cursor_.place();
  cursor_.speak_of_tensor("");
  std::string key = cursor_.name("name of a key", cursor_.limits().max_name_bytes);
  cursor_.speak_of_key(key);
  const std::uint64_t type_place = cursor_.place();
  const GgufValue type = cursor_.value_type("type");
  const std::uint64_t value_place = cursor_.place();
  JsonFact value = cursor_.value(type);
  if (key == "general.alignment") {
    if (type != GgufValue::U32) {
      cursor_.fail_at(type_place, gguf_value_facts[static_cast<std::size_t>(type)].name,
                      ", expected U32");
    }
    header_.alignment = static_cast<std::uint64_t>(value.integer);
    if (!std::has_single_bit(header_.alignment)) {
      cursor_.fail_at(value_place, header_.alignment, ", expected a power of two");
    }
  }
  if (!header_.facts.emplace(std::move(key), std::move(value)).second) {
    cursor_.fail_at(begin, "appears twice");
  }
}

inline void GgufReader::read_tensor() {
  cursor_.speak_of_tensor("");
  HeaderEntry entry;
  entry.place = cursor_.place();
  entry.name = cursor_.name("name of a tensor", most_bytes_of_tensor_name);
  cursor_.speak_of_tensor(entry.name);
  const std::uint64_t shape_place = cursor_.place();
  entry.shape = read_shape();
  entry.dtype = read_dtype();
  const std::uint64_t bytes = checked_bytes(entry.dtype, entry.shape, shape_place);
  const std::uint64_t expected = aligned(end_, header_.alignment);  // end_ is in the file
  const std::uint64_t offset_place = cursor_.place();
  entry.begin = cursor_.number<std::uint64_t>("offset");
  if (entry.begin != expected) {
    cursor_.fail_at(offset_place, "offset ", entry.begin, ", expected ", expected,
                    ", where the tensor before it ends, aligned to ", header_.alignment);
  }
  if (entry.begin > cursor_.file_size() || bytes > cursor_.file_size() - entry.begin) {
    cursor_.fail_at(offset_place, dtype_and_shape(entry.dtype, entry.shape), " of ", bytes,
                    " bytes from ", entry.begin, " on, but the file has ", cursor_.file_size());
  }
  entry.end = end_ = entry.begin + bytes;
  header_.tensors.push_back(std::move(entry));
}

/// Row-major: the file has the last dimension first.
inline std::vector<Index> GgufReader::read_shape() {
  const std::uint64_t begin = cursor_.place();
  const auto rank = cursor_.number<std::uint32_t>("number of dimensions");
  if (rank < 1 || rank > 4) {
    cursor_.fail_at(begin, rank, " dimensions, expected 1 to 4");
  }
  constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<Index>::max)());
  std::vector<Index> shape(rank);
  std::uint64_t product = 1;
  for (auto size = shape.rbegin(); size != shape.rend(); ++size) {
    const std::uint64_t place = cursor_.place();
    const auto found = cursor_.number<std::uint64_t>("a dimension");
    if (found == 0 || found > most) {
      cursor_.fail_at(place, "a dimension of ", static_cast<std::int64_t>(found),
                      ", expected at least 1");
    }
    if (product > most / found) {
      cursor_.fail_at(place, "the number of elements overflows");
    }
    product *= found;
    *size = static_cast<Index>(found);
  }
  return shape;
}

inline DType GgufReader::read_dtype() {
  const std::uint64_t begin = cursor_.place();
  const auto number = cursor_.number<std::uint32_t>("type of elements");
  const std::optional<DType> dtype = dtype_of_gguf(number);
  if (!dtype) {
    cursor_.fail_at(begin, "type of elements ", number, ", expected one of those up to ",
                    gguf_elements.back().number, " that are in use");
  }
  return *dtype;
}

inline std::uint64_t GgufReader::checked_bytes(DType dtype, const std::vector<Index>& shape,
                                               std::uint64_t place) const {
  const auto [elements, bytes] = block_size(dtype);
  if (shape.back() % static_cast<Index>(elements) != 0) {
    cursor_.fail_at(place, dtype_and_shape(dtype, shape), ", expected rows of a multiple of ",
                    elements);
  }
  std::uint64_t blocks = 1;
  for (const Index size : shape) {
    blocks *= static_cast<std::uint64_t>(size);  // which fits: see read_shape()
  }
  blocks /= elements;
  if (blocks > (std::numeric_limits<std::uint64_t>::max)() / bytes) {
    cursor_.fail_at(place, dtype_and_shape(dtype, shape), ", the number of bytes overflows");
  }
  return blocks * bytes;
}

/// The data may end with the last tensor, or aligned as the others do.
inline void GgufReader::check_end() {
  cursor_.speak_of_tensor("");
  const std::uint64_t size = cursor_.file_size(), header_end = cursor_.place();
  header_.data_begin = aligned(header_end, header_.alignment);
  if (header_.tensors.empty()) {
    if (size != header_end && size != header_.data_begin) {
      cursor_.fail_at(header_end, size - header_end,
                      " bytes behind a header without tensors, expected none");
    }
    header_.data_begin = header_end;
    return;
  }
  if (header_.data_begin > size || end_ > size - header_.data_begin) {
    const HeaderEntry& last = header_.tensors.back();
    cursor_.speak_of_tensor(last.name);
    cursor_.fail_at(last.place, "data from byte ", header_.data_begin, " on of ", end_,
                    " bytes, but the file has ", size);
  }
  const std::uint64_t behind = size - header_.data_begin - end_;
  if (behind != 0 && behind != aligned(end_, header_.alignment) - end_) {
    cursor_.fail_at(header_.data_begin + end_, behind,
                    " bytes behind the last tensor, expected none or ",
                    aligned(end_, header_.alignment) - end_, " of padding");
  }
}

/// bytes: the whole file. The tensors come back in the order of their data, which is the file's.
inline GgufHeader read_gguf_header(std::span<const std::byte> bytes, const std::string& file,
                                   const ReadLimits& limits) {
  return GgufReader(bytes, file, limits).read();
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
