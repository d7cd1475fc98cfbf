// SPDX-License-Identifier: Apache-2.0
// The begin of a packed file, which says what lies in it. All of it is little-endian numbers of 8
// bytes:
//
//   header   a page of 4096 bytes, as PackedHeader::Word has it
//   table    for each expert the offset, the bytes and the checksum of its extent; zeros to the end
//            of the page
//   extents  one for each expert, whole pages, as ExpertExtent<S> has it
//
// Each of the three is under a checksum, zeros included, so that no byte of a file is unguarded.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "../experts/expert_extent.hpp"
#include "checksum.hpp"
#include "format_error.hpp"

static_assert(std::endian::native == std::endian::little,
              "moe/io reads little-endian files in place: build it for a little-endian machine");

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

class PackedHeader {
 public:
  static constexpr std::size_t bytes = 4096, table_entry = 3 * sizeof(std::uint64_t);
  enum Word : std::size_t {
    magic,
    version,
    storage,  ///< its name in files, and zeros
    num_experts,
    d_in,
    d_ff,
    d_out,
    activation,  ///< as ExpertConfig has them from here on
    gated,
    bias,
    output_gate,
    has_limit,
    clamp,
    limit,
    up_offset,
    alpha,
    gate_bound,
    up_bound,
    extent_bytes,
    table_checksum,
    first_unused,
    own_checksum = bytes / sizeof(std::uint64_t) - 1  ///< of all words before it
  };
  using Words = std::array<std::uint64_t, own_checksum + 1>;

  /// Of a file to be written; it lacks its checksums.
  template <FileStorage S>
  static Words write(const ExpertExtent<S>& extent, Index experts);
  static void seal(Words& words, std::uint64_t checksum_of_table) {
    words[table_checksum] = checksum_of_table;
    words[own_checksum] = sum_of(words);
  }

  /// Of an open file, named in messages. Throws FormatError unless it is a header of moe.
  PackedHeader(const Words& words, std::string file) : words_(words), file_(std::move(file)) {
    expect(magic, word_of("moe.pack"), "magic number");
    expect(version, 1, "version");
    expect(own_checksum, sum_of(words_), "checksum of the header");
    for (std::size_t word = first_unused; word < own_checksum; ++word) {
      expect(static_cast<Word>(word), 0, "unused number");
    }
  }

  /// What lies in the file. Throws FormatError, with the byte, unless that can be, and is in S.
  template <FileStorage S>
  ExpertExtent<S> extent() const;
  Index experts() const {
    return within(num_experts, 1, (std::numeric_limits<ExpertId>::max)(), "experts");
  }
  std::uint64_t checksum_of_table() const { return words_[table_checksum]; }
  /// Where the extents begin.
  std::uint64_t first_extent() const { return bytes + table_bytes(experts()); }
  static std::uint64_t table_bytes(Index experts) {
    return (static_cast<std::uint64_t>(experts) * table_entry + bytes - 1) / bytes * bytes;
  }

  [[noreturn]] void fail(std::uint64_t offset, const std::string& fault) const {
    throw FormatError(file_, "", offset, fault);
  }

 private:
  static std::uint64_t word_of(std::string_view text) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data(), (std::min)(text.size(), sizeof(word)));
    return word;
  }
  static std::string text_of(std::uint64_t word) {
    char text[sizeof(word) + 1] = {};
    std::memcpy(text, &word, sizeof(word));
    return text;
  }
  /// The last word counts as 0.
  static std::uint64_t sum_of(Words words) {
    words[own_checksum] = 0;
    return checksum(std::as_bytes(std::span(words)));
  }

  void expect(Word word, std::uint64_t wanted, const char* name) const {
    if (words_[word] != wanted) {
      fail(word * sizeof(std::uint64_t), joined(name, " ", words_[word], ", expected ", wanted));
    }
  }
  Index within(Word word, std::uint64_t least, std::uint64_t most, const char* name) const {
    const std::uint64_t value = words_[word];
    if (value < least || value > most) {
      fail(word * sizeof(value), joined(value, " ", name, ", expected ", least, " to ", most));
    }
    return static_cast<Index>(value);
  }
  bool flag(Word word, const char* name) const { return within(word, 0, 1, name) == 1; }
  double finite(Word word, const char* name, bool above_zero = true) const {
    const auto value = std::bit_cast<double>(words_[word]);
    if (!std::isfinite(value) || (above_zero && !(value > 0.0))) {
      fail(word * sizeof(value),
           joined(value, " ", name, ", expected finite", above_zero ? " and above 0" : ""));
    }
    return value;
  }

  ExpertConfig config() const;

  Words words_;
  std::string file_;
};

