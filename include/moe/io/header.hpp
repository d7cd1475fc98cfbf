// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file as data, and the limits under which it is read: header_json.hpp
// fills it, header_check.hpp holds it against the file, SafeTensors takes it over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../types.hpp"
#include "dtype.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// What a file may ask of the reader before it is refused.
struct ReadLimits {
  std::uint64_t max_header_bytes = 32'000'000;  ///< never above the format's own 100,000,000
  std::size_t max_tensors = 500'000;            ///< caps the keys of __metadata__, too
  std::size_t max_name_bytes = 1024;
  std::size_t max_rank = 16;
};

namespace detail {

/// Where the JSON begins: behind its own length, eight bytes, little-endian.
inline constexpr std::uint64_t length_bytes = 8;

/// One tensor as the header declares it; begin and end count from the first byte after the header.
struct HeaderEntry {
  std::string name;
  DType dtype = DType::BOOL;
  std::vector<Index> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t place = 0;  // of the name in the file, for messages
};

struct Header {
  std::vector<HeaderEntry> tensors;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  // offset in the file of the first data byte
};

}  // namespace detail
}  // namespace moe::inline MOE_INSTRUCTION_SET::io
