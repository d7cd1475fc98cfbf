// SPDX-License-Identifier: Apache-2.0
// What a header claims, held against itself and against the size of the file: after read_header()
// every tensor has the bytes that its dtype and shape ask for, all of them lie in the file, no two
// overlap and no byte is left over. No sum or product is formed before it is known to fit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "../types.hpp"
#include "dtype.hpp"
#include "format_error.hpp"
#include "header.hpp"
#include "header_json.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// The format's own limit, whatever ReadLimits says.
inline constexpr std::uint64_t most_header_bytes = 100'000'000;

/// The first eight bytes as the length of the JSON; throws unless so much follows them in a file of
/// file_size bytes. first: the file from its beginning, at least min(8, file_size) bytes of it.
inline std::uint64_t header_length(std::span<const std::byte> first, std::uint64_t file_size,
                                   const std::string& file, const ReadLimits& limits) {
  if (file_size < length_bytes || first.size() < length_bytes) {
    throw FormatError(file, "", std::nullopt,
                      joined("the file has ", file_size, " bytes, expected at least 8"));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, first.data(), sizeof length);
  const auto fail = [&](std::uint64_t most, const std::string& why) {
    throw FormatError(
        file, "", 0, joined("header length ", length, ", expected at most ", most, " (", why, ")"));
  };
  if (length > most_header_bytes) {
    fail(most_header_bytes, "the limit of the format");
  }
  if (length > limits.max_header_bytes) {
    fail(limits.max_header_bytes, "ReadLimits::max_header_bytes");
  }
  if (length > file_size - length_bytes) {
    fail(file_size - length_bytes, joined("a file of ", file_size, " bytes"));
  }
  return length;
}

/// "F32 [4, 8]"
inline std::string dtype_and_shape(DType dtype, const std::vector<Index>& shape) {
  std::string text = joined(name(dtype), " [");
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += joined(i == 0 ? "" : ", ", shape[i]);
  }
  return text + "]";
}

/// "data_offsets [0, 96)"
inline std::string range_of(const HeaderEntry& entry) {
  return joined("data_offsets [", entry.begin, ", ", entry.end, ")");
}

/// Bytes that dtype and shape ask for, or what is wrong with them. A zero dimension does not excuse
/// the others: their product fits an Index all the same, so they may be multiplied in any order.
struct ByteSize {
  std::uint64_t bytes = 0;
  const char* fault = nullptr;
};

inline ByteSize byte_size(DType dtype, const std::vector<Index>& shape) {
  constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<Index>::max)());
  std::uint64_t product = 1;
  bool empty = false;
  for (const Index dimension : shape) {
    const auto size = static_cast<std::uint64_t>(dimension);
    empty = empty || size == 0;
    if (size > 1 && product > most / size) {
      return {0, "the number of elements overflows"};
    }
    product *= std::max<std::uint64_t>(size, 1);
  }
  const std::uint64_t elements = empty ? 0 : product;
  if (elements > (std::numeric_limits<std::uint64_t>::max)() / bits(dtype)) {
    return {0, "the number of bits overflows"};
  }
  if (elements * bits(dtype) % 8 != 0) {
    return {0, "does not end on a whole byte"};
  }
  return {elements * bits(dtype) / 8, nullptr};
}

/// Each tensor for itself: its own shape, its own range, the end of the file.
inline void check_sizes(const Header& header, std::uint64_t data_size, const std::string& file) {
  for (const HeaderEntry& entry : header.tensors) {
    const auto fail = [&](const auto&... parts) {
      throw FormatError(file, entry.name, entry.place, joined(parts...));
    };
    const ByteSize need = byte_size(entry.dtype, entry.shape);
    if (need.fault != nullptr) {
      fail(dtype_and_shape(entry.dtype, entry.shape), " ", need.fault);
    }
    if (entry.end < entry.begin) {
      fail(range_of(entry), " ends before it begins");
    }
    if (entry.end - entry.begin != need.bytes) {
      fail(range_of(entry), ", expected ", need.bytes, " bytes (",
           dtype_and_shape(entry.dtype, entry.shape), ")");
    }
    if (entry.end > data_size) {
      fail(range_of(entry), ", but the file ends after ", data_size, " bytes of data");
    }
  }
}

/// Sorts by place in the file, and refuses overlaps, holes and bytes that belong to no tensor.
inline void check_layout(Header& header, std::uint64_t data_size, const std::string& file) {
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const HeaderEntry& a, const HeaderEntry& b) {
                     return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
                   });
  std::uint64_t covered = 0;
  const HeaderEntry* before = nullptr;
  for (const HeaderEntry& entry : header.tensors) {
    if (entry.begin != covered) {
      const std::string neighbour =
          before == nullptr ? "the header" : joined("tensor \"", printable(before->name), "\"");
      const char* const fault = entry.begin < covered ? " overlaps " : " leaves a hole after ";
      throw FormatError(
          file, entry.name, entry.place,
          joined(range_of(entry), fault, neighbour, ", expected to begin at ", covered));
    }
    covered = entry.end;
    before = &entry;
  }
  if (covered != data_size) {
    throw FormatError(file, "", header.data_begin + covered,
                      joined(data_size - covered, " bytes behind the last tensor, expected none"));
  }
}

/// Throws where two tensors share a name; tells which is the later one in the header.
inline void check_unique_names(const Header& header, const std::string& file) {
  std::vector<const HeaderEntry*> by_name;
  by_name.reserve(header.tensors.size());
  for (const HeaderEntry& entry : header.tensors) {
    by_name.push_back(&entry);
  }
  std::sort(by_name.begin(), by_name.end(), [](const HeaderEntry* a, const HeaderEntry* b) {
    return std::tie(a->name, a->place) < std::tie(b->name, b->place);
  });
  const auto twice = std::adjacent_find(
      by_name.begin(), by_name.end(),
      [](const HeaderEntry* a, const HeaderEntry* b) { return a->name == b->name; });
  if (twice != by_name.end()) {
    const HeaderEntry& second = **std::next(twice);
    throw FormatError(file, second.name, second.place,
                      joined("the name appears twice, first at byte ", (*twice)->place));
  }
}

/// bytes: the whole file. The tensors come back in the order of their data.
inline Header read_header(std::span<const std::byte> bytes, const std::string& file,
                          const ReadLimits& limits) {
  const std::uint64_t length = header_length(bytes, bytes.size(), file, limits);
  const auto json = bytes.subspan(length_bytes, static_cast<std::size_t>(length));
  const std::string_view text(reinterpret_cast<const char*>(json.data()), json.size());
  Header header = HeaderReader(text, file, limits).read();
  header.data_begin = length_bytes + length;  // at most the size of the file
  const std::uint64_t data_size = bytes.size() - header.data_begin;
  check_unique_names(header, file);
  check_sizes(header, data_size, file);
  check_layout(header, data_size, file);
  return header;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