template <FileStorage S>
auto PackedHeader::write(const ExpertExtent<S>& extent, Index experts) -> Words {
  static_assert(PackedMatrix<S>::name_in_files.size() <= sizeof(std::uint64_t));
  const ExpertConfig& config = extent.config();
  Words words{};
  const auto put = [&](Word word, auto value) { words[word] = static_cast<std::uint64_t>(value); };
  const auto put_number = [&](Word word, double value) {
    words[word] = std::bit_cast<std::uint64_t>(value);
  };
  put(magic, word_of("moe.pack"));
  put(version, 1);
  put(storage, word_of(PackedMatrix<S>::name_in_files));
  put(num_experts, experts);
  put(d_in, extent.d_in());
  put(d_ff, extent.d_ff());
  put(d_out, extent.d_out());
  put(activation, config.activation);
  put(gated, config.gated);
  put(bias, config.bias);
  put(output_gate, config.output_gate);
  put(has_limit, config.limit.has_value());
  put(clamp, config.clamp);
  put_number(limit, config.limit.value_or(0.0));
  put_number(up_offset, config.up_offset);
  put_number(alpha, config.alpha);
  put_number(gate_bound, config.gate_bound);
  put_number(up_bound, config.up_bound);
  put(extent_bytes, extent.bytes());
  return words;
}

inline ExpertConfig PackedHeader::config() const {
  ExpertConfig config;
  config.activation = static_cast<Activation>(
      within(activation, 0, all_activations.size() - 1, "as the activation"));
  config.gated = flag(gated, "as gated");
  config.bias = flag(bias, "as bias");
  config.output_gate = flag(output_gate, "as output_gate");
  config.clamp = static_cast<Clamp>(
      within(clamp, 0, static_cast<std::uint64_t>(Clamp::after), "as the clamp"));
  if (flag(has_limit, "as has_limit")) {
    config.limit = finite(limit, "as the limit");
  } else {
    expect(limit, 0, "a limit, though there is none:");
  }
  config.up_offset = finite(up_offset, "as up_offset", false);
  config.alpha = finite(alpha, "as alpha");
  config.gate_bound = finite(gate_bound, "as gate_bound");
  config.up_bound = finite(up_bound, "as up_bound");
  try {
    config.validate();
  } catch (const std::invalid_argument& error) {  // numbers that do not go together
    fail(activation * sizeof(std::uint64_t), error.what());
  }
  return config;
}

template <FileStorage S>
ExpertExtent<S> PackedHeader::extent() const {
  if (words_[storage] != word_of(PackedMatrix<S>::name_in_files)) {
    fail(storage * sizeof(std::uint64_t),
         joined("storage \"", printable(text_of(words_[storage])), "\", expected \"",
                PackedMatrix<S>::name_in_files, "\""));
  }
  constexpr std::uint64_t most = std::uint64_t{1} << 24;  // whose products fit 64 bits
  const Index in = within(d_in, 1, most, "as d_in"), ff = within(d_ff, 1, most, "as d_ff"),
              out = within(d_out, 1, most, "as d_out");
  const ExpertExtent<S> extent(config(), in, ff, out);
  expect(extent_bytes, extent.bytes(), "bytes of an extent");
  return extent;
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
