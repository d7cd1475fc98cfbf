// SPDX-License-Identifier: Apache-2.0
// PackedFile<S>: an open packed file, as packed_header.hpp describes it, and the extents of its
// experts, read one at a time or mapped all together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <vector>

#include "byte_source.hpp"
#include "packed_header.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io::detail {

/// All that can be wrong with header and table is found when it is made, and thrown as FormatError
/// with the byte. Several threads may read from it.
template <FileStorage S>
class PackedFile {
 public:
  explicit PackedFile(const std::filesystem::path& path)
      : input_(path),
        header_(read_header(), input_.name()),
        extent_(header_.extent<S>()),
        entries_(read_table()) {}

  const ExpertExtent<S>& extent() const { return extent_; }
  Index num_experts() const { return header_.experts(); }
  /// Has extents read past the system's cache, where that can be.
  void read_directly() { direct_ = input_.read_directly(); }

  /// to (extent().bytes()), at a multiple of direct_step, = the extent of an expert. Throws
  /// FormatError where it cannot be read, or is not what was written.
  void read(ExpertId expert, std::span<std::byte> to) const {
    const Entry& entry = entries_[static_cast<std::size_t>(expert)];
    {
      std::unique_lock<std::mutex> one_at_a_time(mutex_, std::defer_lock);
      if (!reads_apart) {
        one_at_a_time.lock();
      }
      input_.read(entry.offset, to);
    }
    if (!direct_) {
      input_.forget(entry.offset, to.size());
    }
    if (const std::uint64_t sum = checksum(to); sum != entry.checksum) {
      header_.fail(entry.offset,
                   joined("checksum ", sum, " of expert ", expert, ", expected ", entry.checksum));
    }
  }
  /// All extents, one behind the other, mapped. Their checksums are not looked at.
  Bytes map() const {
    const Bytes file = input_.map();
    return {file.owner, file.view.subspan(header_.first_extent())};
  }

 private:
  struct Entry {
    std::uint64_t offset, bytes, checksum;
  };
  static_assert(sizeof(Entry) == PackedHeader::table_entry);

  PackedHeader::Words read_header() const {
    if (input_.size() < PackedHeader::bytes) {
      throw FormatError(
          input_.name(), "", input_.size(),
          joined("end of file, expected a header of ", PackedHeader::bytes, " bytes"));
    }
    PackedHeader::Words words;
    input_.read(0, std::as_writable_bytes(std::span(words)));
    return words;
  }

  /// The size of the file comes first: a header may claim a table that fits no memory.
  std::vector<Entry> read_table() const {
    const std::uint64_t first = header_.first_extent(), extent = extent_.bytes();
    const auto experts = static_cast<std::uint64_t>(num_experts());
    if (input_.size() < first || (input_.size() - first) / extent != experts ||
        (input_.size() - first) % extent != 0) {
      header_.fail(input_.size(), joined("end of file, expected ", experts, " extents of ", extent,
                                         " bytes from byte ", first, " on"));
    }
    std::vector<std::byte> table(PackedHeader::table_bytes(num_experts()));
    input_.read(PackedHeader::bytes, table);
    if (const std::uint64_t sum = checksum(table); sum != header_.checksum_of_table()) {
      header_.fail(PackedHeader::bytes, joined("checksum of the table ", sum, ", expected ",
                                               header_.checksum_of_table()));
    }
    std::vector<Entry> entries(experts);
    std::memcpy(entries.data(), table.data(), entries.size() * sizeof(Entry));
    check_entries(entries);
    const auto unused = table.begin() + static_cast<Index>(entries.size() * sizeof(Entry));
    const auto wrong =
        std::find_if(unused, table.end(), [](std::byte b) { return b != std::byte{0}; });
    if (wrong != table.end()) {
      header_.fail(PackedHeader::bytes + static_cast<std::uint64_t>(wrong - table.begin()),
                   joined("unused byte ", static_cast<int>(*wrong), ", expected 0"));
    }
    return entries;
  }
  void check_entries(const std::vector<Entry>& entries) const {
    std::uint64_t offset = header_.first_extent(), at = PackedHeader::bytes;
    for (const Entry& entry : entries) {
      if (entry.offset != offset) {
        header_.fail(at, joined("offset ", entry.offset, ", expected ", offset));
      }
      if (entry.bytes != extent_.bytes()) {
        header_.fail(at + sizeof(entry.offset),
                     joined("bytes ", entry.bytes, ", expected ", extent_.bytes()));
      }
      offset += entry.bytes;
      at += sizeof(Entry);
    }
  }

  InputFile input_;
  PackedHeader header_;
  ExpertExtent<S> extent_;
  std::vector<Entry> entries_;
  bool direct_ = false;
  mutable std::mutex mutex_;
};

}  // namespace moe::inline MOE_INSTRUCTION_SET::io::detail
