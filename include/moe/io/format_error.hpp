// SPDX-License-Identifier: Apache-2.0
// The one exception of io/, thrown by all of it: a file that cannot be read, is malformed, or does
// not hold what was asked of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../detail/joined.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

namespace detail {

using moe::detail::joined;

}  // namespace detail

/// Text from a file made fit for a message: control characters (C0, DEL and C1) become xNN behind a
/// backslash, and what exceeds max_bytes is cut off and marked with "...". Other UTF-8 is left as
/// it is.
inline std::string printable(std::string_view text, std::size_t max_bytes = 200);

/// what() reads
///   m.safetensors: tensor "w", byte 9: data_offsets [0, 96), expected 128 bytes (F32 [4, 8])
/// and copying does not throw.
class FormatError : public std::runtime_error {
 public:
  /// No tensor ("") where the fault is not about one, no offset where no byte is to blame.
  FormatError(const std::string& file, const std::string& tensor,
              std::optional<std::uint64_t> offset, const std::string& fault)
      : std::runtime_error(message(file, tensor, offset, fault)),
        place_(std::make_shared<const Place>(Place{file, tensor, offset})) {}

  const std::string& file() const noexcept { return place_->file; }
  /// As it stands in the file, unescaped.
  const std::string& tensor() const noexcept { return place_->tensor; }
  /// From the first byte of the file: the byte of the header (or of the data) that is wrong.
  std::optional<std::uint64_t> offset() const noexcept { return place_->offset; }

 private:
  struct Place {
    std::string file, tensor;
    std::optional<std::uint64_t> offset;
  };

  static std::string message(const std::string& file, const std::string& tensor,
                             std::optional<std::uint64_t> offset, const std::string& fault) {
    std::string text = detail::joined(printable(file, 4096), ": ");
    if (!tensor.empty()) {
      text += detail::joined("tensor \"", printable(tensor), "\"");
    }
    if (!tensor.empty() && offset) {
      text += ", ";
    }
    if (offset) {
      text += detail::joined("byte ", *offset);
    }
    if (!tensor.empty() || offset) {
      text += ": ";
    }
    return text + fault;
  }

  std::shared_ptr<const Place> place_;  // shared, so that a copy cannot throw
};

inline std::string printable(std::string_view text, std::size_t max_bytes) {
  const auto byte_at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t size = text.size();
  if (size > max_bytes) {
    size = max_bytes;
    // Never cut a UTF-8 sequence in two.
    while (size > 0 && (byte_at(size) & 0xC0U) == 0x80U) {
      --size;
    }
  }
  std::string out;
  for (std::size_t i = 0; i < size; ++i) {
    const unsigned byte = byte_at(i);
    const bool lead_of_c1 = byte == 0xC2U && i + 1 < size && byte_at(i + 1) < 0xA0U;
    const bool c1 = i > 0 && byte_at(i - 1) == 0xC2U && byte >= 0x80U && byte < 0xA0U;
    if (byte >= 0x20U && byte != 0x7FU && !lead_of_c1 && !c1) {
      out += text[i];
    } else {
      constexpr std::string_view hex = "0123456789abcdef";
      out += "\\x";
      out += hex[byte >> 4U];
      out += hex[byte & 0xFU];
    }
  }
  if (size < text.size()) {
    out += "...";
  }
  return out;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
