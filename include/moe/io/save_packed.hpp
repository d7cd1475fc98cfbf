// SPDX-License-Identifier: Apache-2.0
// PackedExperts<S> -> a packed file, the same bytes on every instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <span>
#include <vector>

#include "../experts/packed_experts.hpp"
#include "output_file.hpp"
#include "packed_header.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::io {

/// Of so many experts, where make(e) returns a PackedExpert<S> or a reference to one: of memory it
/// takes one of them. Throws std::invalid_argument unless there is one at least, an ExpertId
/// numbers all of them, and all are of one kind and size, FormatError where the file cannot be
/// written, and what make throws; what stood at the path is then as before.
template <Storage S, class MakeExpert>
void save_packed(const std::filesystem::path& path, Index num_experts, MakeExpert&& make) {
  static_assert(in_file_storage<S>());
  using detail::PackedHeader;
  constexpr Index most = (std::numeric_limits<ExpertId>::max)();
  moe::detail::throw_unless(num_experts >= 1 && num_experts <= most,
                            "save_packed: num_experts = ", num_experts, ", expected 1 to ", most);
  std::vector<std::uint64_t> table(PackedHeader::table_bytes(num_experts) / sizeof(std::uint64_t));
  std::uint64_t offset = PackedHeader::bytes + PackedHeader::table_bytes(num_experts);
  std::vector<std::byte> data(offset);
  detail::OutputFile file(path);
  file.write(data);  // room for header and table
  PackedHeader::Words kind{}, header{};
  for (Index e = 0; e < num_experts; ++e, offset += data.size()) {
    const PackedExpert<S>& expert = make(e);
    const auto extent = ExpertExtent<S>::of(expert);
    header = PackedHeader::write(extent, num_experts);
    kind = e == 0 ? header : kind;
    moe::detail::throw_unless(header == kind, "save_packed: expert ", e,
                              " is of another kind or size than the first, expected the same");
    data.resize(extent.bytes());
    extent.write(expert, data);
    file.write(data);
    const std::uint64_t entry[] = {offset, data.size(), detail::checksum(data)};
    std::copy(std::begin(entry), std::end(entry), table.begin() + e * std::ssize(entry));
  }
  const auto table_bytes = std::as_bytes(std::span(table));
  PackedHeader::seal(header, detail::checksum(table_bytes));
  file.go_to_begin();
  file.write(std::as_bytes(std::span(header)));
  file.write(table_bytes);
  file.finish();
}

template <Storage S>
void save_packed(const std::filesystem::path& path, const PackedExperts<S>& experts) {
  save_packed<S>(path, experts.num_experts(),
                 [&](Index e) -> const PackedExpert<S>& { return experts.expert(e); });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::io
